"""Trees in msgpack, of Flax and of pytreesaver."""

import functools

import msgspec
from attacks.attack import saved
from attacks.makers.msgpack import MAGIC, W, ext
from fuzz.execution import Target, used
from fuzz.mutations import changed_bytes
from fuzz.targets.native import resealed
from fuzz.targets.workspace import place

Ext = msgspec.msgpack.Ext
LEAVES = (
    *(None, True, 0, -1, 2**63, 2**64 - 1, -(2**63), 1.5, float("nan"), "", "x", b"", b"\xff", [], {}, [[]], {"": {}}),
    *("//GDAPlaceholder:a", "\0", {"__msgpack_chunked_array__": True}, {1: 2}, {None: 1}, {True: 1, 2: 2}, {2.5: 1}),
)
DTYPES = (
    *("float32", "bfloat16", "object", "str64", "bytes8", "f4,f4", "V4", "int4", "datetime64[ns]", "", "bool", "S0"),
    *("complex64", "str99999999", "a4", ">f4", 5),
)
SHAPES = ([], [1], [6], [-1], [0], [1 << 62, 4], [True], [2.5], None, [1] * 65, [0, 1 << 62], [2, 3])
CONTENTS = (b"", b"abcd", b"abcd" * 6, b"abcd" * 2)
KEYS = ("w", "b/c", "$tuple", "..", "1", 1, None, True)


def _changed(tree, random, depth=0):
    """Return a tree with another leaf, array or key."""
    if isinstance(tree, dict) and tree and depth < 20 and random.random() < 0.8:
        key, result = random.choice(list(tree)), dict(tree)
        if random.random() < 0.2:
            result[random.choice(KEYS)] = result.pop(key)
        else:
            result[key] = _changed(result[key], random, depth + 1)
        return result
    if isinstance(tree, list) and tree and random.random() < 0.7:
        i = random.randrange(len(tree))
        return [*tree[:i], _changed(tree[i], random, depth + 1), *tree[i + 1 :]]
    kind = random.randrange(4)
    if kind == 0 and isinstance(tree, Ext):
        return Ext(tree.code, changed_bytes(tree.data, random))
    if kind <= 1:
        parts = random.choice(SHAPES), random.choice(DTYPES), random.choice(CONTENTS)
        return Ext(random.choice((1, 1, 3, 2, 9)), msgspec.msgpack.encode(parts))
    return random.choice(LEAVES)


def mutate(content, random):
    """Return another tree; the index of pytreesaver in it has the right checksum."""
    start = content.find(MAGIC)
    kind = random.random()
    if start >= 0 and kind < 0.7:
        begin = start + len(MAGIC) + 8
        end = begin + int.from_bytes(content[begin - 8 : begin], "little")
        text = resealed(content[begin:end], random)
        size = (len(MAGIC) + 8 + len(text)).to_bytes(4, "big")
        return content[: start - 4] + size + MAGIC + len(text).to_bytes(8, "little") + text + content[end:]
    if kind < 0.4 or start >= 0:
        return changed_bytes(content, random)
    return msgspec.msgpack.encode(_changed(msgspec.msgpack.decode(content), random))


def run(content):
    """Use a tree in msgpack."""
    path = place("msgpack/x.msgpack")
    path.write_bytes(content)
    used(path, content, format="msgpack")


@functools.cache
def trees():
    """Return the target of trees in msgpack."""
    tree = {"w": 1, "b": {"c": [1, 2.5, None, True, "x"], "1": b"ab"}}
    arrays = b"\x84\xa1w" + W + b"\xa1s" + ext(3, msgspec.msgpack.encode(([], "float32", b"abcd")))
    arrays += b"\xa1z" + ext(2, msgspec.msgpack.encode((1.5, 2))) + b"\xa1p"
    pieces = {"__msgpack_chunked_array__": True, "shape": {"0": 6}, "chunks": {"0": Ext(1, W[6:])}}
    seeds = [msgspec.msgpack.encode(tree), arrays + msgspec.msgpack.encode(pieces), saved(".msgpack")[".msgpack"]]
    return Target(seeds, run, mutate, 120)
