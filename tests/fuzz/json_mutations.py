"""Mutations of JSON that keep it JSON: other types, huge numbers, missing and repeated keys, deep nesting."""

import json


class Object(list):
    """An object: pairs, so that a key may be in it twice."""


class Raw(bytes):
    """A piece of text that stands for a value."""


def parse(text):
    """Return JSON data whose objects are `Object`. Raise a ValueError or a RecursionError if it is none."""
    return json.loads(text, object_pairs_hook=Object)


def encode(value):
    """Return the text of JSON data, of which some may be `Raw`."""
    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, Object):
        return b"{" + b",".join(json.dumps(str(key)).encode() + b":" + encode(each) for key, each in value) + b"}"
    if isinstance(value, dict):
        return encode(Object(value.items()))
    if isinstance(value, list):
        return b"[" + b",".join(map(encode, value)) + b"]"
    return json.dumps(value).encode()


NUMBERS = (
    *(-1, 0, 1, 2, 3, 7, 63, 64, 65, 100, 255, 4096, 2**16, 2**31, 2**32, 2**40, 2**53, 2**60, 2**62),
    *(2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70, 10**30, -2, -(2**31), -(2**63), -(2**63) - 1, -(2**70)),
)
FLOATS = (
    0.5,
    -0.0,
    1.0,
    2.5,
    1e16,
    1e308,
    -1e308,
    5e-324,
    Raw(b"1e999"),
    Raw(b"NaN"),
    Raw(b"-Infinity"),
    Raw(b"1E400"),
)
TEXTS = (
    *("", "a", "\0", "\ud800", "\udfff\ud800", "../x", "/etc/passwd", "a/b", ".", "..", "\n", "\x1b[31m", "ä"),
    *("\U0001f600",),
    *("$float", "$tuple", "inf", "nan", "0x10", "-0x8000000000000001", "03", "1" * 30, "true", "null", "a" * 300),
    *("~", "%s"),
    *("float32", "bfloat16", "object", "U4", ">f4", "S0", "datetime64[ns]", "int4", "float0", "key", "jax"),
    *("numpy", "str"),
)
TAGGED = (
    *("$tuple", "$set", "$frozenset", "$dict", "$int", "$float", "$complex", "$bytes", "$str", "$dtype", "$numpy_type"),
    *("$jax_type", "$partition_spec", "$slice", "$ellipsis", "$enum", "$namedtuple", "$dataclass", "$opaque"),
    *("$node", "$ordereddict", "$defaultdict"),
)


def interesting(random, others=()):
    """Return a value that is unlike what was there."""
    kind = random.randrange(10)
    if kind <= 2:
        return random.choice(NUMBERS)
    if kind == 3:
        return random.choice(FLOATS)
    if kind == 4:
        return random.choice(TEXTS)
    if kind == 5:
        return random.choice((None, True, False, [], Object(), [[]], Object([("", None)])))
    if kind == 6:
        return Object([(random.choice(TAGGED), interesting(random, others) if random.random() < 0.7 else [1, 2])])
    if kind == 7:
        return nested(random)
    if kind == 8 and others:
        return random.choice(others)
    return [interesting(random) for _ in range(random.randrange(4))]


def nested(random):
    """Return deeply nested containers."""
    levels = random.choice((5, 50, 99, 100, 101, 150, 400, 1200))
    opening, closing = random.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'{"$tuple":[', b"]}")))
    if random.random() < 0.1:
        return Raw(opening * levels)
    return Raw(opening * levels + random.choice((b"0", b"{}", b"[]")) + closing * levels)


def mutated(value, random):
    """Return JSON data with a few changes."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        value = _changed(value, random)
    return value


def _places(value, found, limit=2000):
    """Append each container, and the place of each child in it."""
    if len(found) > limit or not isinstance(value, list):
        return
    for i, child in enumerate(value):
        found.append((value, i))
        _places(child[1] if isinstance(value, Object) else child, found, limit)


def _copied(value):
    if isinstance(value, Object):
        return Object((key, _copied(child)) for key, child in value)
    return [_copied(child) for child in value] if type(value) is list else value


def _changed(value, random):
    value = _copied(value)
    places = []
    _places(value, places)
    if not places or random.random() < 0.02:
        return interesting(random)
    container, i = random.choice(places)
    is_object = isinstance(container, Object)
    key, child = container[i] if is_object else (None, container[i])
    others = [
        where[at][1] if isinstance(where, Object) else where[at]
        for where, at in random.sample(places, min(3, len(places)))
    ]

    def put(new):
        container[i] = (key, new) if is_object else new

    kind = random.randrange(12)
    if kind <= 3:
        put(interesting(random, others))
    elif kind == 4:
        del container[i]
    elif kind == 5:
        container.insert(random.randrange(len(container) + 1), container[i])
    elif kind == 6 and is_object:
        container[i] = (random.choice((*TEXTS, *TAGGED, *(each for each, _ in container))), child)
    elif kind == 7 and is_object:
        container.append((random.choice(TEXTS), interesting(random, others)))
    elif kind == 8 and type(child) is int:
        put(child + random.choice((-1, 1, 2, 8, 4096, -4096)))
    elif kind == 9 and isinstance(child, str):
        put(_text(child, random))
    elif kind == 10 and type(child) is list:
        put(child * random.choice((2, 3, 50)) if random.random() < 0.5 else child[::-1])
    else:
        put(random.choice(others))
    return value


def _text(text, random):
    position = random.randrange(len(text) + 1)
    new = random.choice((*TEXTS[:20], text, text[:position]))
    return text[:position] + new + text[position + random.randrange(3) :]
