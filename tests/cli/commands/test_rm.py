"""``pytreesaver rm``."""

import json
from pathlib import Path

from cli.running import remaining_steps, save_run

import pytreesaver as pts


def test_rm_deletes_the_given_checkpoints(call):
    save_run()
    result = call("rm", "run/ckpt-4", "run/ckpt-1")
    assert (result.code, result.out) == (0, "deleted run/ckpt-4\ndeleted run/ckpt-1\n")
    assert remaining_steps() == [0, 2, 3]
    assert pts.latest_checkpoint("run") == Path("run/ckpt-3")
    assert json.loads(call("rm", "run/ckpt-0", "--json").out) == {"deleted": ["run/ckpt-0"]}


def test_rm_deletes_nothing_if_a_checkpoint_does_not_exist(call):
    save_run()
    result = call("rm", "run/ckpt-4", "run/ckpt-9")
    assert (result.code, result.out) == (2, "")
    assert remaining_steps() == [0, 1, 2, 3, 4]
