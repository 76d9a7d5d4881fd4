"""Sorted tables of keys and values: LevelDB's, in which TensorFlow keeps the index of a checkpoint. Pure functions.

https://github.com/google/leveldb/blob/main/doc/table_format.md specifies them. Blocks of TensorFlow end with a masked
CRC-32C, as LevelDB's do.
"""

from collections.abc import Iterator, Sequence

from pytreesaver._io.checksums.crc32c import crc32c, masked

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER_NBYTES = 48
_TRAILER_NBYTES = 5  # the type of a block, and its checksum
_HANDLES_NBYTES = FOOTER_NBYTES - len(MAGIC)
_NOT_COMPRESSED, _SNAPPY = 0, 1
_MOST_SNAPPY = 24
"""Snappy makes 64 bytes of 3 at most."""
_MOST_OF_KEYS = 64
"""How many times larger than the table the keys together may be. TensorFlow writes every sixteenth one whole."""
_BLOCK_NBYTES = 262_144
_KEYS_PER_RESTART = 16


class DamagedTableError(ValueError):
    """A table is damaged; the message says how."""


def varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the integer at a position, of 7 bits a byte, and the position after it.

    Raises:
        DamagedTableError: if it does not end, or has more than 64 bits.

    Example:
        >>> varint(b"\\xac\\x02", 0)
        (300, 2)
    """
    result = shift = 0
    while shift < 70:
        if position >= len(data):
            raise DamagedTableError("a number that does not end")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            if result >> 64:
                break
            return result, position
        shift += 7
    raise DamagedTableError("a number of more than 64 bits")


def encode_varint(number: int) -> bytes:
    """Return the bytes of a non-negative integer, as `varint` reads them."""
    result = bytearray()
    while number >= 0x80:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    result.append(number)
    return bytes(result)


def read_table(data: bytes, wanted: bytes = b"") -> tuple[list[tuple[bytes, bytes]], bytes | None]:
    """Return the keys and values of a table, in their order, and the block that its metaindex calls `wanted`, or None.

    Raises:
        DamagedTableError: if it is damaged.

    Example:
        >>> read_table(write_table([(b"a", b"1"), (b"ab", b"2")], {b"note": b"x"}), b"note")
        ([(b'a', b'1'), (b'ab', b'2')], b'x')
    """
    if len(data) < FOOTER_NBYTES:
        raise DamagedTableError(f"a table of {len(data)} bytes, fewer than its end has")
    footer = data[-FOOTER_NBYTES:]
    if footer[_HANDLES_NBYTES:] != MAGIC:
        raise DamagedTableError("another end than that of a table")
    meta, position = _handle(footer, 0)
    index, position = _handle(footer, position)
    if position > _HANDLES_NBYTES or any(footer[position:_HANDLES_NBYTES]):
        raise DamagedTableError("a damaged end")
    left = _MOST_OF_KEYS * len(data) + (1 << 20)
    entries: list[tuple[bytes, bytes]] = []
    free = 0
    for _, value in _entries(_block(data, index), left):
        handle = _handle_of(value)
        if handle[0] < free:
            raise DamagedTableError("blocks that overlap, or are not in their order")
        free = sum(handle) + _TRAILER_NBYTES
        for entry in _entries(_block(data, handle), left):
            if entries and entries[-1][0] >= entry[0]:
                raise DamagedTableError("keys that are not in ascending order")
            entries.append(entry)
            left -= len(entry[0])
    found = next((value for key, value in _entries(_block(data, meta), left) if key == wanted), None)
    return entries, None if found is None else _block(data, _handle_of(found))


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    offset, position = varint(data, position)
    nbytes, position = varint(data, position)
    return (offset, nbytes), position


def _handle_of(value: bytes) -> tuple[int, int]:
    handle, position = _handle(value, 0)
    if position != len(value):
        raise DamagedTableError("more than the place of a block")
    return handle


def _block(data: bytes, handle: tuple[int, int]) -> bytes:
    """Return the contents of a block."""
    offset, nbytes = handle
    end = offset + nbytes
    if end + _TRAILER_NBYTES > len(data) - FOOTER_NBYTES:
        raise DamagedTableError(f"a block of {nbytes} bytes at {offset}, beyond the end of the table")
    if masked(crc32c(data[offset : end + 1])) != int.from_bytes(data[end + 1 : end + _TRAILER_NBYTES], "little"):
        raise DamagedTableError(f"a block at {offset} whose checksum does not match")
    content, kind = data[offset:end], data[end]
    if kind == _NOT_COMPRESSED:
        return content
    if kind != _SNAPPY:
        raise DamagedTableError(f"a block of the unknown kind {kind}")
    return _decompressed(content)


def _decompressed(content: bytes) -> bytes:
    nbytes, _ = varint(content, 0)
    if nbytes > _MOST_SNAPPY * len(content):
        raise DamagedTableError(f"a block of {len(content)} bytes that claims to decompress to {nbytes}")
    from cramjam import DecompressionError, snappy

    try:
        result = bytes(snappy.decompress_raw(content))
    except DecompressionError as error:
        raise DamagedTableError(f"a block that cannot be decompressed ({error})") from None
    if len(result) != nbytes:
        raise DamagedTableError(f"a block of {nbytes} bytes that decompresses to {len(result)}")
    return result


def _entries(block: bytes, limit: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block. The keys together may have `limit` bytes."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    if len(block) < 4 or end < 0:
        raise DamagedTableError(f"a block of {len(block)} bytes with {restarts} restarts")
    key, position = b"", 0
    while position < end:
        # Most numbers have one byte.
        shared, private, length = block[position : position + 3].ljust(3, b"\x80")
        if shared < 0x80 and private < 0x80 and length < 0x80:
            position += 3
        else:
            shared, position = varint(block, position)
            private, position = varint(block, position)
            length, position = varint(block, position)
        value = position + private
        if shared > len(key) or value + length > end:
            raise DamagedTableError("an entry beyond the end of its block")
        key = key[:shared] + block[position:value]
        position = value + length
        limit -= len(key)
        if limit < 0:
            raise DamagedTableError("keys that are much longer than the table")
        yield key, block[value:position]


def write_table(entries: Sequence[tuple[bytes, bytes]], others: dict[bytes, bytes] | None = None) -> bytes:
    """Return a table, as TensorFlow writes it.

    Args:
        entries: keys in ascending order, and values.
        others: more blocks, by the names that the metaindex gives them. TensorFlow does not look at them.
    """
    table = bytearray()
    index: list[tuple[bytes, bytes]] = []
    builder = _BlockBuilder(_KEYS_PER_RESTART)
    last: bytes | None = None
    for key, value in entries:
        if len(key) + len(value) >= 2 * _BLOCK_NBYTES and builder.count:
            last = _flush(table, index, builder)
            builder = _BlockBuilder(_KEYS_PER_RESTART)
        if last is not None:
            index[-1] = (_separator(last, key), index[-1][1])
            last = None
        builder.add(key, value)
        if builder.nbytes >= _BLOCK_NBYTES:
            last = _flush(table, index, builder)
            builder = _BlockBuilder(_KEYS_PER_RESTART)
    if builder.count:
        last = _flush(table, index, builder)
    if last is not None:
        index[-1] = (_successor(last), index[-1][1])
    meta = _BlockBuilder(1)
    for name, content in sorted((others or {}).items()):
        meta.add(name, _write_block(table, content))
    meta_handle = _write_block(table, meta.finish())
    index_builder = _BlockBuilder(1)
    for key, handle in index:
        index_builder.add(key, handle)
    index_handle = _write_block(table, index_builder.finish())
    return bytes(table) + (meta_handle + index_handle).ljust(_HANDLES_NBYTES, b"\0") + MAGIC


def _flush(table: bytearray, index: list[tuple[bytes, bytes]], builder: "_BlockBuilder") -> bytes:
    """Append a block, and its place to the index. Return its last key."""
    last = builder.last
    index.append((last, _write_block(table, builder.finish())))
    return last


def _write_block(table: bytearray, content: bytes) -> bytes:
    """Append a block to a table. Return its place."""
    offset = len(table)
    stored = content + bytes([_NOT_COMPRESSED])
    table += stored + masked(crc32c(stored)).to_bytes(4, "little")
    return encode_varint(offset) + encode_varint(len(content))


class _BlockBuilder:
    def __init__(self, keys_per_restart: int) -> None:
        self._keys_per_restart = keys_per_restart
        self._content = bytearray()
        self._restarts = [0]
        self.count = 0
        self.last = b""

    @property
    def nbytes(self) -> int:
        """The size of the block so far."""
        return len(self._content) + 4 * len(self._restarts) + 4

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self.count % self._keys_per_restart:
            most = min(len(key), len(self.last))
            while shared < most and key[shared] == self.last[shared]:
                shared += 1
        elif self.count:
            self._restarts.append(len(self._content))
        self._content += encode_varint(shared) + encode_varint(len(key) - shared) + encode_varint(len(value))
        self._content += key[shared:] + value
        self.count += 1
        self.last = key

    def finish(self) -> bytes:
        restarts = b"".join(offset.to_bytes(4, "little") for offset in (*self._restarts, len(self._restarts)))
        return bytes(self._content) + restarts


def _separator(before: bytes, after: bytes) -> bytes:
    """Return a short key that is not before `before`, and before `after`."""
    same = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), None)
    if same is None or before[same] == 0xFF or before[same] + 1 >= after[same]:
        return before
    return before[:same] + bytes([before[same] + 1])


def _successor(key: bytes) -> bytes:
    """Return a short key that is not before `key`."""
    position = next((i for i, byte in enumerate(key) if byte != 0xFF), None)
    return key if position is None else key[:position] + bytes([key[position] + 1])
