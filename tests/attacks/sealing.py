"""Contents of checkpoints with the right checksums, as an attacker would write them. Pure functions."""

import io
import json
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence

import xxhash

from pytreesaver._io.checksums.crc32c import crc32c, masked
from pytreesaver.formats.tensorflow.table import encode_varint

ONE_RESTART = bytes(4) + b"\1\0\0\0"
END_OF_TABLE = bytes.fromhex("57fb808b247547db")


def xxh3(content):
    """Return the digits of a checksum."""
    return xxhash.xxh3_64_hexdigest(content)


def as_json(value):
    """Return JSON as bytes, with every surrogate as an escape."""
    return json.dumps(value, separators=(",", ":")).encode()


def sealed_index(index):
    """Return the text of an index, or of a description, with its checksum."""
    body = as_json({key: value for key, value in index.items() if key != "checksum"})[:-1]
    return sealed_lines(body + (b",\n" if len(body) > 1 else b""))


def sealed_lines(body):
    """Return the text of an index after its last line."""
    return body + b'"checksum":"%s"}\n' % xxh3(body).encode()


def sealed_metadata(text):
    """Return the text of a safetensors header whose first checksum is right."""
    zeros = re.sub(rb'("pytreesaver\.checksum":")[0-9a-f]{16}', rb"\g<1>" + b"0" * 16, text, count=1)
    return zeros.replace(b"0" * 16, xxh3(zeros).encode(), 1)


def with_header(text, data=b""):
    """Return a safetensors file."""
    return struct.pack("<Q", len(text)) + text + data


def split_header(content):
    """Return the text of the header of a safetensors file, and the data."""
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 : 8 + length], content[8 + length :]


# Tables of TensorFlow.


def block(content, kind=0):
    """Return a block of a table."""
    return content + bytes([kind]) + masked(crc32c(content + bytes([kind]))).to_bytes(4, "little")


def table_of_block(content, kind=0):
    """Return a table with this single data block."""
    data = block(content, kind)
    empty = block(ONE_RESTART)
    handle = encode_varint(0) + encode_varint(len(content))
    index = block(b"\0\1" + bytes([len(handle)]) + b"z" + handle + ONE_RESTART)
    places = [(len(data), len(empty) - 5), (len(data) + len(empty), len(index) - 5)]
    return data + empty + index + footer(places)


def footer(places):
    """Return the end of a table, with the places of its metaindex and its index."""
    return b"".join(encode_varint(number) for place in places for number in place).ljust(40, b"\0") + END_OF_TABLE


# Archives.


def archive(entries: Sequence[tuple[str, bytes]] | Mapping[str, bytes], comment=b"", *, deflated=False):
    """Return a zip archive without times."""
    file = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", kind) as written:
        for name, content in entries.items() if isinstance(entries, Mapping) else entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = kind
            written.writestr(info, content)
        written.comment = comment
    return file.getvalue()


def described_archive(entries, text):
    """Return an archive with a description where the native writer puts it, whose checksums are right."""
    plain = archive(entries)
    directory = plain.rindex(b"PK\5\6")
    (start,) = struct.unpack("<I", plain[directory + 16 : directory + 20])
    end = bytearray(plain[directory:])
    comment = b"pytreesaver description=%019d+%019d xxh3=" % (start, len(text))
    end[16:20] = struct.pack("<I", start + len(text))
    end[20:22] = struct.pack("<H", len(comment) + 16)
    whole = plain[:start] + text + plain[start:directory] + bytes(end) + comment
    return whole + xxh3(whole).encode()


# Arrays in NumPy's format.


def array_header(text, version=b"\1\0"):
    """Return the header of an array with this text."""
    length = struct.pack("<H" if version == b"\1\0" else "<I", len(text))
    return b"\x93NUMPY" + version + length + text


def array_file(descr="'<f4'", shape="(2, 3)", content=b"", order="False"):
    """Return an array in NumPy's format, whose header may say anything."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    return array_header(text + b" " * (-(len(text) + 11) % 64) + b"\n") + content
