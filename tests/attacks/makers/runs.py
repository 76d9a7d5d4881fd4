"""Attacks on run directories: the state file, the records of checkpoints, the history, and the text of the lock.

What is damaged there may cost a warning, never a checkpoint.
"""

import json

from attacks.attack import TREE, Attack, files_of
from attacks.sealing import as_json, sealed_index, xxh3

TEXT_FORMAT = "https://protobuf.dev/reference/protobuf/textformat-spec"
STATE = "A run directory contains checkpoints and a state file `checkpoint` in Protocol Buffers' text format"
RELATIVE = "Relative paths are relative to the run directory."
READS = ("latest", "list", "history", "prune", "save", "locked")
"""The ways that work if only the state file is damaged: checkpoints are found without it."""
EVERYTHING = ("state", *READS)
GOOD_STATE = b'model_checkpoint_path: "ckpt-1"\nall_model_checkpoint_paths: "ckpt-1"\n'
SAVED = b'{"event":"saved","name":"ckpt-1","time":1.5,"step":1,"metrics":{"loss":1.5}}\n'


def of_state(text, message, rule=STATE, works=READS, error="CorruptCheckpointError", **others):
    """Return a run directory with this state file."""
    return Attack({"/checkpoint": text, **others}, rule, message, error, works)


def read(text, rule=STATE, **others):
    """Return a run directory whose state file is odd, but allowed."""
    return of_state(text, "", rule, EVERYTHING, "", **others)


STATES = {
    "state-of-no-bytes": of_state(b"", "expected a model_checkpoint_path"),
    "state-of-zeros": of_state(bytes(100), "line 1: expected a field"),
    "state-of-json": of_state(b'{"model_checkpoint_path": "ckpt-1"}', "line 1: expected a field"),
    "state-of-brackets": of_state(b"[" * 3_000, "expected the name of a field"),
    "field-without-a-value": of_state(b"model_checkpoint_path", "expected a colon, found the end of file"),
    "field-without-a-colon": of_state(b'model_checkpoint_path "m"', "expected a colon"),
    "field-of-a-message": of_state(b"model_checkpoint_path { a: 1 }", "line 1"),
    "unknown-field": of_state(GOOD_STATE + b'evil: "a"', "expected one of the fields"),
    "string-without-its-end": of_state(b'model_checkpoint_path: "ckpt-1', "line 1"),
    "string-of-two-lines": of_state(b'model_checkpoint_path: "ck\npt"', "line 1"),
    "path-of-a-number": of_state(b"model_checkpoint_path: 1", "a quoted path"),
    "path-with-a-nul": of_state(b'model_checkpoint_path: "a\\000b"', "NUL character"),
    "no-path": of_state(b'all_model_checkpoint_paths: "ckpt-1"', "expected a model_checkpoint_path"),
    "path-of-no-characters": of_state(b'model_checkpoint_path: ""', "expected a model_checkpoint_path"),
    "escape-beyond-unicode": of_state(b'model_checkpoint_path: "\\Uffffffff"', "expected a Unicode character"),
    "unknown-escape": of_state(b'model_checkpoint_path: "\\q"', "expected an escape"),
    "time-of-text": of_state(GOOD_STATE + b'last_preserved_timestamp: "now"', "a number for"),
    "time-that-is-nan": of_state(GOOD_STATE + b"last_preserved_timestamp: nan", "found NaN"),
    "time-of-1000-hexadecimal-digits": of_state(
        GOOD_STATE + b"last_preserved_timestamp: 0x" + b"f" * 1000, "too large"
    ),
    "more-times-than-paths": of_state(
        GOOD_STATE + b"all_model_checkpoint_timestamps: [1.0, 2.0]", "expected a timestamp for each of 1 paths"
    ),
    "list-without-its-end": of_state(GOOD_STATE + b"all_model_checkpoint_timestamps: [1", "a comma or ]"),
    "list-of-one-path": of_state(b'model_checkpoint_path: ["a"]', "a quoted path"),
    "list-in-a-list": of_state(GOOD_STATE + b"all_model_checkpoint_timestamps: [[1]]", "a number for"),
    "good-state": read(GOOD_STATE),
    "state-of-all-spellings": read(
        b"# written by hand\nmodel_checkpoint_path: 'ckpt' '-' \"1\";all_model_checkpoint_paths: ['ckpt-1',];"
        b"last_preserved_timestamp: 1e3f, all_model_checkpoint_timestamps: 0x10"
    ),
    "time-that-is-infinite": read(GOOD_STATE + b"last_preserved_timestamp: -inf"),
    "time-of-1000-digits": read(GOOD_STATE + b"last_preserved_timestamp: " + b"1" * 1000),
    "path-above": read(b'model_checkpoint_path: "../../../secret"', RELATIVE),
    "absolute-path": read(b'model_checkpoint_path: "/etc/passwd"', RELATIVE),
    "path-of-5000-characters": read(b'model_checkpoint_path: "' + b"a" * 5000 + b'"', RELATIVE),
    "path-that-is-a-url": of_state(
        b'model_checkpoint_path: "http://127.0.0.1:9/secret"', "expected paths, found the URL", RELATIVE
    ),
    "path-in-a-store": of_state(
        b'model_checkpoint_path: "s3://bucket/secret"', "expected paths, found the URL", RELATIVE
    ),
    "path-of-no-utf-8": read(b'model_checkpoint_path: "\\377\\xfe\xff"', RELATIVE),
    "path-of-a-surrogate": read(b'model_checkpoint_path: "\\ud800"', RELATIVE),
    "path-of-the-home-directory": read(b'model_checkpoint_path: "~root/m"', RELATIVE),
    "path-of-the-run-itself": read(b'model_checkpoint_path: "."', RELATIVE),
    "two-hundred-paths": read(b'model_checkpoint_path: "m"' + b'all_model_checkpoint_paths:"a"' * 200, RELATIVE),
}


def checkpoint(record, name="ckpt-1"):
    """Return the files of a checkpoint with a record, which is JSON data."""
    found = files_of({"w": TREE["w"]})
    index = json.loads(found["/index.json"])
    index["record"] = record
    return {f"/{name}{path}": each for path, each in found.items()} | {f"/{name}/index.json": sealed_index(index)}


RECORD = {
    **{"step": 1, "time": 1000.5, "metrics": {"loss": 1.5}, "state_file": "checkpoint", "serial": 1, "name": "ckpt-1"},
    **{"predecessor": None, "retention": {"manager": {"max_to_keep": 2, "every_n_hours": None}}},
}
FIELDS = "The keys of `record` are:"
RULES = "the retention rule of the saver; may be absent, and readers need not understand it"


def of_record(
    message="its record is malformed",
    rule=FIELDS,
    works=("state", "latest", "history", "prune", "save", "locked"),
    **changes,
):
    """Return a run directory of one checkpoint, whose record has other values; those of None are left out."""
    record = {key: value for key, value in (RECORD | changes).items() if value is not ...}
    return Attack({"/checkpoint": GOOD_STATE, **checkpoint(record)}, rule, message, works=works)


def of_step(step):
    """Return a run directory whose checkpoint has an odd step, which is allowed."""
    return Attack({"/checkpoint": GOOD_STATE, **checkpoint(RECORD | {"step": step})}, FIELDS, "", "", EVERYTHING)


def of_rule(retention, message=""):
    """Return a run directory whose checkpoint has another rule of retention: nothing is deleted because of it."""
    return Attack(
        {"/checkpoint": GOOD_STATE, **checkpoint(RECORD | {"retention": retention})}, RULES, message, "", EVERYTHING
    )


RECORDS = {
    **{f"record-without-{key.replace('_', '-')}": of_record(**{key: ...}) for key in RECORD if key != "retention"},
    **{f"{key.replace('_', '-')}-that-is-a-list": of_record(**{key: [1]}) for key in RECORD if key != "retention"},
    "time-that-is-nan": of_record("expected a finite time", time={"$float": "nan"}),
    "time-of-300-digits": of_record("", time={"$int": "0x1" + "0" * 300}),
    "step-that-is-true": of_record(step=True),
    "metric-of-text": of_record(metrics={"loss": "low"}),
    "metric-of-400-digits": of_record("", metrics={"loss": {"$int": "0x1" + "0" * 400}}),
    "metrics-of-a-partition": of_record(metrics={"$partition_spec": []}),
    "record-that-is-a-dtype": Attack(
        {"/checkpoint": GOOD_STATE, **checkpoint({"$dtype": "V4"})},
        FIELDS,
        "its record is malformed",
        works=("state", "latest", "history", "prune", "save", "locked"),
    ),
    "state-file-above": of_record("expected the name of a state file", state_file="../checkpoint"),
    "state-file-with-a-nul": of_record("expected the name of a state file", state_file="a\0b"),
    "state-file-of-no-characters": of_record("expected the name of a state file", state_file=""),
    "step-of-70-bits": of_step({"$int": "0x1" + "0" * 18}),
    "step-below-zero": of_step(-5),
    "good-record": of_rule(RECORD["retention"]),
    "rule-of-text": of_rule("keep"),
    "rule-of-null": of_rule(None),
    "rule-of-two-savers": of_rule({"manager": {}, "saver": {}}),
    "rule-of-an-unknown-saver": of_rule({"other": {"max_to_keep": 1}}),
    "rule-without-its-limit": of_rule({"manager": {"max_to_keep": 1}}),
    "rule-with-an-unknown-field": of_rule({"manager": {"max_to_keep": 1, "every_n_hours": None, "more": 1}}),
    "limit-of-text": of_rule({"manager": {"max_to_keep": "1", "every_n_hours": None}}),
    "limit-below-zero": of_rule({"manager": {"max_to_keep": -5, "every_n_hours": None}}),
    "limit-of-zero": of_rule({"manager": {"max_to_keep": 0, "every_n_hours": 0}}),
    "limit-of-saver-below-zero": of_rule({"saver": {"max_to_keep": -1, "every_n_hours": -1.0}}),
    "hours-that-are-nan": of_rule({"manager": {"max_to_keep": 1, "every_n_hours": {"$float": "nan"}}}),
    "unknown-policy": of_rule({"manager": {"policy": [["KeepNothing", {}]]}}),
    "policy-without-fields": of_rule({"manager": {"policy": [["KeepLast", {}]]}}),
    "policy-of-zero": of_rule({"manager": {"policy": [["KeepLast", {"count": 0}]]}}),
    "policy-of-text": of_rule({"manager": {"policy": [["KeepLast", {"count": "many"}]]}}),
    "policy-of-no-parts": of_rule({"manager": {"policy": []}}),
    "policy-of-lists": of_rule({"manager": {"policy": [[1, 2]]}}),
}

UNLISTED = "It is recognized by its `record`"
SECOND = RECORD | {"step": 2, "time": 2000.5, "serial": 2, "name": "ckpt-2", "predecessor": "ckpt-1"}


def of_unlisted(newest="ckpt-1", **changes):
    """Return a run directory with a checkpoint that its state file does not list."""
    files = {"/checkpoint": GOOD_STATE, **checkpoint(RECORD), **checkpoint(SECOND | changes, "ckpt-2")}
    return Attack(files, UNLISTED, "", "", EVERYTHING, newest=newest)


UNLISTED_CHECKPOINTS = {
    "unlisted": of_unlisted("ckpt-2"),
    "unlisted-of-another-state-file": of_unlisted(state_file="other"),
    "unlisted-of-another-name": of_unlisted(name="ckpt-3"),
    "unlisted-after-another-checkpoint": of_unlisted(predecessor="ckpt-9"),
    "unlisted-with-the-serial-of-the-newest": of_unlisted(serial=1),
    "unlisted-with-a-serial-below-zero": of_unlisted(serial=-(2**63)),
}

HISTORY = "readers skip lines that are not such objects"
INFORMATIONAL = "The history is informational: nothing else depends on it, lines may be missing"


def of_history(lines, rule=HISTORY):
    """Return a run directory whose history has one good line, and others."""
    return Attack({"/.pytreesaver.history": SAVED + lines + b"\n", **checkpoint(RECORD)}, rule, "", "", EVERYTHING)


def line(**changes):
    """Return a line of a history."""
    return as_json({"event": "saved", "name": "ckpt-2", "time": 2.5} | changes)


HISTORIES = {
    "line-of-no-json": of_history(b"{"),
    "line-of-zeros": of_history(bytes(1000)),
    "line-that-is-no-utf-8": of_history(b'{"event":"saved","name":"\xff","time":1.5}'),
    "line-that-is-a-list": of_history(b"[]"),
    "line-of-brackets": of_history(b"[" * 3000),
    "line-of-sealed-brackets": of_history(b"[" * 900 + b"]" * 900),
    "line-without-a-name": of_history(b'{"event":"saved","time":1.5}'),
    "line-with-a-time-of-text": of_history(line(time="now")),
    "line-with-a-time-that-is-nan": of_history(line(time={"$float": "nan"})),
    "line-with-a-time-of-400-digits": of_history(b'{"event":"saved","name":"a","time":1' + b"0" * 400 + b"}"),
    "line-with-a-step-of-text": of_history(line(step="1")),
    "line-with-metrics-of-text": of_history(line(metrics={"loss": "low"})),
    "line-with-metrics-of-a-partition": of_history(line(metrics={"$partition_spec": []})),
    "line-with-a-dtype": of_history(line(name={"$dtype": "a4"})),
    "line-with-an-unknown-tag": of_history(line(metrics={"loss": {"$exec": 1}})),
    "line-with-timings-that-are-a-list": of_history(line(timings=[1])),
}

LOCK = "The text of the file identifies the process."


def of_lock(text):
    """Return a run directory with this text in the file of the lock."""
    return Attack(
        {"/.pytreesaver.lock": text, "/checkpoint": GOOD_STATE, **checkpoint(RECORD)}, LOCK, "", "", EVERYTHING
    )


LOCKS = {
    "lock-of-no-bytes": of_lock(b""),
    "lock-of-zeros": of_lock(bytes(300)),
    "lock-that-is-no-utf-8": of_lock(b"\xff" * 300),
    "lock-of-control-characters": of_lock(b"\x1b[2J\x1b[31mprocess 1\r\n\x07"),
    "lock-of-a-long-line": of_lock(b"process " + b"1" * 5000),
}

KNOWN = "Without that file, any content counts."
SOURCE = "pytreesaver/_run/state_file.py"
ZEROS, ONES = "0" * 16, "1" * 16
OF_BOTH = f"{ZEROS}{ONES}".encode()
SUMS = {
    "checksum-of-another-state": Attack(
        {"/checkpoint": GOOD_STATE, "/.pytreesaver.checkpoint.xxh3": f"{ZEROS}\n{ONES}\n{xxh3(OF_BOTH)}\n".encode()},
        KNOWN,
        "expected the contents that were last saved",
        "",
        EVERYTHING,
        SOURCE,
    ),
    "checksums-of-no-text": Attack(
        {"/checkpoint": GOOD_STATE, "/.pytreesaver.checkpoint.xxh3": b"\xff\0" * 100}, KNOWN, "", "", EVERYTHING, SOURCE
    ),
}

ATTACKS = STATES | RECORDS | UNLISTED_CHECKPOINTS | HISTORIES | LOCKS | SUMS
