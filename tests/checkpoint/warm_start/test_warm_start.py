"""`warm_start`: the semantics of TensorFlow, and errors on mistakes that it ignores."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import message_of
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import pytreesaver as pts
from pytreesaver._tree.structure import flatten_tree
from pytreesaver.testing import assert_trees_equal

OLD = {"v1": np.full(2, 1.0), "v2": np.full(2, 2.0), "v2/Momentum": np.full(2, 2.5), "other": np.full(2, 3.0)}
NEW = {name: np.zeros(2) for name in OLD}


@pytest.fixture
def old():
    return pts.save(OLD, "old")


def started(tree):
    return sorted(name for name, leaf in zip(flatten_tree(tree).names, flatten_tree(tree).leaves) if leaf.any())


@pytest.mark.parametrize(
    ("given_vars", "expected"),
    [
        (".*", sorted(OLD)),
        ("v", ["v1", "v2", "v2/Momentum"]),  # a regular expression matches the beginning
        ("v1$", ["v1"]),
        ("v2[^/]|v1", ["v1"]),
        (["v1", "other"], ["other", "v1"]),
        (["v2"], ["v2", "v2/Momentum"]),
        ([re.compile("V1", re.IGNORECASE)], ["v1"]),
        (pts.glob("v2/*"), ["v2/Momentum"]),
        ([], []),
        (None, []),
    ],
    ids=str,
)
def test_which_variables_are_warm_started(old, given_vars, expected):
    tree = pts.warm_start(NEW, old, given_vars)
    assert started(tree) == expected
    for name, leaf in NEW.items():
        assert (tree[name] is leaf) == (name not in expected)
        assert not leaf.any()


def test_invalid_vars_to_warm_start(old):
    with pytest.raises(ValueError, match=r"must be a `list` or `str`.  Given type is <class 'int'>"):
        pts.warm_start(NEW, old, 3)
    with pytest.raises(ValueError, match="must be all `str`"):
        pts.warm_start(NEW, old, ["v1", NEW["v1"]])
    assert message_of(pts.VariableNotFoundError, lambda: pts.warm_start(NEW, old, ["v1", "othr"])) == (
        "vars_to_warm_start: some regular expressions match no variable of the tree:\n"
        "  'othr' matches no variable; did you mean 'other'?"
    )
    with pytest.raises(pts.VariableNotFoundError, match="selects nothing"):
        pts.warm_start(NEW, old, pts.glob("nothing"))


def test_previous_names_may_be_shared(old):
    tree = {"a": np.zeros(2), "b": np.zeros(2), "c": np.ones(2)}
    restored = pts.warm_start(tree, old, "[ab]", var_name_to_prev_var_name={"a": "v2", "b": "v2"})
    assert_trees_equal(restored, {"a": OLD["v2"], "b": OLD["v2"], "c": tree["c"]})


def test_one_error_lists_all_differences(old):
    tree = {"v1": np.zeros(3), "v2": np.zeros(2, np.int64), "new": np.zeros(2), "embed": np.zeros((4, 2))}
    info = pts.VocabInfo(["a"], 1, 3, ["a"])
    message = message_of(
        pts.MismatchError,
        lambda: pts.warm_start(
            tree, old, var_name_to_prev_var_name={"new": "othr"}, var_name_to_vocab_info={"embed": info}
        ),
    )
    for part in (
        "new (looked for as othr); did you mean 'other'?",
        "v1: expected float64[3], found float64[2]",
        "v2: expected int64[2], found float64[2]",
        "missing from old:\n  embed",
    ):
        assert part in message


def test_unused_names_are_errors(old):
    info = pts.VocabInfo(["a"], 1, 1, ["a"])
    with pytest.raises(pts.MismatchError) as caught:
        pts.warm_start(NEW, old, "v1", {"v11": "v1", "other": "v1"}, {"v2": info, "typo": info})
    assert str(caught.value) == (
        "some names are not those of variables to warm-start:\n"
        "  var_name_to_prev_var_name: v11; did you mean 'v1'?\n"
        "  var_name_to_prev_var_name: other; vars_to_warm_start does not select it\n"
        "  var_name_to_vocab_info: v2; vars_to_warm_start does not select it\n"
        "  var_name_to_vocab_info: typo"
    )
    assert caught.value.unused == ["v11", "other", "v2", "typo"]
    # As in TensorFlow, a previous name counts as used if only variables with vocabularies are warm-started.
    assert started(pts.warm_start(NEW, old, None, {"v1": "v2"})) == []


def test_the_newest_checkpoint_of_a_run_directory_is_used():
    with pts.CheckpointManager("run", block=True) as manager:
        for step in (1, 2):
            manager.save(step, {"w": np.full(2, float(step))})
    assert pts.warm_start({"w": np.zeros(2)}, "run")["w"].tolist() == [2, 2]
    assert pts.init_from_checkpoint({"x": np.zeros(2)}, "run", {"w": "x"})["x"].tolist() == [2, 2]
    for start in (pts.warm_start, functools.partial(pts.init_from_checkpoint, assignment_map={"w": "w"})):
        with pytest.raises(pts.CheckpointNotFoundError):
            start({"w": np.zeros(2)}, "nowhere")


# Vocabularies.


@pytest.mark.parametrize("as_file", [False, True])
def test_rows_follow_their_tokens(as_file):
    old, new = ["apple", "banana", "guava", "orange"], ["orange", "guava", "banana", "apple", "raspberry", "blueberry"]
    if as_file:
        Path("old.txt").write_text("\n".join(old) + "\n")
        Path("new.txt").write_bytes("\r\n".join(new).encode())
        old, new = "old.txt", Path("new.txt")
    path = pts.save({"embed": jnp.array([[0.0, 0.0], [1, 1], [2, 2], [3, 3]])}, "model")
    tree = {"embed": jnp.full((7, 2), 9.0)}
    info = pts.VocabInfo(new, 6, 1, old)
    result = pts.warm_start(tree, path, var_name_to_vocab_info={"embed": info})["embed"]
    assert isinstance(result, jax.Array)
    assert result[:, 0].tolist() == [3, 2, 1, 0, 0, 0, 0]
    info = pts.VocabInfo(
        new, 6, 1, old, old_vocab_size=2, backup_initializer=lambda shape, dtype: np.full(shape, 7, dtype)
    )
    result = pts.warm_start(tree, path, None, var_name_to_vocab_info={"embed": info})["embed"]
    assert result[:, 1].tolist() == [7, 7, 1, 0, 7, 7, 7]
    info = pts.VocabInfo(new, 3, 4, old)  # only the first three tokens of the new vocabulary are used
    result = pts.warm_start(tree, path, var_name_to_vocab_info={"embed": info})["embed"]
    assert result[:, 0].tolist() == [3, 2, 1, 0, 0, 0, 0]


def test_columns_follow_their_tokens_and_all_old_tokens_are_used():
    path = pts.save({"out": np.arange(12.0).reshape(3, 4), "bias": np.arange(4.0)}, "model")
    tree = {"out": np.zeros((3, 5)), "bias": np.zeros(5)}
    info = functools.partial(pts.VocabInfo, ["d", "x", "a", "b"], 4, 1, ["a", "b", "c", "d"], 1)
    result = pts.warm_start(
        tree,
        path,
        None,
        var_name_to_vocab_info={
            "out": info(axis=1),
            "bias": pts.VocabInfo(["d", "x", "a", "b"], 4, 1, ["a", "b", "c", "d"]),
        },
    )
    assert result["out"][1].tolist() == [7, 0, 4, 5, 0]
    assert result["bias"].tolist() == [3, 0, 0, 1, 0]


@given(st.data())
@settings(max_examples=100)
def test_every_row_is_copied_or_initialized(data):
    tokens = st.lists(st.text("abcd", max_size=2), unique=True, min_size=1, max_size=12)
    old, new = data.draw(tokens), data.draw(tokens)
    size, buckets, axis = (
        data.draw(st.integers(1, len(new))),
        data.draw(st.integers(0, 3)),
        data.draw(st.integers(0, 1)),
    )
    limit = data.draw(st.sampled_from([-1, *range(1, len(old) + 1)]))
    stored = np.random.default_rng(0).normal(size=(len(old) + data.draw(st.integers(0, 2)), 3)).astype(np.float32)
    stored = stored if axis == 0 else np.ascontiguousarray(stored.T)
    path = pts.save({"w": stored}, "model", overwrite=True, durable=False)
    shape = (size + buckets, 3) if axis == 0 else (3, size + buckets)
    backup = np.full(shape, 5, np.float32)
    info = pts.VocabInfo(new, size, buckets, old, limit, lambda shape, dtype: backup, axis)
    with pytest.MonkeyPatch.context() as patch:
        from pytreesaver._checkpoint.warm_start import warm_start

        patch.setattr(warm_start, "_PART_NBYTES", data.draw(st.sampled_from([4, 12, 30, 1 << 20])))
        result = pts.warm_start({"w": np.zeros(shape, np.float32)}, path, var_name_to_vocab_info={"w": info})["w"]
    known = old if limit == -1 or axis == 1 else old[:limit]
    for i in range(size + buckets):
        token = new[i] if i < size else None
        expected = stored.take(known.index(token), axis) if token in known else backup.take(i, axis)
        assert result.take(i, axis).tolist() == expected.tolist()


def test_a_sharded_embedding_stays_sharded():
    sharding = NamedSharding(jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,)), PartitionSpec("x"))
    path = pts.save({"embed": np.arange(10, dtype=np.float32)[:, None]}, "model")
    tree = {"embed": jax.device_put(jnp.zeros((16, 1)), sharding)}
    info = pts.VocabInfo([str(i) for i in range(15)], 15, 1, [str(i) for i in range(10)])
    result = pts.warm_start(tree, path, var_name_to_vocab_info={"embed": info})["embed"]
    assert result.sharding == sharding
    assert result[:, 0].tolist() == [*range(10), *[0] * 6]


def test_a_jax_initializer():
    path = pts.save({"embed": np.ones((1, 4), np.float32)}, "model")
    initializer = functools.partial(jax.nn.initializers.normal(0.5), jax.random.key(0))
    info = pts.VocabInfo(["a", "b"], 2, 0, ["a"], backup_initializer=initializer)
    result = pts.warm_start({"embed": np.zeros((2, 4), np.float32)}, path, var_name_to_vocab_info={"embed": info})
    assert result["embed"][0].tolist() == [1] * 4
    assert result["embed"][1].tolist() == np.asarray(initializer((2, 4), np.float32))[1].tolist()
    for wrong in (lambda shape, dtype: np.zeros(shape, np.float64), lambda shape, dtype: np.zeros(3, dtype)):
        info = pts.VocabInfo(["a", "b"], 2, 0, ["a"], backup_initializer=wrong)
        with pytest.raises(ValueError, match="embed: expected a backup_initializer that returns float32"):
            pts.warm_start({"embed": np.zeros((2, 4), np.float32)}, path, var_name_to_vocab_info={"embed": info})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((["a", "b"], 3, 0, ["a"]), "new_vocab: expected at least 3 tokens, found 2"),
        ((["a", "b", "c"], 3, 0, ["a"], 2), "old_vocab: expected at least 2 tokens, found 1"),
        ((["a", "b", "c"], 3, 0, ["a", "b", "a"]), "old_vocab: expected distinct tokens, found 'a' twice"),
        ((["a", "b", "c"], 3, 0, ["a", "b", "c", "d", "e"]), "expected at most 4 tokens in old_vocab"),
        (
            (["a", "b", "c"], 2, 0, ["a"]),
            r"expected float64\[2,2\] of 2 tokens and 0 buckets along axis 0, found float64",
        ),
        (
            (["a", "b"], 2, 0, ["a"], -1, None, 1),
            r"expected float64\[4,2\] of 2 tokens .* along axis 1, found float64",
        ),
        (([1, 2, 3], 3, 0, ["a"]), "new_vocab: expected the path of a file or a list of str, found a list with 1"),
    ],
    ids=str,
)
def test_vocabularies_that_do_not_match(arguments, said):
    path = pts.save({"embed": np.zeros((4, 2))}, "model")
    info = pts.VocabInfo(*arguments)
    with pytest.raises(pts.MismatchError, match=f"embed: {said}"):
        pts.warm_start({"embed": np.zeros((3, 2))}, path, var_name_to_vocab_info={"embed": info})


def test_invalid_vocab_infos():
    with pytest.raises(
        ValueError, match=r"The only supported values for the axis argument are 0 and 1\.  Provided axis: 2"
    ):
        pts.VocabInfo(["a"], 1, 0, ["a"], axis=2)
    for name in ("new_vocab_size", "num_oov_buckets", "old_vocab_size"):
        with pytest.raises(ValueError, match=f"{name}: expected an integer of at least"):
            pts.VocabInfo(**{"new_vocab": [], "new_vocab_size": 1, "num_oov_buckets": 0, "old_vocab": [], name: -2})
    path = pts.save({"w": np.zeros((1, 1)), "n": 3}, "model")
    info = pts.VocabInfo("no such file", 1, 0, ["a"])
    with pytest.raises(FileNotFoundError, match="no such file"):
        pts.warm_start({"w": np.zeros((1, 1))}, path, var_name_to_vocab_info={"w": info})
    with pytest.raises(TypeError, match="w: expected a VocabInfo, found 3"):
        pts.warm_start({"w": np.zeros((1, 1))}, path, var_name_to_vocab_info={"w": 3})
    info = pts.VocabInfo(["a"], 1, 0, ["a"])
    for leaf in (np.zeros((1, 1), np.float32), 3, np.zeros(1)):
        with pytest.raises(pts.MismatchError, match=r"^w: expected"):
            pts.warm_start({"w": leaf}, path, var_name_to_vocab_info={"w": info})
    with pytest.raises(pts.MismatchError, match="n: expected an array with a vocabulary, found int"):
        pts.warm_start({"n": np.zeros(1, int)}, path, var_name_to_vocab_info={"n": info})


def test_messages_do_not_suggest_arguments_of_restore(old):
    for call in (
        lambda: pts.warm_start({"v1": np.zeros(2, np.float32), "v9": np.zeros((1, 2))}, old),
        lambda: pts.init_from_checkpoint(
            {"a": np.zeros(2, np.float32), "b": np.zeros((1, 2))}, old, {"v1": "a", "v2": "b"}
        ),
    ):
        message = message_of(pts.MismatchError, call)
        assert "cast=" not in message
        assert "reshape=" not in message
        assert "missing=" not in message


def test_more_invalid_arguments(old):
    with pytest.raises(ValueError, match=r"vars_to_warm_start: '\*' is not a valid regular expression"):
        pts.warm_start(NEW, old, "*")
    info = pts.VocabInfo(["a", "b"], 2, 0, {"a", "b"})
    with pytest.raises(pts.MismatchError, match=r"v1: old_vocab: expected the path of a file or a list of str"):
        pts.warm_start(NEW, old, "v1", var_name_to_vocab_info={"v1": info})
    info = pts.VocabInfo(["a"], 1, 1, ["a"], axis=1)
    with pytest.raises(pts.MismatchError, match=r"v1: expected an array with more than 1 axes, found float64\[2\]"):
        pts.warm_start(NEW, old, "v1", var_name_to_vocab_info={"v1": info})
    info = pts.VocabInfo(["a"], 1, 1, ["a"])
    with pytest.raises(pts.UnsupportedLeafError, match="v1: expected an array"):
        pts.warm_start({"v1": print}, old, None, var_name_to_vocab_info={"v1": info})


def test_a_byte_order_mark_is_not_part_of_a_token():
    Path("vocab.txt").write_bytes("\ufeffa\nb\n".encode())
    path = pts.save({"w": np.array([[1.0], [2.0]])}, "model")
    info = pts.VocabInfo(["b", "a"], 2, 0, "vocab.txt")
    result = pts.warm_start({"w": np.zeros((2, 1))}, path, var_name_to_vocab_info={"w": info})
    assert result["w"].ravel().tolist() == [2, 1]


def test_a_prefix_that_differs_is_named_without_arguments_of_restore():
    pts.save({"sequential": {"a": {"w": np.ones(3), "b": np.ones(2)}}}, "model")
    template = {"a": {"w": np.zeros(3), "b": np.zeros(2)}}
    for load in (
        lambda: pts.warm_start(template, "model", vars_to_warm_start="a/.*"),
        lambda: pts.init_from_checkpoint(template, "model", {"a/": "a/"}),
    ):
        with pytest.raises(pts.MismatchError) as caught:
            load()
        assert "under another prefix: 'sequential/' in place of '/'" in str(caught.value)
        assert "rename=" not in str(caught.value)
