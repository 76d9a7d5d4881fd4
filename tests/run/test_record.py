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


@pytest.mark.parametrize("name", ["a\0b", "a/b", "..", ""])
def test_a_record_with_the_path_of_a_state_file_is_damage(path, name):
    rewrite(path, lambda index: index["record"].update(state_file=name))
    (problem,) = [each.problem for each in pts.list_checkpoints("run") if each.problem]
    assert f"expected the name of a state file, found {name!r}" in problem
    assert len(pts.prune("run", pts.KeepLast(5))) == 3
    assert pts.remove_checkpoint(path, update_state=True)


@pytest.mark.parametrize(
    "too_large", [{"$complex": [{"$int": hex(10**400)}, 0]}, {"$int": "0x"}], ids=["complex", "int"]
)
def test_a_plain_value_that_python_cannot_hold_is_damage(path, too_large):
    rewrite(path, lambda index: index.update(metadata={"value": too_large}))
    (problem,) = [each.problem for each in pts.list_checkpoints("run") if each.problem]
    assert "malformed $" in problem
    with pytest.raises(pts.CorruptCheckpointError, match=r"malformed \$"):
        pts.load_checkpoint(path)
    rewrite(path, lambda index: index["record"].update(metrics={"loss": too_large}))
    assert pts.latest_checkpoint("run") == Path("run/ckpt-2")


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
        set_manager_rule(policy=[["KeepSteps", {"steps": [{}]}]]),
        set_manager_rule(policy=[["KeepEveryHours", {"hours": {"1": 2}}]]),
        set_manager_rule(policy=[["KeepBest", {"count": 1, "metric": {}, "mode": []}]]),
        lambda index: index["record"].update(retention={"saver": {"max_to_keep": 1}}),
        lambda index: index["record"].update(retention={"rule": {"max_to_keep": 1, "every_n_hours": None}}),
        lambda index: index["record"].update(retention=[1]),
        lambda index: index["record"].update(retention={"$partition_spec": [3.5]}),
        set_manager_rule(policy=[["KeepLast", {"$partition_spec": [3.5]}]]),
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
