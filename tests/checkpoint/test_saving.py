"""Invalid trees and paths: `save` names the problem and writes nothing."""

import dataclasses
import enum
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pytreesaver as pts
from pytreesaver.testing import Box, assert_trees_equal


class Color(enum.IntEnum):
    RED = 1


class Text(str):
    pass


@dataclasses.dataclass
class NotRegistered:
    x: int = 1


def message_of_save(tree, error=pts.UnsupportedLeafError, **options):
    with pytest.raises(error) as caught:
        pts.save(tree, "model", **options)
    assert list(pathlib.Path().iterdir()) == []
    return str(caught.value)


def test_two_leaves_with_the_same_name_are_an_error_with_both_paths():
    message = message_of_save({"a/b": 1, "a": {"b": 2}, "c": 3}, pts.DuplicateNameError)
    assert message.endswith("\n  a/b: ['a']['b'] and ['a/b']")
    assert "['c']" not in message
    message_of_save({"1": {"x": 1}, "1/x": 2}, pts.DuplicateNameError)


UNSUPPORTED = {
    "function": (print, "builtins.builtin_function_or_method; remove functions from the tree first"),
    "enum": (Color.RED, "Color; convert it to a plain int"),
    "subclass of str": (Text("x"), "Text; convert it to a plain str"),
    "instance": (NotRegistered(), "NotRegistered; convert it to an array, register its class"),
    "set": ({1}, "builtins.set"),
    "array of objects": (np.array([object()]), "of dtype object"),
    "array with fields": (np.zeros(2, "f4,i4"), "of dtype [('f0'"),
    "long double": (np.longdouble(1), "of dtype float128"),
    "masked array": (np.ma.masked_array([1, 2]), "numpy.ma.MaskedArray; convert it to a plain np.ndarray"),
    "shape without values": (jax.ShapeDtypeStruct((2,), jnp.float32), "it has a shape but no values"),
    "string that NumPy would cut": (np.str_("a\0"), "ending in NUL"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_leaves_are_errors(case):
    leaf, words = UNSUPPORTED[case]
    message = message_of_save({"params": {"w": np.ones(2), "odd": leaf}})
    assert message.startswith(
        "1 thing cannot be saved:\n  params/odd: expected an array, a number, str or bytes, found"
    )
    assert words in message


def test_one_error_lists_all_unsupported_values():
    message = message_of_save({"a": print, "b": [len, 1]}, metadata={"f": print})
    assert message.startswith("3 things cannot be saved:\n  a: ")
    assert "\n  b/0: " in message
    assert "\n  metadata: ['f']: expected None, bool, int" in message


def test_the_error_for_a_tracer_says_that_save_was_called_inside_jit():
    def step(x):
        pts.save({"x": x}, "model")
        return x

    with pytest.raises(pts.UnsupportedLeafError, match=r"x: .* tracer: save was called inside jit"):
        jax.jit(step)(jnp.ones(2))
    pts.save({"x": jnp.ones(2)}, "saved")
    with pytest.raises(pts.UnsupportedLeafError, match=r"x: .* tracer: restore was called inside jit"):
        jax.jit(lambda x: pts.restore("saved", like={"x": x}))(jnp.ones(2))


def test_the_error_for_a_donated_array_says_that_it_was_deleted():
    x = jnp.ones(2)
    jax.jit(lambda x: x + 1, donate_argnums=0)(x)
    assert "x: " in (message := message_of_save({"x": x}))
    assert "deleted jax.Array: it was donated" in message
    assert "tracer" not in message


def test_unsupported_dict_keys_are_errors():
    message = message_of_save({b"x": 1, b"y": 2})
    assert (
        "b'x': expected a dict key of type str, int, bool, float or None, or a tuple of these, found b'x' of type "
        "builtins.bytes"
    ) in message
    assert "found b'y'" in message
    assert "found <Color.RED: 1>" in message_of_save({Color.RED: 1})
    assert "x: expected sortable dict keys, as JAX requires, found 1, 'a'" in message_of_save({"x": {1: 2, "a": 3}})


def test_names_that_are_not_valid_unicode_are_errors():
    assert r"'\ud800': expected a name that can be written as UTF-8" in message_of_save({"\ud800": 1})


def test_a_tree_that_is_too_deep_is_an_error():
    tree = []
    for _ in range(5000):
        tree = [tree]
    assert "expected a tree of at most 100 levels" in message_of_save(tree)


def test_trees_and_metadata_of_the_maximum_depth_are_restored():
    tree, metadata = 1, 1
    for level in range(99):
        tree = (tree,) if level == 50 else Box(tree, "")
    for _ in range(99):
        metadata = (metadata,)
    path = pts.save(tree, "deep", metadata={"deep": metadata})
    assert_trees_equal(pts.restore(path), tree)
    with pts.load_checkpoint(path) as checkpoint:
        assert checkpoint.metadata == {"deep": metadata}
    cycle = []
    cycle.append(cycle)
    assert "at most 100 levels" in message_of_save_with_metadata({"cycle": cycle})


def test_a_stack_overflow_while_reading_is_not_reported_as_damage():
    metadata = {"deep": 1}
    for _ in range(90):
        metadata = {"deep": metadata}
    path = pts.save({"x": 1}, "model", metadata=metadata)

    def look():
        with pts.load_checkpoint(path) as checkpoint:
            assert checkpoint.metadata
        return pts.restore(path)

    def restore_below(levels):
        return look() if levels == 0 else restore_below(levels - 1)

    outcomes = set()
    for levels in range(600, 1000, 5):
        try:
            outcomes.add(str(restore_below(levels)))
        except pts.CorruptCheckpointError:
            pytest.fail("reported an intact checkpoint as damaged")
        except (pts.CheckpointError, RecursionError) as error:
            outcomes.add(type(error))
    assert "{'x': 1}" in outcomes
    assert pts.CheckpointError in outcomes
    assert outcomes <= {"{'x': 1}", pts.CheckpointError, RecursionError}  # the stack may overflow before our code runs


def test_metadata_is_restored_exactly():
    metadata = {
        "loss": float("nan"),
        "shape": (1, [2, {"x": None}]),
        "big": 2**100,
        "$odd": {1: b"\xff", None: 1 + 2j},
        "": -0.0,
        "set": {3, 1},
        "text": "é\n\ud800",
    }
    pts.save({}, "model", metadata=metadata)
    with pts.load_checkpoint("model") as checkpoint:
        assert repr(checkpoint.metadata) == repr(metadata)
        assert checkpoint.metadata["shape"] == (1, [2, {"x": None}])
    assert "array" in message_of_save_with_metadata({"x": {"y": np.ones(2)}})
    assert "['x']['y']" in message_of_save_with_metadata({"x": {"y": object()}})


def message_of_save_with_metadata(metadata):
    with pytest.raises(pts.UnsupportedLeafError) as caught:
        pts.save({}, "other", metadata=metadata)
    assert not pathlib.Path("other").exists()
    return str(caught.value)


def test_paths_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert pts.save({"x": 1}, "relative/dir/model") == pathlib.Path("relative/dir/model")
    assert pts.restore(pathlib.Path("relative/dir/model")) == {"x": 1}
    assert pts.save({"x": 2}, "~/model") == tmp_path / "home" / "model"
    assert pts.restore("~/model") == {"x": 2}
    assert not (tmp_path / "~").exists()
    odd = "we[i]rd *?'\" ü\nname.ckpt-1"
    pts.save({"x": 3}, odd)
    assert pts.restore(odd) == {"x": 3}
    pts.save({"x": 4}, "n" * 255)
    assert pts.restore("n" * 255) == {"x": 4}
    pathlib.Path("link").symlink_to("relative/dir/model")
    pts.save({"x": 5}, "link", overwrite=True)
    assert pts.restore("relative/dir/model") == {"x": 5}
    assert pathlib.Path("link").is_symlink()


@pytest.mark.parametrize("path", ["", "ftp://bucket/model", "a\0b", "~no-such-user/model", "\ud800"])
def test_invalid_paths_are_errors(path):
    for call in (lambda: pts.save({}, path), lambda: pts.restore(path)):
        with pytest.raises(ValueError, match="path: expected"):
            call()
    with pytest.raises(TypeError, match="path: expected a str"):
        pts.restore(b"model")
    with pytest.raises(TypeError, match=r"expected a str or a pathlib\.Path, found 5"):
        pts.save({}, 5)
    with pytest.raises(TypeError, match="metadata: expected a dict, found"):
        pts.save({}, "model", metadata=[("a", 1)])


def test_errors_about_missing_checkpoints_say_what_was_found(tmp_path):
    with pytest.raises(pts.CheckpointNotFoundError, match="nothing: expected a checkpoint, found nothing") as caught:
        pts.restore("nothing")
    assert isinstance(caught.value, FileNotFoundError)
    pathlib.Path("file").write_text("x")
    with pytest.raises(pts.CheckpointNotFoundError, match="file: expected a checkpoint, found a file of another kind"):
        pts.restore("file")
    pts.save({}, "run/model-1")
    pts.save({}, "run/model-2")
    with pytest.raises(pts.CheckpointNotFoundError, match=r"run contains checkpoints, the .* model-1, model-2"):
        pts.restore("run/model-3")
    pathlib.Path("run/model-1").rename("run/first")
    pathlib.Path("run/model-2").rename("run/second")
    with pytest.raises(pts.CheckpointNotFoundError, match="it contains checkpoints, the newest last: first, second"):
        pts.restore("run")
    with pytest.raises(pts.CheckpointIOError, match="cannot save to file/model"):
        pts.save({}, "file/model")
    assert pathlib.Path("file").read_text() == "x"


def test_existing_files_are_not_overwritten_without_overwrite():
    pts.save({"x": 1}, "model")
    with pytest.raises(pts.CheckpointExistsError, match="model exists already; pass overwrite=True") as caught:
        pts.save({"x": 2}, "model")
    assert isinstance(caught.value, FileExistsError)
    assert pts.restore("model") == {"x": 1}
    pathlib.Path("empty").mkdir()
    with pytest.raises(pts.CheckpointExistsError):
        pts.save({"x": 1}, "empty")
    pts.save({"x": 1}, "empty", overwrite=True)
    assert pts.restore("empty") == {"x": 1}
    # A damaged checkpoint can be replaced too.
    (pathlib.Path("model") / "index.json").write_bytes(b"")
    pts.save({"x": 3}, "model", overwrite=True)
    assert pts.restore("model") == {"x": 3}


def test_errors_survive_pickling():
    import copy
    import pickle

    error = pts.MismatchError("text", missing=["a"], shape={"b": ((1,), (2,))})
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (str(twin), twin.missing, twin.shape) == ("text", ["a"], {"b": ((1,), (2,))})
    error = pts.CheckpointPermissionError("text", 13)
    assert (str(error), pickle.loads(pickle.dumps(error)).errno) == ("text", 13)
    error = pts.CorruptCheckpointError("text", damaged=["a"])
    assert pickle.loads(pickle.dumps(error)).damaged == ["a"]


def test_every_error_is_a_checkpoint_error_and_a_builtin_error():
    builtins = {
        "CheckpointNotFoundError": FileNotFoundError,
        "CheckpointExistsError": FileExistsError,
        "CorruptCheckpointError": ValueError,
        "MismatchError": ValueError,
        "VariableNotFoundError": KeyError,
        "DuplicateNameError": ValueError,
        "UnsupportedLeafError": TypeError,
        "UnsupportedVersionError": ValueError,
        "CheckpointIOError": OSError,
        "CheckpointPermissionError": PermissionError,
    }
    for name, builtin in builtins.items():
        assert issubclass(getattr(pts, name), pts.CheckpointError)
        assert issubclass(getattr(pts, name), builtin)


def test_swapped_arguments_are_told_in_a_line():
    tree = {f"layer_{i}": np.zeros((100, 100)) for i in range(100)}
    for swapped in (lambda: pts.save("model", tree), lambda: pts.restore(tree, "model")):
        with pytest.raises(TypeError) as caught:
            swapped()
        assert str(caught.value) == (
            "path: expected a str or a pathlib.Path, found an object of the type dict; the order is save(tree, path) "
            "and restore(path, like=tree)"
        )


def test_a_misspelled_ending_is_no_directory():
    for name, meant in (
        ("out.safetensor", ".safetensors"),
        ("out.SafeTensors2", ".safetensors"),
        ("a.msgpak", ".msgpack"),
    ):
        with pytest.raises(ValueError, match=rf"expected the ending {meant}, or none, found"):
            pts.save({"w": 1}, name)
        pts.save({"w": 1}, name, format="native")
    pts.save({"w": 1}, "model.v2")
