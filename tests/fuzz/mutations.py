"""Mutations of bytes, and of the messages of Protocol Buffers, with a generator of random numbers."""

from pytreesaver.formats.tensorflow.messages import fields
from pytreesaver.formats.tensorflow.table import encode_varint

PIECES = (
    b"\0",
    b"\xff",
    b"\xff" * 8,
    b"\x7f",
    b"\x80",
    b"[",
    b"{",
    b'"',
    b"\\ud800",
    b"1e999",
    b"\n",
    bytes(64),
    b"\xc1",
)
NUMBERS = (0, 1, 2, 127, 128, 255, 2**16, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 5, 2**64 - 1, 2**70)


def changed_bytes(content, random):
    """Return bytes with a few changes anywhere."""
    result = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4, 8))):
        position = random.randrange(len(result) + 1)
        kind = random.randrange(7)
        if kind <= 1 and result:
            result[min(position, len(result) - 1)] ^= 1 << random.randrange(8)
        elif kind == 2:
            del result[position : position + random.choice((1, 1, 2, 8, 100))]
        elif kind == 3:
            result[position:position] = random.choice(PIECES)
        elif kind == 4:
            piece = random.choice(PIECES)
            result[position : position + len(piece)] = piece
        elif kind == 5 and result:
            start = random.randrange(len(result))
            result[position:position] = result[start : start + random.choice((1, 4, 16))]
        else:
            nbytes = random.choice((1, 2, 4, 8))
            number = random.choice(NUMBERS) % (1 << 8 * nbytes)
            result[position : position + nbytes] = number.to_bytes(nbytes, random.choice(("little", "big")))
    return bytes(result)


def encode_fields(message):
    """Return a message of (number, value) pairs, whose values are ints or bytes."""
    result = b""
    for number, value in message:
        if isinstance(value, bytes):
            result += encode_varint(number << 3 | 2) + encode_varint(len(value)) + value
        else:
            result += encode_varint(number << 3) + encode_varint(value)
    return result


def changed_message(message, random, depth=0):
    """Return a message with changed, missing, repeated or other fields, at any level."""
    try:
        found = list(fields(message))
    except ValueError:
        return changed_bytes(message, random)
    if not found or random.random() < 0.1:
        return changed_bytes(message, random)
    i = random.randrange(len(found))
    number, value = found[i]
    kind = random.randrange(8)
    if kind == 0:
        del found[i]
    elif kind == 1:
        found.append(found[i])
    elif kind == 2:
        found[i] = (random.choice((1, 2, 3, 4, 5, 6, 7, 15, 2**28)), value)
    elif kind == 3:
        found[i] = (number, random.choice(NUMBERS[:-1]))
    elif kind == 4:
        found[i] = (number, random.choice((b"", b"\xff\xff", bytes(100), b"\x08\x01")))
    elif isinstance(value, bytes) and depth < 4:
        found[i] = (number, changed_message(value, random, depth + 1))
    elif isinstance(value, int):
        found[i] = (number, max(value + random.choice((-1, 1, 2, 4096)), 0))
    else:
        random.shuffle(found)
    return encode_fields(found)
