"""Exact conversion of plain Python values to JSON and back, for user metadata and static fields of tree nodes.

Values that JSON supports are unchanged. Other values are objects with a single key that starts with ``$``:
``{"$tuple": [1, 2]}``, ``{"$float": "nan"}``. docs/format.md lists them all.
"""

import base64
import dataclasses
import enum
import math
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from pytreesaver._tree.kinds import NotPlainError, dtype_from_name, dtype_name

FindClass = Callable[[str], type | None]


def class_reference(cls: type) -> str:
    """Return the reference to a class, ``module:qualified.name``."""
    return f"{cls.__module__}:{cls.__qualname__}"


MAX_DEPTH = 100
"""Maximum nesting of plain values: enough for data, and safe for the stack of any reader."""


def encode_value(value: Any, *, classes: bool = True) -> Any:
    """Convert a plain value to JSON data. With `classes`, also convert enums, dataclasses, namedtuples, dtypes etc.

    Raises:
        NotPlainError: for any other object (a function, an array) and for values nested deeper than `MAX_DEPTH`. The
            message contains its position in `value`.

    Example:
        >>> encode_value({"shape": (2, 3), "loss": float("inf")})
        {'shape': {'$tuple': [2, 3]}, 'loss': {'$float': 'inf'}}
    """
    return _encode(value, "", classes, 0)


def _encode(value: Any, where: str, classes: bool, level: int) -> Any:
    if level > MAX_DEPTH:
        raise NotPlainError(f"{where[:60]}...: expected at most {MAX_DEPTH} levels, found more")
    level += 1
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**63 else {"$int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"$float": _nonfinite_text(value)}
    if kind is str:
        return value if is_utf8(value) else {"$str": _base64(value.encode("utf-8", "surrogatepass"))}
    if kind is complex:
        return {"$complex": [_encode(part, where, classes, level) for part in (value.real, value.imag)]}
    if kind is bytes:
        return {"$bytes": _base64(value)}
    if kind is list:
        return [_encode(item, f"{where}[{i}]", classes, level) for i, item in enumerate(value)]
    if kind is tuple:
        return {"$tuple": [_encode(item, f"{where}[{i}]", classes, level) for i, item in enumerate(value)]}
    if kind is set or kind is frozenset:
        # Without classes, since adding their instances to a set on decoding would run their __hash__ and __eq__.
        items = [_encode(item, f"{where}{{}}", False, level) for item in sorted(value, key=repr)]
        return {f"${kind.__name__}": items}
    if kind is dict:
        if all(type(key) is str and is_utf8(key) and not key.startswith("$") for key in value):
            return {key: _encode(item, f"{where}[{key!r}]", classes, level) for key, item in value.items()}
        return {
            "$dict": [
                [_encode(key, where, False, level), _encode(item, f"{where}[{key!r}]", classes, level)]
                for key, item in value.items()
            ]
        }
    if classes:
        return _encode_of_class(value, where, level)
    raise NotPlainError(
        f"{where or 'value'}: expected None, bool, int, float, complex, str, bytes, list, tuple, set or dict, "
        f"found {kind.__name__}"
    )


def _encode_of_class(value: Any, where: str, level: int) -> Any:
    import jax  # deferred, so that checkpoints can be inspected without JAX

    kind = type(value)
    if value is ...:
        return {"$ellipsis": True}
    if isinstance(value, np.dtype):
        return {"$dtype": dtype_name(value)}
    if isinstance(value, type) and issubclass(value, np.generic):
        return {"$numpy_type": dtype_name(np.dtype(value))}
    if isinstance(value, type(jax.numpy.float32)):
        return {"$jax_type": value.dtype.name}
    if isinstance(value, jax.sharding.PartitionSpec):
        return {"$partition_spec": [_encode(item, where, True, level) for item in value]}
    if isinstance(value, slice):
        return {"$slice": [_encode(item, where, True, level) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, enum.Enum):
        return {"$enum": [class_reference(kind), value.name]}
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        items = {
            name: _encode(item, f"{where}.{name}", True, level) for name, item in zip(kind._fields, value, strict=True)
        }
        return {"$namedtuple": [class_reference(kind), items]}
    if dataclasses.is_dataclass(kind):
        items = {
            field.name: _encode(getattr(value, field.name), f"{where}.{field.name}", True, level)
            for field in dataclasses.fields(kind)
        }
        return {"$dataclass": [class_reference(kind), items]}
    raise NotPlainError(f"{where or 'value'}: a {kind.__module__}.{kind.__qualname__} cannot be stored as plain data")


def decode_value(encoded: Any, find_class: FindClass | None = None) -> Any:
    """Convert the JSON data of `encode_value` back to a value. `find_class` maps a class reference to a class or None.

    Decoding imports no user code and does not run the constructors of classes: instances are filled field by field.

    Raises:
        NotPlainError: if the data is malformed or has more than `MAX_DEPTH` levels, or a class is not found or has
            changed.

    Example:
        >>> decode_value({"$tuple": [1, {"$float": "-inf"}]})
        (1, -inf)
    """
    return _decode(encoded, find_class, 0)


def _decode(encoded: Any, find_class: FindClass | None, level: int) -> Any:
    if level > MAX_DEPTH:
        raise NotPlainError(f"expected at most {MAX_DEPTH} levels, found more")
    level += 1
    if isinstance(encoded, list):
        return [_decode(item, find_class, level) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    if len(encoded) == 1:
        ((tag, body),) = encoded.items()
        if isinstance(tag, str) and tag.startswith("$"):
            try:
                return _decode_tagged(tag, body, find_class or (lambda reference: None), level)
            except NotPlainError:
                raise
            except (TypeError, ValueError, KeyError, AttributeError, OverflowError, struct.error) as error:
                raise NotPlainError(f"malformed {tag} value: {error}") from error
    return {key: _decode(item, find_class, level) for key, item in encoded.items()}


def decode_as(encoded: Any, type: Any) -> Any:
    """Decode a value that is stored without classes, and check its types, as `msgspec.convert` does.

    Raises:
        NotPlainError: if it is malformed, or of other types.
    """
    try:
        return msgspec.convert(decode_value(encoded), type)
    except (msgspec.ValidationError, AttributeError) as error:  # the latter for objects that msgspec does not know
        raise NotPlainError(str(error)) from None


def _decode_tagged(tag: str, body: Any, find_class: FindClass, level: int) -> Any:
    def items() -> list[Any]:
        return [_decode(item, find_class, level) for item in body]

    def hashable_items() -> list[Any]:
        return [_decode(item, None, level) for item in body]

    match tag:
        case "$opaque":
            raise NotPlainError(str(body))
        case "$int":
            return int(body, 16)
        case "$float":
            return _nonfinite_value(body)
        case "$str":
            return base64.b64decode(body, validate=True).decode("utf-8", "surrogatepass")
        case "$bytes":
            return base64.b64decode(body, validate=True)
        case "$complex":
            real, imag = items()
            return complex(real, imag)
        case "$tuple":
            return tuple(items())
        case "$set":
            return set(hashable_items())
        case "$frozenset":
            return frozenset(hashable_items())
        case "$dict":
            return {_decode(key, None, level): _decode(item, find_class, level) for key, item in body}
        case "$ellipsis":
            return ...
        case "$dtype":
            return dtype_from_name(body)
        case "$numpy_type":
            return dtype_from_name(body).type
        case "$jax_type":
            return _jax_scalar_type(body)
        case "$partition_spec":
            from jax.sharding import PartitionSpec

            return PartitionSpec(*items())  # type: ignore[no-untyped-call]
        case "$slice":
            return slice(*items())
        case "$enum" | "$namedtuple" | "$dataclass":
            reference, fields = body
            cls = find_class(reference)
            if cls is None:
                raise NotPlainError(f"class {reference} is not imported in this process")
            return _decode_instance(tag, cls, fields, find_class, level)
    raise NotPlainError(f"unknown tag {tag}")


def _jax_scalar_type(name: str) -> Any:
    import jax.numpy as jnp

    return {each.dtype.name: each for each in vars(jnp).values() if type(each) is type(jnp.float32)}[name]


def _decode_instance(tag: str, cls: type, fields: Any, find_class: FindClass, level: int) -> Any:
    changed = NotPlainError(f"class {class_reference(cls)} has changed since the checkpoint was saved")
    if tag == "$enum":
        if not issubclass(cls, enum.Enum) or fields not in cls.__members__:
            raise changed
        return cls.__members__[fields]
    values = {name: _decode(item, find_class, level) for name, item in fields.items()}
    if tag == "$namedtuple":
        if not issubclass(cls, tuple) or getattr(cls, "_fields", None) != tuple(values):
            raise changed
        return tuple.__new__(cls, values.values())
    if not dataclasses.is_dataclass(cls) or {field.name for field in dataclasses.fields(cls)} != set(values):
        raise changed
    instance = object.__new__(cls)
    for name, item in values.items():
        object.__setattr__(instance, name, item)
    return instance


def _nonfinite_text(value: float) -> str:
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    bits = struct.pack(">d", value).hex()
    return "nan" if bits == "7ff8000000000000" else bits


def _nonfinite_value(text: str) -> float:
    if text in ("inf", "-inf", "nan"):
        return float(text)
    return float(struct.unpack(">d", bytes.fromhex(text))[0])


def is_utf8(text: str) -> bool:
    """Return whether a string can be encoded: whether it has no surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
