"""npz archives and files of Equinox, which are arrays in NumPy's format."""

import functools
import io
import re
import zipfile

import numpy as np
from attacks.attack import TREE
from attacks.makers.npz import ours
from attacks.sealing import archive, array_file, array_header, described_archive, sealed_index
from fuzz.execution import Target, used
from fuzz.mutations import changed_bytes
from fuzz.targets.native import resealed
from fuzz.targets.workspace import place

DESCRS = (
    *("'<f4'", "'>f4'", "'|O'", "'<U2'", "'|S0'", "'|V2'", "'|V4'", "'<M8[ns]'", "'<f3'", "7", "None", "[('a','<f4')]"),
    *("('<f4',(3,))", "'<U999999999'", "{'names':['a'],'formats':['O']}", "'|b1'", "'<c8'", "b'<f4'", "'f4,f4'"),
    *("'a4'",),
)
SHAPES = (
    *("(2, 3)", "()", "(6,)", "(0, 3)", "(-1,)", "(True, 6)", "(2.0, 3)", "6", "None", "(1,)*70", f"({1 << 62},)"),
    *("[2, 3]",),
    *(f"({1 << 40},)", f"({1 << 62}, 4)", "(" + "9" * 300 + ",)", "(" + "1," * 64 + ")", "(0x6,)", "(1_000,)"),
    *("(2L, 3)",),
)
TEXTS = (b"(", b"[" * 200, b"exit()", b"{'shape':1}\n", b"\0", b"{}\n", b"'" * 9, b"1" * 5000, b"\xff")
LINES = (
    *(b'{"a":1}', b"{", b'{"a":NaN}', b'{"a":' + b"[" * 150, b'{"a":"\\ud800"}', b'{"a":"\xff"}', b"{}"),
    *(b'{"a":1' + b"0" * 5000 + b"}", b'{"a":' + b"[" * 150 + b"]" * 150 + b"}", b'{"$float":"x"}'),
)
NAMES = ("w.npy", "../x.npy", "a/b.npy", ".npy", "x.pkl", "w.npy/", "a" * 300 + ".npy", "$tuple.npy")
DATA = TREE["w"].tobytes()


def _array(content, random):
    """Return another array in NumPy's format."""
    kind = random.randrange(6)
    if kind <= 2:
        data = random.choice((DATA, DATA[:-1], b"", DATA * 3, content[128:]))
        return array_file(
            random.choice(DESCRS), random.choice(SHAPES), data, random.choice(("False", "True", "0", "None"))
        )
    if kind == 3:
        return array_header(random.choice(TEXTS), random.choice((b"\1\0", b"\2\0", b"\3\0", b"\x09\0"))) + DATA
    return changed_bytes(content, random)


def mutate_npz(content, random):
    """Return another archive: other arrays, names or description, with the right checksums."""
    kind = random.random()
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        entries = {info.filename: opened.read(info) for info in opened.infolist()}
        place_of_text = re.search(rb"description=(\d+)\+(\d+)", opened.comment)
    if kind < 0.15:
        return changed_bytes(content, random)
    text = None
    if place_of_text is not None:
        begin, nbytes = map(int, place_of_text.groups())
        text = content[begin : begin + nbytes]
        if kind < 0.6:
            return described_archive(entries, resealed(text, random))
    name = random.choice(list(entries))
    change = random.randrange(5)
    if change == 0:
        del entries[name]
    elif change == 1:
        entries[random.choice(NAMES)] = entries[name]
    else:
        entries[name] = _array(entries[name], random)
    return archive(entries, deflated=kind < 0.4) if text is None else described_archive(entries, text)


def run_npz(content):
    """Use an archive."""
    path = place("npz/x.npz")
    path.write_bytes(content)
    used(path, content)


@functools.cache
def npz():
    """Return the target of archives of NumPy and of pytreesaver."""
    entries, description = ours()
    big_endian = array_file("'>f4'", "(4,)", TREE["b"].astype(">f4").tobytes(), "True")
    arrays = {"w.npy": array_file(content=DATA), "b/c.npy": big_endian}
    texts = {"s.npy": array_file("'<U2'", "(2,)", np.array(["a", "bc"]).tobytes())}
    pickled = {"o.npy": array_file("'|O'", "(1,)", b"\x80\4N.")}
    seeds = [archive(arrays), archive(arrays | texts | pickled, deflated=True)]
    return Target([*seeds, described_archive(entries, sealed_index(description))], run_npz, mutate_npz, 60)


def mutate_equinox(content, random):
    """Return another file: other arrays, or another first line."""
    head, *arrays = content.split(b"\x93NUMPY")
    arrays = [b"\x93NUMPY" + each for each in arrays]
    kind = random.randrange(6)
    if kind == 0 or not arrays:
        return changed_bytes(content, random)
    if kind == 1:
        return random.choice(LINES) + b"\n" + b"".join(arrays)
    i = random.randrange(len(arrays))
    arrays[i] = _array(arrays[i], random)
    return head + b"".join([*arrays, arrays[i]] if kind == 2 else arrays)


def run_equinox(content):
    """Use a file of Equinox."""
    path = place("equinox/x.eqx")
    path.write_bytes(content)
    used(path, content)


@functools.cache
def equinox():
    """Return the target of files of Equinox."""
    w, other = array_file(content=DATA), array_file("'>f8'", "(2, 2)", bytes(32), "True")
    return Target([w + other, b'{"size": [1, 2.5]}\n' + w], run_equinox, mutate_equinox, 80)
