"""Reading and writing files in any pieces, with buffered and direct I/O."""

import errno
import mmap
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pytreesaver as pts
from pytreesaver._io import files, filesystem, parallel, reading, writing
from pytreesaver._io.checksums.xxh3 import BLOCK_NBYTES, BlockChecksums, block_checksums
from pytreesaver._io.files import DirectReader, EndOfFileError
from pytreesaver._io.reading import ReadRanges, read_ranges
from pytreesaver._io.writing import WriteRanges, write_ranges
from pytreesaver.formats import fetching
from pytreesaver.testing import assert_trees_equal

PAGE = filesystem.DIRECT_ALIGNMENT


def some_bytes(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8)


@pytest.fixture
def open_file(request):
    """A function that creates files with the given content and returns their descriptors."""

    def make(content=b"", name="file"):
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        request.addfinalizer(lambda: os.close(descriptor))
        os.write(descriptor, bytes(content))
        return descriptor

    return make


def rewritten_file(content, name="file"):
    """Rewrite a file and return its descriptor. Hypothesis does not run fixtures for each example."""
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.write(descriptor, bytes(content))
    return descriptor


@pytest.mark.parametrize("nbytes", [1, 5000, 2 << 20, (2 << 20) - 1, (5 << 20) + 17])
def test_new_memory_is_aligned_to_a_page_or_if_large_to_a_huge_page(nbytes):
    memory = filesystem.new_memory(nbytes)
    assert memory.shape == (nbytes,)
    assert memory.ctypes.data % (2 << 20 if nbytes >= 2 << 20 else PAGE) == 0
    memory[:] = 7
    assert memory.sum(dtype=np.int64) == 7 * nbytes
    assert filesystem.new_memory(0).size == 0


def test_memory_is_aligned_if_no_more_mappings_are_available(monkeypatch):
    def refuse(*args, **options):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    memory = filesystem.new_memory(3 << 20)
    assert memory.shape == (3 << 20,)
    assert memory.ctypes.data % PAGE == 0
    for nbytes in (2**40, 2**63 - 1):  # out of memory, not out of mappings
        with pytest.raises(OSError, match="Cannot allocate"):
            filesystem.new_memory(nbytes)


def test_dropping_a_large_leaf_releases_its_memory(peak_memory):
    path = pts.save({"a": np.zeros(1 << 20), "b": np.zeros(1 << 20)}, "model")
    restored = pts.restore(path, as_numpy=True)
    before = filesystem.new_memory(1)  # the fixture measures when memory is allocated
    del restored["a"], before
    pts.restore(path, only="b", as_numpy=True)
    assert peak_memory() < (16 << 20) + (1 << 20)


@st.composite
def files_with_ranges(draw):
    """The content of a file, (start, size) of ranges to read, and the size of checksum blocks."""
    content = some_bytes(draw(st.integers(0, 40_000)), draw(st.integers(0, 9)))
    block = draw(st.sampled_from([1, 7, 64, 1000, 4096, 2**40]))
    places = []
    for _ in range(draw(st.integers(0, 8))):
        start = draw(st.integers(0, content.size))
        places.append((start, draw(st.integers(0, min(content.size - start, 9000)))))
    return content, places, block


def ranges_of(content, places, block):
    sums = [list(block_checksums(content[start : start + n], block)) for start, n in places]
    first = np.cumsum([0, *map(len, sums)]).tolist()[:-1]
    checks = BlockChecksums([each for s in sums for each in s], block)
    return ReadRanges([start for start, _ in places], [n for _, n in places], first, checks)


@given(files_with_ranges(), st.booleans(), st.booleans(), st.data())
@settings(max_examples=200)
def test_ranges_are_read_in_any_pieces_and_damage_is_detected(file, cached, checked, data):
    content, places, block = file
    wanted = ranges_of(content, places, block)
    if not checked:
        wanted = wanted._replace(checks=None)
    bad = data.draw(st.integers(0, len(content) - 1)) if len(content) and data.draw(st.booleans()) else None
    damaged = content.copy()
    if bad is not None:
        damaged[bad] ^= 1 << data.draw(st.integers(0, 7))
    descriptor = rewritten_file(damaged)
    with pytest.MonkeyPatch.context() as patch:
        if not cached:
            patch.setattr(filesystem, "is_cached", lambda descriptor, offset: False)
        patch.setattr(reading, "_LARGE_NBYTES", data.draw(st.sampled_from([1, 100, 5000, 1 << 20])))
        patch.setattr(reading, "SLICE_NBYTES", data.draw(st.sampled_from([1, 4096, 8192])))
        patch.setattr(reading, "_GAP_NBYTES", data.draw(st.sampled_from([0, 50])))
        arrays, found = read_ranges(descriptor, wanted)
    os.close(descriptor)
    for (start, n), array in zip(places, arrays, strict=True):
        assert array.tobytes() == damaged[start : start + n].tobytes()
    hit = [i for i, (start, n) in enumerate(places) if bad is not None and start <= bad < start + n]
    assert found == (hit if checked else [])


@pytest.mark.parametrize("is_large", [True, False])
def test_a_truncated_file_is_an_error(open_file, monkeypatch, is_large):
    descriptor = open_file(some_bytes(10_000))
    monkeypatch.setattr(reading, "_LARGE_NBYTES", 1 if is_large else 1 << 20)
    for cached in (True, False):
        monkeypatch.setattr(filesystem, "is_cached", lambda descriptor, offset, cached=cached: cached)
        for start, n in ((4096, 8192), (9_999, 2), (20_000, 4096)):
            with pytest.raises(EndOfFileError):
                read_ranges(descriptor, ReadRanges([start], [n], [0], None))


def test_uncached_bytes_are_read_directly(open_file, monkeypatch):
    content = some_bytes(3 * PAGE + 100)
    descriptor = open_file(content)
    direct = filesystem.open_direct(descriptor)
    if direct is None:
        pytest.skip("no direct reads on this file system")
    os.close(direct)
    monkeypatch.setattr(filesystem, "is_cached", lambda descriptor, offset: False)
    read, real = [], filesystem.read_into
    monkeypatch.setattr(filesystem, "read_into", lambda d, b, o: read.append((d, o, b.nbytes)) or real(d, b, o))
    memory = filesystem.new_memory(5 * PAGE)
    with DirectReader(descriptor) as reader:
        assert reader.read(memory[40 : 40 + content.size - 40], 40)
        assert not reader.read(memory[41 : 41 + PAGE], 40)  # not aligned like the file
        assert not reader.read(memory[40:50], 40)  # no complete page
    assert memory[40 : content.size].tobytes() == content[40:].tobytes()
    by_file = {d == descriptor: (o, n) for d, o, n in read}
    assert by_file[False] == (PAGE, 2 * PAGE)
    assert sorted((o, n) for d, o, n in read if d == descriptor) == [(40, PAGE - 40), (3 * PAGE, 100)]


@pytest.mark.parametrize("how", ["no such descriptor", "refuses to read"])
def test_reads_are_buffered_if_direct_io_is_not_supported(open_file, monkeypatch, how):
    content = some_bytes(5 * PAGE)
    descriptor = open_file(content)
    monkeypatch.setattr(filesystem, "is_cached", lambda descriptor, offset: False)
    monkeypatch.setattr(reading, "_LARGE_NBYTES", 1)
    real = filesystem.read_into

    def refuse(d, buffer, offset):
        if d != descriptor:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(d, buffer, offset)

    if how == "refuses to read":
        monkeypatch.setattr(filesystem, "read_into", refuse)
    else:
        monkeypatch.setattr(filesystem, "open_direct", lambda descriptor, *, to_write: None)
    (array,), bad = read_ranges(descriptor, ranges_of(content, [(0, content.size)], 4096))
    assert array.tobytes() == content.tobytes()
    assert not bad


def test_a_failed_direct_read_is_an_error_and_leaves_no_open_files(open_file, monkeypatch):
    descriptor = open_file(some_bytes(2 * PAGE))
    monkeypatch.setattr(filesystem, "is_cached", lambda descriptor, offset: False)
    monkeypatch.setattr(reading, "_LARGE_NBYTES", 1)
    real = filesystem.read_into

    def fail(d, buffer, offset):
        if d != descriptor:
            raise OSError(errno.EIO, "Input/output error")
        return real(d, buffer, offset)

    monkeypatch.setattr(filesystem, "read_into", fail)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="Input/output error"):
        read_ranges(descriptor, ReadRanges([0], [2 * PAGE], [0], None))
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_restore_with_direct_reads_returns_the_tree_and_detects_a_flipped_bit(monkeypatch):
    monkeypatch.setattr(filesystem, "is_cached", lambda descriptor, offset: False)
    tree = {"big": np.arange(3 << 18), "odd": some_bytes((1 << 20) + 13), "small": np.ones(5)}
    path = pts.save(tree, "model")
    assert_trees_equal(pts.restore(path), tree)
    (data,) = path.glob("*.safetensors")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 4
    data.write_bytes(content)
    with pytest.raises(pts.CorruptCheckpointError) as caught:
        pts.restore(path)
    assert caught.value.damaged == ["big"]


@st.composite
def contents_in_place(draw):
    """Byte arrays, an offset for each, in any order and with or without gaps, and the end of the last one."""
    arrays = [some_bytes(n, seed) for seed, n in enumerate(draw(st.lists(st.integers(0, 9000), max_size=12)))]
    order = draw(st.permutations(range(len(arrays))))
    offsets, end = [0] * len(arrays), draw(st.integers(0, 5000))
    for i in order:
        offsets[i] = end
        end += arrays[i].size + draw(st.sampled_from([0, 0, 0, 1, 100]))
    return arrays, offsets, end


@given(contents_in_place(), st.booleans(), st.booleans(), st.data())
@settings(max_examples=200)
def test_ranges_are_written_in_any_pieces(contents, in_background, durable, data):
    arrays, offsets, end = contents
    before = some_bytes(end, 99)
    descriptor = rewritten_file(before)
    block = data.draw(st.sampled_from([64, 1000, 4096]))
    most = data.draw(st.sampled_from([1, 100, 4096, 2**31]))
    real = filesystem.write

    def write_some(descriptor, buffers, offset):  # like a system call that is interrupted
        joined = b"".join(map(bytes, buffers))
        whole = joined if len(joined) % PAGE == 0 else joined[:most]
        return real(descriptor, [whole], offset) if most < 2**31 else real(descriptor, buffers, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filesystem, "write", write_some)
        patch.setattr(writing, "BLOCK_NBYTES", block)
        patch.setattr(writing, "SLICE_NBYTES", block * data.draw(st.sampled_from([1, 3])))
        patch.setattr(writing, "_MAX_RANGES_PER_WRITE", data.draw(st.sampled_from([1, 2, 1000])))
        patch.setattr(files, "_MIN_DIRECT_NBYTES", data.draw(st.sampled_from([0, PAGE])))
        patch.setattr(parallel, "_MIN_PARALLEL_NBYTES", data.draw(st.sampled_from([0, 2**40])))
        wanted = WriteRanges(offsets, [a.size for a in arrays], arrays.__getitem__)
        checksums = write_ranges(descriptor, wanted, durable=durable, in_background=in_background)
    expected = before.copy()
    for array, offset in zip(arrays, offsets, strict=True):
        expected[offset : offset + array.size] = array
    assert os.pread(descriptor, end + 1, 0) == expected.tobytes()
    os.close(descriptor)
    assert checksums.tolist() == [each for array in arrays for each in block_checksums(array, block)]


def test_background_writes_of_complete_pages_are_direct(open_file, monkeypatch):
    content = some_bytes(3 << 20)
    descriptor = open_file(bytes(4 << 20))
    written, real = [], filesystem.write
    monkeypatch.setattr(
        filesystem, "write", lambda d, b, o: written.append((d == descriptor, o, sum(map(len, b)))) or real(d, b, o)
    )
    write_ranges(descriptor, WriteRanges([100], [content.size], lambda i: content), in_background=True)
    assert os.pread(descriptor, content.size, 100) == content.tobytes()
    through = [(o, n) for is_cached, o, n in written if is_cached and n]
    if len(written) > 1:  # a file system with direct writes
        assert through == [(100, PAGE - 100), (3 << 20, 100)]
        assert (False, PAGE, (3 << 20) - PAGE) in written


def test_writing_no_bytes_is_an_error(open_file, monkeypatch):
    monkeypatch.setattr(filesystem, "write", lambda descriptor, buffers, offset: 0)
    with pytest.raises(OSError, match="wrote no bytes"):
        files.write_fully(open_file(), [b"abc"], 0)


@pytest.mark.parametrize("how", ["no such descriptor", "refuses to write"])
def test_writes_are_buffered_if_direct_io_is_not_supported(open_file, monkeypatch, how):
    content = some_bytes(2 << 20)
    descriptor = open_file(bytes(2 << 20))
    real = filesystem.write

    def refuse(d, buffers, offset):
        if d != descriptor:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(d, buffers, offset)

    if how == "refuses to write":
        monkeypatch.setattr(filesystem, "write", refuse)
    else:
        monkeypatch.setattr(filesystem, "open_direct", lambda descriptor, *, to_write: None)
    checksums = write_ranges(descriptor, WriteRanges([0], [content.size], lambda i: content), in_background=True)
    assert os.pread(descriptor, content.size, 0) == content.tobytes()
    assert checksums.tolist() == list(block_checksums(content, BLOCK_NBYTES))


def test_a_failed_direct_write_is_an_error_of_the_future_and_leaves_no_files(tmp_path, monkeypatch):
    real = filesystem.open_direct
    direct = set()
    monkeypatch.setattr(filesystem, "open_direct", lambda *a, **o: direct.add(d := real(*a, **o)) or d)
    write = filesystem.write

    def fail(d, buffers, offset):
        if d in direct:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(d, buffers, offset)

    monkeypatch.setattr(filesystem, "write", fail)
    before = len(os.listdir("/proc/self/fd"))
    future = pts.save_async({"w": np.zeros(1 << 18)}, tmp_path / "model")
    if direct - {None}:
        with pytest.raises(pts.CheckpointIOError, match="No space left"):
            future.result()
        assert list(tmp_path.iterdir()) == []
    future.exception()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("window", [0, 100_000, 1 << 30])
@pytest.mark.parametrize("in_background", [False, True])
def test_accelerator_arrays_are_fetched_once_each_and_within_the_window(monkeypatch, window, in_background):
    far = jax.devices()[3]  # stands for the accelerator
    monkeypatch.setattr(fetching.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(fetching, "is_on_cpu", lambda array: array.devices() != {far})
    monkeypatch.setattr(fetching, "_WINDOW_NBYTES", window)
    monkeypatch.setattr(parallel, "_MIN_PARALLEL_NBYTES", 0)
    fetched, waiting, most = [], set(), 0
    real_fetch, real_take = fetching._fetch, fetching.FetchedAhead.take

    def fetch(array):
        nonlocal most
        fetched.append(array)
        waiting.add(id(array))
        most = max(most, len(waiting))
        return real_fetch(array)

    def take(self, i):
        array = self._arrays[i]
        result = real_take(self, i)
        waiting.discard(id(array))
        return result

    monkeypatch.setattr(fetching, "_fetch", fetch)
    monkeypatch.setattr(fetching.FetchedAhead, "take", take)
    values = {f"w{i}": np.full(5000 + i, i, np.float32) for i in range(40)}
    tree = {name: jax.device_put(array, far) for name, array in values.items()}
    tree |= {"near": jnp.ones(7), "n": np.arange(3), "step": 1}
    path = pts.save_async(tree, "model").result() if in_background else pts.save(tree, "model")
    restored = pts.restore(path, as_numpy=True)
    for name, array in values.items():
        assert_trees_equal(restored[name], array)
    if not in_background:  # otherwise the snapshot fetches all of them
        assert sorted(map(id, fetched)) == sorted(id(tree[name]) for name in values)
        assert most <= {0: 4, 100_000: 10, 1 << 30: 40}[window]
        assert most >= 5 or window == 0


def test_arrays_are_fetched_without_a_cpu_backend(monkeypatch):
    monkeypatch.setattr(fetching.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(fetching, "is_on_cpu", lambda array: False)
    monkeypatch.setattr(fetching.jax, "local_devices", lambda **options: (_ for _ in ()).throw(RuntimeError("no cpu")))
    path = pts.save({"w": jnp.arange(5)}, "model")
    assert_trees_equal(pts.restore(path, as_numpy=True)["w"], np.arange(5, dtype=np.int32))


def test_background_work_uses_few_threads(monkeypatch):
    seen = set()
    tasks = [lambda: seen.add(threading.get_ident())] * 50
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 4)
    parallel.run_all(tasks, 1 << 30, in_background=True)
    assert seen == {threading.get_ident()}
