"""The dtypes of TensorFlow: their numbers in files, and what pytreesaver calls them. After types.proto."""

STRING = 7
VARIANT_NAMES = {20: "resource", 21: "variant"}
"""Dtypes of values that only TensorFlow can use."""

_NAMES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    8: "complex64",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    22: "uint32",
    23: "uint64",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
    26: "float8_e4m3fnuz",
    27: "float8_e4m3b11fnuz",
    28: "float8_e5m2fnuz",
    29: "int4",
    30: "uint4",
    31: "int2",
    32: "uint2",
}
_NUMBERS = {name: number for number, name in _NAMES.items()}
# Quantized integers are integers. What they mean is not in the file.
_QUANTIZED = {11: "int8", 12: "uint8", 13: "int32", 15: "int16", 16: "uint16"}


def name_of_dtype(number: int) -> str | None:
    """Return the name of a dtype of numbers, or None for another dtype.

    Example:
        >>> name_of_dtype(14), name_of_dtype(21)
        ('bfloat16', None)
    """
    return _NAMES.get(number) or _QUANTIZED.get(number)


def number_of_dtype(name: str) -> int | None:
    """Return the number of a dtype, or None if TensorFlow has no such dtype."""
    return _NUMBERS.get(name)
