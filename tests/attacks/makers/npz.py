"""Attacks on npz archives, and on files of Equinox, which are arrays in the same format one after the other."""

import functools
import io
import json
import struct
import zipfile

import numpy as np
from attacks.attack import LISTED, TREE, Attack, allowed, saved
from attacks.makers.native_trees import WITH_TEMPLATE
from attacks.sealing import archive, array_file, array_header, described_archive, sealed_index

NPY = "https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html"
ZIP = "https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT"
MAGIC = "The first 6 bytes are a magic string: exactly \\x93NUMPY."
LENGTH = "The next 2 bytes form a little-endian unsigned short int: the length of the header data HEADER_LEN."
LITERAL = "It is an ASCII string which contains a Python literal expression of a dictionary."
KEYS = "The dictionary contains three keys: descr, fortran_order, shape"
DESCR = "An object that can be passed as an argument to the numpy.dtype constructor to create the array's dtype."
OBJECTS = "If the dtype contains Python objects, then the data is a Python pickle of the array."
CONTENT = "Otherwise the data is the contiguous bytes of the array."
ORDER = "Whether the array data is Fortran-contiguous or not."
DATA = TREE["w"].tobytes()
W = array_file(content=DATA)
PICKLES = (*LISTED, "diff", "verify")


def of_entries(rule, entries, message, error="CorruptCheckpointError", works=(), source=NPY, deflated=False):
    """Return an archive of entries, whose CRCs are right."""
    return Attack({".npz": archive(entries, deflated=deflated)}, rule, message, error, works, source)


def of_array(rule, content, message, error="CorruptCheckpointError", works=()):
    """Return an archive of one array."""
    return of_entries(rule, {"w.npy": content}, message, error, works)


def deep(levels):
    """Return a header of nested brackets."""
    return array_header(b"{'shape': " + b"(" * levels + b")" * levels + b"}\n")


ARRAYS = {
    "no-array": of_array(MAGIC, b"nothing", "expected an array of NumPy"),
    "entry-of-no-bytes": of_array(MAGIC, b"", "expected an array of NumPy"),
    "version-9": of_array(MAGIC, b"\x93NUMPY\x09\0" + W[8:], "expected an array of NumPy"),
    "version-3": of_array(MAGIC, array_header(W[10:128], b"\3\0") + DATA, "expected an array of NumPy"),
    "header-beyond-the-entry": of_array(LENGTH, b"\x93NUMPY\1\0\xff\xff{}", "expected an array of NumPy"),
    "header-of-4-gib": of_array(LENGTH, b"\x93NUMPY\2\0\xff\xff\xff\xff{}", "expected an array of NumPy"),
    "header-without-its-end": of_array(LITERAL, array_header(b"((("), "expected an array of NumPy"),
    "header-of-a-call": of_array(
        LITERAL, array_header(b"__import__('os').system('touch owned')\n"), "expected an array"
    ),
    "header-of-a-null": of_array(LITERAL, array_header(b"{'shape': \0}\n"), "expected an array of NumPy"),
    "header-of-brackets": of_array(LITERAL, deep(300), "expected an array of NumPy"),
    "header-of-a-list": of_array(KEYS, array_header(b"[1, 2]\n"), "expected an array of NumPy"),
    "header-without-a-shape": of_array(
        KEYS, array_header(b"{'descr':'<f4','fortran_order':False}\n"), "expected an array"
    ),
    "header-with-another-key": of_array(
        KEYS, array_header(b"{'descr':'<f4','fortran_order':False,'shape':(6,),'x':1}\n") + DATA, "expected an array"
    ),
    "unknown-dtype": of_array(DESCR, array_file("'<f3'", content=DATA), "expected an array of NumPy"),
    "dtype-of-a-number": of_array(DESCR, array_file("7", content=DATA), "expected an array of NumPy"),
    "dtype-of-a-list": of_array(DESCR, array_file("[('a', '<f4'), 1]", content=DATA), "expected an array of NumPy"),
    "dtype-with-fields": of_array(DESCR, array_file("[('a', '<f2'), ('b', '<f2')]", content=DATA), ""),
    "dtype-of-an-inner-array": of_array(DESCR, array_file("('<f4', (3,))", "(2,)", DATA), ""),
    "dtype-of-void": of_array(DESCR, array_file("'|V4'", content=DATA), ""),
    "python-objects": of_array(
        OBJECTS, array_file("'|O'", "(1,)", b"\x80\4N."), "is a pickle", "UnsupportedLeafError", PICKLES
    ),
    "objects-in-fields": of_array(
        OBJECTS, array_file("[('a', '|O')]", "(1,)", b"\x80\4N."), "pickle", "UnsupportedLeafError", PICKLES
    ),
    "length-below-zero": of_array(KEYS, array_file(shape="(-2, -3)", content=DATA), "expected an array of NumPy"),
    "shape-of-120-bits": of_array(KEYS, array_file(shape=f"({1 << 60}, {1 << 60})"), "expected an array of NumPy"),
    "shape-of-300-digits": of_array(KEYS, array_file(shape="(" + "9" * 300 + ",)"), "expected an array of NumPy"),
    "shape-of-65-axes": of_array(KEYS, array_file(shape="(" + "1, " * 64 + "6)", content=DATA), "expected an array"),
    "shape-of-bools": of_array(KEYS, array_file(shape="(True, 6)", content=DATA), "expected an array of NumPy"),
    "shape-of-floats": of_array(KEYS, array_file(shape="(2.0, 3)", content=DATA), "expected an array of NumPy"),
    "shape-that-is-a-number": of_array(KEYS, array_file(shape="6", content=DATA), "expected an array of NumPy"),
    "order-of-text": of_array(ORDER, array_file(content=DATA, order="'yes'"), "expected an array of NumPy"),
    "fewer-bytes-than-numbers": of_array(CONTENT, array_file(content=DATA[:-1]), "expected an array", works=LISTED),
    "more-bytes-than-numbers": of_array(CONTENT, W + b"\0", "expected an array of NumPy", works=LISTED),
    "array-of-8-tib": of_entries(
        CONTENT, {"w.npy": array_file("'<f8'", f"({1 << 40},)", bytes(1000))}, "expected an array", deflated=True
    ),
    "array-in-fortran-order": of_array(
        ORDER, array_file(content=np.asfortranarray(TREE["w"]).tobytes("A"), order="True"), "", "", ("all",)
    ),
    "array-of-the-other-byte-order": of_array(
        DESCR, array_file("'>f4'", content=TREE["w"].astype(">f4").tobytes()), "", "", ("all",)
    ),
    "text-of-no-bytes-in-fortran-order": of_entries(
        ORDER, {"w.npy": W, "s.npy": array_file("'|S0'", order="True")}, "", "", ("all",)
    ),
    "header-of-python-2": of_array(KEYS, array_file(shape="(2L, 3)", content=DATA), "", "", ("all",)),
    "dtype-of-an-old-name": of_entries(
        DESCR, {"w.npy": W, "s.npy": array_file("'a4'", content=DATA)}, "", "", ("all",)
    ),
    "version-2": of_array(MAGIC, array_header(W[10:128], b"\2\0") + DATA, "", "", ("all",)),
    "good-foreign": of_array(CONTENT, W, "", "", ("all",)),
}


def _twice():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        written.writestr(zipfile.ZipInfo("w.npy"), W)
        written.writestr(zipfile.ZipInfo("x.npy"), W)
    return file.getvalue().replace(b"x.npy", b"w.npy")


def _edited(position_of, offset, new):
    """Return the archive of one array with some bytes replaced, counted from the last of `position_of`."""
    content = bytearray(archive({"w.npy": W}))
    start = content.rindex(position_of) + offset
    content[start : start + len(new)] = new
    return {".npz": bytes(content)}


def _huge_entry():
    """Return an archive whose entry claims to have 8 TiB, in its header and in the directory."""
    content = array_file("'<f8'", f"({1 << 40},)", bytes(1000))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as written:
        info = zipfile.ZipInfo("w.npy")
        info.compress_type = zipfile.ZIP_DEFLATED
        written.writestr(info, content)
        info.file_size = len(content) - 1000 + (8 << 40)
    return {".npz": file.getvalue()}


END, CENTRAL, LOCAL = b"PK\5\6", b"PK\1\2", b"PK\3\4"
OF_ZIP = "file names in an archive are different, and end in .npy"
CRC = "CRC-32: the value is that of the uncompressed file data"
DIRECTORY = "offset of start of central directory with respect to the starting disk number"
SIZE = "uncompressed size: the size of the file uncompressed"
ARCHIVES = {
    "one-name-twice": Attack({".npz": _twice()}, OF_ZIP, "found one twice", source=NPY),
    "entry-that-is-no-array": of_entries(OF_ZIP, {"w.npy": W, "evil.pkl": b"\x80\4N."}, "expected arrays"),
    "crc": Attack(_edited(CENTRAL, 16, b"\1\2\3\4"), CRC, "Bad CRC-32", works=(), source=ZIP),
    "flipped-bit": Attack(_edited(DATA, 3, b"\xff"), CRC, "Bad CRC-32", source=ZIP),
    "directory-beyond-the-file": Attack(_edited(END, 16, b"\xff\xff\xff\x7f"), DIRECTORY, "a damaged one", source=ZIP),
    "without-its-end": Attack({".npz": archive({"w.npy": W})[:-30]}, DIRECTORY, "a damaged one", source=ZIP),
    "entry-beyond-the-file": Attack(_edited(CENTRAL, 42, b"\xff\xff\0\0"), DIRECTORY, "", source=ZIP),
    "size-of-4-gib": Attack(_edited(CENTRAL, 24, b"\xfe\xff\xff\xff"), SIZE, error="", works=("all",), source=ZIP),
    "unknown-compression": Attack(_edited(CENTRAL, 10, b"\x63\0"), "compression method", "", source=ZIP),
    "encrypted": Attack(
        _edited(CENTRAL, 8, b"\1\0"), "Bit 0: If set, indicates that the file is encrypted.", "", source=ZIP
    ),
    "later-version": Attack(_edited(CENTRAL, 6, b"\xff\0"), "version needed to extract", "", source=ZIP),
    "other-name-in-its-entry": Attack(_edited(LOCAL, 30, b"q"), "file name", "", source=ZIP),
    "array-of-8-tib-in-its-directory": Attack(_huge_entry(), SIZE, "expected an array", source=ZIP),
    "names-like-paths": of_entries(
        OF_ZIP, {"w.npy": W, "../../etc/passwd.npy": W, "/.npy": W, "\x1b[31m.npy": W, ".npy": W}, "", "", ("all",)
    ),
}


@functools.cache
def ours():
    """Return the entries of the sample checkpoint, and its description as JSON data."""
    content = saved(".npz")[".npz"]
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        entries = [(info.filename, opened.read(info)) for info in opened.infolist()]
        begin, nbytes = int(opened.comment[24:43]), int(opened.comment[44:63])
    return entries, json.loads(content[begin : begin + nbytes])


def described(edit, text=None):
    """Return the sample checkpoint with another description, whose checksums are right."""
    entries, found = ours()
    found = json.loads(json.dumps(found))
    edit(found)
    return {".npz": described_archive(entries, sealed_index(found) if text is None else text)}


KEYS_OF_DESCRIPTION = (
    "A description with the same keys, except for `files`, lies after the last entry and before the directory of the "
    "archive."
)
COMMENT = (
    "The comment of the archive is `pytreesaver description=B+N xxh3=X`: the offset and the size of the description in "
    "19 decimal digits each, and the xxh3 of the file without these last 16 hexadecimal digits."
)
KEY = "The key of a variable is the name of its entry."


def _put(key, value):
    return lambda found: found.__setitem__(key, value)


def _comment(old, new):
    return {".npz": saved(".npz")[".npz"].replace(old, new)}


OURS = {
    "good": allowed(saved(".npz"), KEYS_OF_DESCRIPTION),
    "good-resealed": allowed(described(lambda found: None), KEYS_OF_DESCRIPTION),
    "checksum-of-the-description": Attack(
        described(lambda found: None, sealed_index(ours()[1]).replace(b'"w"', b'"v"', 1)),
        KEYS_OF_DESCRIPTION,
        "checksum",
    ),
    "description-of-no-bytes": Attack(described(lambda found: None, b""), KEYS_OF_DESCRIPTION, "checksum"),
    "description-of-a-later-version": Attack(
        described(_put("version", 2)), KEYS_OF_DESCRIPTION, "version 2", "UnsupportedVersionError"
    ),
    "fewer-names": Attack(described(_put("names", ["b"])), KEYS_OF_DESCRIPTION, "as many as names"),
    "one-name-twice": Attack(described(_put("names", ["b", "b", "step", "w"])), KEYS_OF_DESCRIPTION, "different names"),
    "type-that-does-not-exist": Attack(
        described(_put("type_of", [9, 9, 9, 9])), KEYS_OF_DESCRIPTION, "positions among"
    ),
    "unknown-dtype": Attack(
        described(_put("types", [{"kind": "numpy", "dtype": "object"}] * 3)), KEYS_OF_DESCRIPTION, "object"
    ),
    "length-below-zero": Attack(described(_put("shapes", [[4], [3], [], [-2, -3]])), KEYS_OF_DESCRIPTION, ""),
    "shape-of-124-bits": Attack(described(_put("shapes", [[4], [3], [], [1 << 62, 1 << 62]])), KEYS_OF_DESCRIPTION, ""),
    "another-shape": Attack(
        described(_put("shapes", [[4], [3], [], [3, 2]])), KEYS_OF_DESCRIPTION, "", works=(*LISTED, "diff")
    ),
    "structure-of-other-leaves": Attack(
        described(_put("structure", {"w": 9})), KEYS_OF_DESCRIPTION, "structure", works=WITH_TEMPLATE
    ),
    "metadata-that-is-a-list": Attack(described(_put("metadata", [1])), KEYS_OF_DESCRIPTION, ""),
    "record-that-is-a-list": Attack(described(_put("record", [1])), KEYS_OF_DESCRIPTION, ""),
    "models-that-are-a-list": Attack(described(_put("models", [1])), KEYS_OF_DESCRIPTION, "an object of models"),
    "same-as-a-later-variable": Attack(described(_put("same_as", {"0": 3})), KEYS_OF_DESCRIPTION, "same_as"),
    "same-as-another-shape": Attack(described(_put("same_as", {"3": 0})), KEYS_OF_DESCRIPTION, ""),
    "key-of-no-entry": Attack(described(_put("keys", ["b.npy", "name.npy", "step.npy", "x.npy"])), KEY, ""),
    "place-beyond-the-file": Attack(
        _comment(b"description=0000", b"description=9000"), COMMENT, "expected the place of the description"
    ),
    "place-in-letters": Attack(
        _comment(b"description=0000", b"description=000x"), COMMENT, "expected the place of the description"
    ),
    "bytes-after-its-end": Attack({".npz": saved(".npz")[".npz"] + b"\n"}, COMMENT, "", works=()),
    "checksum-of-the-file": Attack(
        {".npz": saved(".npz")[".npz"][:-1] + b"g"}, COMMENT, "expected the place of the description"
    ),
}

EQUINOX = "https://docs.kidger.site/equinox/api/serialisation/"
LEAVES = "the leaves of a PyTree, one after the other, each as numpy.save writes it"
LINE = "hyperparameters are saved as JSON in the first line"


def eqx(rule, content, message, works=(), error="CorruptCheckpointError"):
    """Return a file of Equinox."""
    return Attack({".eqx": content}, rule, message, error, works, EQUINOX)


B = array_file(shape="(4,)", content=TREE["b"].tobytes())
READ = ("all",)
FILES_OF_EQUINOX = {
    "header-without-its-end": eqx(LEAVES, array_header(b"((("), "expected an array of NumPy"),
    "array-without-its-end": eqx(LEAVES, W + B[:-1], "expected 16 bytes, found 15"),
    "header-of-a-call": eqx(LEAVES, W + array_header(b"exit()\n"), "expected an array of NumPy"),
    "bytes-after-its-end": eqx(LEAVES, W + B + b"\0", "expected an array of NumPy"),
    "python-objects": eqx(LEAVES, W + array_file("'|O'", "(1,)", b"\x80\4N."), "which is a pickle"),
    "array-of-8-tib": eqx(LEAVES, array_file("'<f8'", f"({1 << 40},)", bytes(100)), "bytes, found 100"),
    "shape-of-120-bits": eqx(LEAVES, array_file(shape=f"({1 << 60}, {1 << 60})"), "expected an array of NumPy"),
    "length-below-zero": eqx(LEAVES, array_file(shape="(-2, 3)") + W, "expected an array of NumPy"),
    "shape-of-bools": eqx(LEAVES, array_file(shape="(True, 6)", content=DATA), "expected an array of NumPy"),
    "dtype-with-fields": eqx(LEAVES, array_file("[('a', '<f4')]", content=DATA), "expected an array of NumPy"),
    "endless-empty-arrays": eqx(LEAVES, array_file(shape="(0, 1)") * 20 + b"x", "expected an array of NumPy"),
    "line-that-is-no-utf-8": eqx(LINE, b'{"a":"\xe9"}\n' + W, "expected JSON in the first line"),
    "line-of-brackets": eqx(LINE, b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}\n" + W, "expected JSON in the first line"),
    "line-of-150-levels": eqx(LINE, b'{"a":' + b"[" * 150 + b"]" * 150 + b"}\n" + W, "expected JSON in the first line"),
    "line-with-a-number-of-5000-digits": eqx(
        LINE, b'{"a":' + b"1" * 5000 + b"}\n" + W, "expected JSON in the first line"
    ),
    "line-without-its-end": eqx(LINE, b'{"a":1' + b"\n" + W, "expected JSON in the first line"),
    "line-with-a-surrogate": eqx(LINE, b'{"a":"\\ud800","\\ud801":1}\n' + W + B, "", READ, ""),
    "line-with-infinity": eqx(LINE, b'{"a":Infinity,"b":NaN}\n' + W + B, "", READ, ""),
    "good": eqx(LEAVES, W + B, "", READ, ""),
    "length": eqx(LEAVES, W + array_file("'>f4'", "(4,)", struct.pack(">4f", 1, 1, 1, 1), "True"), "", READ, ""),
}

ATTACKS = ARRAYS | ARCHIVES | {f"ours-{name}": attack for name, attack in OURS.items()}
