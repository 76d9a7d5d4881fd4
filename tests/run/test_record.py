"""Records and recorded rules of retention that are malformed, or written by a newer version."""

from pathlib import Path

import pytest
from helpers import rewrite

import pytreesaver as pts


@pytest.fixture
def path():
    with pts.CheckpointManager("run", max_to_keep=None, block=True) as manager:
        return [Path(manager.save(step, {"w": step})) for step in range(3)][-1]


FIELDS = ["step", "time", "metrics", "state_file", "serial", "name", "predecessor"]


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [None, True, [1], {"loss": "low"}], ids=repr)
def test_a_malformed_record_is_damage(path, name, value):
    def edit(index):
        if value is None:
            del index["record"][name]
        else:
            index["record"][name] = value

    rewrite(path, edit)
    (problem,) = [each.problem for each in pts.list_checkpoints("run") if each.problem]
    assert "its record is malformed" in problem
    assert pts.restore(path) == {"w": 2}


def set_manager_rule(**fields):
    return lambda index: index["record"].update(retention={"manager": fields})


@pytest.mark.parametrize(
    "edit",
    [
        set_manager_rule(),
        set_manager_rule(max_to_keep=1),
        set_manager_rule(max_to_keep=1, every_n_hours=None, max_nbytes=5),
        set_manager_rule(max_to_keep={}, every_n_hours=None),
        set_manager_rule(max_to_keep=1, every_n_hours="2"),
        set_manager_rule(policy=[["KeepLast", {"count": 1, "per_host": True}]]),
        set_manager_rule(policy=[["KeepLast", {"count": {}}]]),
        set_manager_rule(policy=[["KeepLast", {"count": -1}]]),
        lambda index: index["record"].update(retention={"saver": {"max_to_keep": 1}}),
        lambda index: index["record"].update(retention={"rule": {"max_to_keep": 1, "every_n_hours": None}}),
        lambda index: index["record"].update(retention=[1]),
    ],
)
def test_nothing_is_pruned_by_a_rule_that_is_not_supported(path, edit):
    rewrite(path, edit)
    assert [each.keep for each in pts.prune("run")] == [True] * 3
    assert len(list(Path("run").glob("ckpt-*"))) == 3


def test_a_supported_rule_prunes(path):
    rewrite(path, set_manager_rule(policy=[["KeepLast", {"count": 1}]]))
    assert [each.keep for each in pts.prune("run")] == [False, False, True]
    assert len(list(Path("run").glob("ckpt-*"))) == 1
