"""Run directories: the state file, the history, records with their rules, and the text of locks and leases."""

import functools
import json
import os
import zlib
from pathlib import Path

import msgspec
import numpy as np
from attacks.attack import files_of
from attacks.makers.runs import GOOD_STATE, RECORD, SAVED
from attacks.sealing import xxh3
from fuzz.execution import Target, tried
from fuzz.json_mutations import encode, mutated, parse
from fuzz.mutations import changed_bytes
from fuzz.targets.native import with_part
from fuzz.targets.workspace import laid_out, place

import pytreesaver as pts
from pytreesaver._run.history import _decoded as decoded_event
from pytreesaver._run.lock import _describe_holder as describe_holder
from pytreesaver._run.policies.recording import decode_rule
from pytreesaver._run.record import decode_record
from pytreesaver._run.state_text import MalformedStateError, parse_state

NAMES = (
    *(b"model_checkpoint_path", b"all_model_checkpoint_paths", b"all_model_checkpoint_timestamps"),
    *(b"last_preserved_timestamp", b"evil"),
)
VALUES = (
    *(b'"ckpt-1"', b"'a'", b'""', b'"\\000"', b'"\\377"', b'"\\Uffffffff"', b'"\\ud800"', b'"../x"', b'"/"', b'"."'),
    *(b'"~"', b"1.5", b"-inf", b"nan", b"0x10", b"1e999", b"1" * 400, b"0x" + b"f" * 300, b"-", b".5f", b"[1, 2]"),
    *(b"[]", b"[", b"{}", b'"a" "b"', b'["a"]', b'"' + b"a" * 5000 + b'"', b'"s3://bucket/m"'),
    *(b'"http://127.0.0.1:9/m"',),
    *(b'"a\nb"', b'"\\q"', b"# note", b'"%s"', b'"\xff\xfe"'),
)


def run_state(content):
    """Parse a state file and, if it is valid, use the run directory with it."""
    try:
        parse_state(content)
    except MalformedStateError:
        if zlib.crc32(content) % 16:
            return
    run = laid_out("state/run", tuple(_good_run().items()))
    (run / "checkpoint").write_bytes(content)
    tried(pts.get_checkpoint_state, run)
    tried(pts.latest_checkpoint, run)
    tried(pts.restore, run)
    for each in tried(pts.list_checkpoints, run) or ():
        str(each).encode("utf-8", "surrogateescape")


def mutate_state(content, random):
    """Return another state file: other fields and values, in the text format."""
    lines = content.split(b"\n")
    i = random.randrange(len(lines))
    kind = random.randrange(8)
    if kind <= 2:
        lines[i] = random.choice(NAMES) + random.choice((b": ", b":", b" ")) + random.choice(VALUES)
    elif kind == 3:
        lines[i] += random.choice((b",", b";", b" ", b"#", b"\\")) + random.choice(VALUES)
    elif kind == 4:
        lines.insert(i, lines[random.randrange(len(lines))])
    elif kind == 5:
        del lines[i]
    else:
        return changed_bytes(content, random)
    return b"\n".join(lines)


@functools.cache
def _good_run():
    files = files_of({"w": np.ones(2)})
    files |= {"/index.json": with_part(files["/index.json"], "record", json.dumps(RECORD).encode())}
    return {"/checkpoint": GOOD_STATE, **{f"/ckpt-1{name}": each for name, each in files.items()}}


TIMES = b"all_model_checkpoint_timestamps: 1.5\nlast_preserved_timestamp: 1e3\n"


@functools.cache
def state():
    """Return the target of the state file."""
    seeds = [GOOD_STATE, GOOD_STATE + TIMES, b"model_checkpoint_path: 'a' # note\n"]
    return Target(seeds, run_state, mutate_state, 300)


def mutate_json(text, random):
    """Return other JSON."""
    return encode(mutated(parse(text), random)) if random.random() < 0.85 else changed_bytes(text, random)


def run_history(content):
    """Read a line of a history and, for some, the history of a run directory."""
    decoded_event(content)
    if zlib.crc32(content) % 8 == 0:
        run = laid_out("history/run", tuple(_good_run().items()))
        (run / ".pytreesaver.history").write_bytes(SAVED + content + b"\n")
        repr(tried(pts.get_checkpoint_history, run))


TIMED = {"timings": {"blocked_secs": 0.5, "waited_secs": 0.0, "wrote_secs": 1e-3, "nbytes": 100}}
LINE = json.dumps(json.loads(SAVED) | TIMED).encode()
DELETED = b'{"event":"deleted","name":"a","time":{"$float":"inf"}}'


@functools.cache
def history():
    """Return the target of the history."""
    return Target([SAVED.strip(), LINE, DELETED], run_history, mutate_json, 400)


def run_record(content):
    """Decode a record and its rule and, if it is valid, list and prune the run directory with it."""
    try:
        encoded = msgspec.json.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    record = tried(decode_record, encoded, Path("ckpt-1"))
    if record is not None:
        decode_rule(record.retention)
    if record is None and zlib.crc32(content) % 16:
        return
    files = _good_run()
    run = laid_out("record/run", tuple(files.items()))
    (run / "ckpt-1/index.json").write_bytes(with_part(files["/ckpt-1/index.json"], "record", content))
    for each in tried(pts.list_checkpoints, run) or ():
        repr(each)
    tried(pts.latest_checkpoint, run)
    tried(pts.load_checkpoint, run / "ckpt-1")
    tried(pts.prune, run, pts.KeepLast(5))


def with_rule(rule):
    """Return the text of a record with a rule."""
    return json.dumps(RECORD | {"retention": rule}).encode()


POLICIES = [
    *(["KeepLast", {"count": 2}], ["KeepBest", {"count": 1, "metric": "loss"}]),
    *(["KeepEverySteps", {"count": 5}], ["KeepSteps", {"steps": [1]}]),
]
RULES = ({"saver": {"max_to_keep": 3, "every_n_hours": 1.0}}, {"manager": {"policy": POLICIES}}, RECORD["retention"])


@functools.cache
def record():
    """Return the target of records."""
    return Target([with_rule(rule) for rule in RULES], run_record, mutate_json, 150)


def run_lock(content):
    """Describe the holder of a lock."""
    path = place("lock")
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        text = describe_holder(descriptor)
        assert text.isprintable()
        assert len(text) <= 200
    finally:
        os.close(descriptor)


@functools.cache
def lock():
    """Return the target of the text of a lock."""
    return Target([b"process 1 on host, since 2026-01-01T00:00:00+00:00\n", b""], run_lock, changed_bytes, 300)


def run_lease(content):
    """Read a lease, and compute with it as those who wait for its end."""
    from pytreesaver._io.stores import lease
    from pytreesaver._io.stores.objects import put
    from pytreesaver._io.stores.paths import StorePath

    path = StorePath("memory://fuzz/run/.pytreesaver.lock")
    put(path, content)
    found, _ = lease._read(path)
    assert min(found.seconds, 4 * lease.LEASE_SECS) <= 240
    found.holder.encode()


@functools.cache
def lease():
    """Return the target of leases."""
    seed = b'{"owner":"0123456789abcdef","holder":"process 1 on host","renewals":3,"seconds":60.0}'
    run_lease(seed)  # the first use starts threads
    return Target([seed], run_lease, mutate_json, 150)


def run_sums(content):
    """Use a run directory with this file of checksums of its state file."""
    run = laid_out("sums/run", tuple(_good_run().items()))
    (run / ".pytreesaver.checkpoint.xxh3").write_bytes(content)
    tried(pts.get_checkpoint_state, run)
    tried(pts.latest_checkpoint, run)


LINES = [xxh3(GOOD_STATE), xxh3(b"")]


@functools.cache
def state_sums():
    """Return the target of the checksums of a state file."""
    seed = "".join(f"{line}\n" for line in (*LINES, xxh3("".join(LINES).encode())))
    return Target([seed.encode()], run_sums, changed_bytes, 60)
