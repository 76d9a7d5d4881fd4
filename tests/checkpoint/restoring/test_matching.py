"""Restoring into a template: which leaves match, and the error messages for those that do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import message_of
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import pytreesaver as pts
from pytreesaver.testing import assert_trees_equal


def test_one_error_lists_all_differences_by_name():
    pts.save(
        {
            "params": {"dense": {"kernel": jnp.zeros((784, 256), jnp.bfloat16), "bias": jnp.zeros(256)}},
            "step": 3,
            "old": np.zeros(2),
        },
        "model",
    )
    template = {
        "params": {"dense": {"kernel": jnp.zeros((784, 512)), "bais": jnp.zeros(256)}},
        "step": "three",
    }
    with pytest.raises(pts.MismatchError) as caught:
        pts.restore("model", like=template)
    assert str(caught.value) == (
        "5 variables of model do not match:\n"
        "missing from the checkpoint (1):\n"
        "  params/dense/bais; did you mean 'params/dense/bias'?\n"
        "in the checkpoint but not in the template (2):\n"
        "  old\n"
        "  params/dense/bias\n"
        "with a different shape or dtype (2):\n"
        "  params/dense/kernel: expected float32[784,512], found bfloat16[784,256]\n"
        "  step: expected str, found int\n"
        '(missing="keep" keeps the template\'s own values; unexpected="ignore" ignores extra variables; '
        'mismatched="keep" keeps the template\'s own values of another shape)'
    )
    assert caught.value.missing == ["params/dense/bais"]
    assert caught.value.unexpected == ["old", "params/dense/bias"]
    assert caught.value.shape == {"params/dense/kernel": ((784, 512), (784, 256))}
    assert caught.value.dtype == {"params/dense/kernel": ("float32", "bfloat16"), "step": ("str", "int")}
    assert isinstance(caught.value, ValueError)


def test_missing_and_extra_layers_are_listed_leaf_by_leaf():
    def layers(count):
        return {f"layer_{i}": {"kernel": np.zeros((2, 2)), "bias": np.zeros(2)} for i in range(count)}

    pts.save(layers(16), "deep")
    with pytest.raises(pts.MismatchError) as caught:
        pts.restore("deep", like=layers(12))
    expected = sorted(f"layer_{i}/{leaf}" for i in range(12, 16) for leaf in ("kernel", "bias"))
    assert sorted(caught.value.unexpected) == expected
    for name in expected:
        assert f"\n  {name}\n" in str(caught.value)
    pts.save(layers(12), "shallow")
    with pytest.raises(pts.MismatchError) as caught:
        pts.restore("shallow", like=layers(16))
    assert sorted(caught.value.missing) == expected


def test_a_mistyped_key_among_thousands_is_shown_with_a_suggestion():
    names = [f"encoder/layer_{i}/attention/query" for i in range(3000)]
    pts.save({name: i for i, name in enumerate(names)}, "model")
    template = dict.fromkeys(names, 0)
    template["encoder/layer_1234/atention/query"] = template.pop("encoder/layer_1234/attention/query")
    lines = message_of(pts.MismatchError, lambda: pts.restore("model", like=template)).splitlines()
    assert lines[2] == ("  encoder/layer_1234/atention/query; did you mean 'encoder/layer_1234/attention/query'?")


def test_missing_keep_and_unexpected_ignore():
    pts.save({"a": 1, "b": 2}, "model")
    own = np.arange(3)
    restored = pts.restore("model", like={"a": 0, "c": own}, missing="keep", unexpected="ignore")
    assert restored == {"a": 1, "c": own}
    assert restored["c"] is own
    abstract = {"a": jax.ShapeDtypeStruct((), jnp.int32), "c": jax.ShapeDtypeStruct((), jnp.int32)}
    with pytest.raises(pts.MismatchError, match="missing from the checkpoint") as caught:
        pts.restore("model", like=abstract, missing="keep", unexpected="ignore")
    assert caught.value.missing == ["c"]  # it has no value to keep
    with pytest.raises(ValueError, match="pass one as like="):
        pts.restore("model", missing="keep")
    with pytest.raises(ValueError, match='expected "error" or "keep", found \'ignore\''):
        pts.restore("model", like={}, missing="ignore")
    with pytest.raises(ValueError, match=r"expected .* found 'drop'"):
        pts.restore("model", like={}, unexpected="drop")


def test_values_of_another_shape_can_be_kept_and_are_logged(caplog):
    pts.save({"body": {"w": np.ones((2, 3))}, "head": {"w": np.ones((3, 10)), "b": np.ones(10)}}, "model")
    own = np.zeros((3, 7))
    like = {"body": {"w": np.zeros((2, 3))}, "head": {"w": own, "b": np.zeros(7)}, "new": 5}
    restored = pts.restore("model", like=like, missing="keep", mismatched="keep")
    assert restored["body"]["w"].tolist() == [[1.0] * 3] * 2
    assert restored["head"]["w"] is own
    assert restored["new"] == 5
    (message,) = caplog.messages
    assert message.splitlines() == [
        "model: the template keeps its own values of these variables:",
        "  head/b: expected float64[7], found float64[10]",
        "  head/w: expected float64[3,7], found float64[3,10]",
        "  new: missing from the checkpoint",
    ]


def test_only_shapes_can_be_mismatched():
    pts.save({"a": np.ones(3), "b": np.ones(3), "c": np.ones(3)}, "model")
    like = {"a": np.zeros(3, np.int32), "b": jax.ShapeDtypeStruct((4,), jnp.float32), "c": np.zeros(4)}
    with pytest.raises(pts.MismatchError) as caught:
        pts.restore("model", like=like, mismatched="keep")
    assert caught.value.dtype.keys() == {"a", "b"}
    assert caught.value.shape.keys() == {"b"}  # it has no value to keep
    reshaped = pts.restore(
        "model",
        {"a": np.zeros((3, 1)), "b": np.zeros((3, 2))},
        only=["a", "b"],
        reshape=True,
        mismatched="keep",
        unexpected="ignore",
    )
    assert reshaped["a"].tolist() == [[1.0]] * 3
    assert not reshaped["b"].any()
    with pytest.raises(ValueError, match="pass one as like="):
        pts.restore("model", mismatched="keep")
    with pytest.raises(ValueError, match='expected "error" or "keep", found \'ignore\''):
        pts.restore("model", like={}, mismatched="ignore")


def test_no_array_is_read_if_the_template_does_not_match(monkeypatch):
    from pytreesaver.formats.indexed.reader import IndexedReader

    pts.save({"a": np.zeros(3), "b": np.zeros(3)}, "model")
    monkeypatch.setattr(IndexedReader, "read", lambda *args, **kwargs: pytest.fail("read an array"))
    with pytest.raises(pts.MismatchError):
        pts.restore("model", like={"a": np.zeros(3), "b": np.zeros(4)})


LOSSLESS = [
    (np.float32([1, 2]), jnp.zeros(2)),
    (jnp.ones(2), np.zeros(2, np.float32)),
    (np.ones(2, ">f4"), np.zeros(2, "<f4")),
    (np.ones(2, "<f4"), np.zeros(2, ">f4")),
    (jnp.int32(7), 0),
    (7, jnp.int32(0)),
    (7, np.int8(0)),
    (7, np.uint8(0)),
    (np.uint64(2**63), 0),
    (2**63, np.uint64(0)),
    (np.bool_(True), False),
    (True, jnp.bool_(False)),
    (np.float16(0.5), 0.0),
    (0.5, jnp.bfloat16(0)),
    (float("nan"), np.float32(0)),
    (float("-inf"), jnp.float16(0)),
    (1 + 2j, np.complex64(0)),
    (np.complex64(1 + 2j), 0j),
    (np.float32(1), np.zeros((), np.float32)),
    (jnp.asarray(1.0), jnp.float32(0)),
    (jnp.float32(1), jnp.asarray(0.0)),
]


@pytest.mark.parametrize(("stored", "wanted"), LOSSLESS, ids=repr)
def test_lossless_conversions_to_the_leaf_kind_of_the_template(stored, wanted):
    pts.save({"x": stored}, "model")
    restored = pts.restore("model", like={"x": wanted})["x"]
    assert type(restored) is type(wanted)
    np.testing.assert_array_equal(np.asarray(restored), np.asarray(stored))
    if hasattr(wanted, "dtype"):
        assert restored.dtype == wanted.dtype
    if isinstance(wanted, jax.Array):
        assert restored.weak_type == wanted.weak_type


LOSSY = [
    (jnp.ones(2), np.zeros(2, np.float64), "expected float64[2], found float32[2]"),
    (np.ones(2, np.int64), np.zeros(2, np.int32), "expected int32[2], found int64[2]"),
    (300, np.int8(0), "expected int8[], found int (300 is not representable as int8)"),
    (-1, np.uint64(0), "expected uint64[], found int (-1 is not representable as uint64)"),
    (2**70, jnp.int32(0), f"expected int32[], found int ({2**70} is not representable as int32)"),
    (0.1, jnp.float32(0), "expected float32[], found float (0.1 is not representable as float32)"),
    (1e300, jnp.asarray(0.0), "expected float32[], found float (1e+300 is not representable as float32)"),
    (
        complex("inf+1e300j"),
        jnp.asarray(0j),
        "expected complex64[], found complex ((inf+1e+300j) is not representable as complex64)",
    ),
    (2**40, jnp.asarray(0), "expected int32[], found int (1099511627776 is not representable as int32)"),
    (1, 1.0, "expected float, found int"),
    (True, 1, "expected int, found bool"),
    (1, True, "expected bool, found int"),
    (1, jnp.float32(0), "expected float32[], found int"),
    (jnp.float32(1), 0, "expected int, found float32[]"),
    (jnp.ones(1), 0.0, "expected float, found float32[1]"),
    ("a", b"a", "expected bytes, found str"),
    ("a", np.zeros(1), "expected float64[1], found str"),
    (np.zeros(1, np.uint8), "a", "expected str, found uint8[1]"),
    (jnp.zeros((2, 3)), jnp.zeros((3, 2)), "expected float32[3,2], found float32[2,3]"),
    (jax.random.key(0), jnp.zeros(2, jnp.uint32), "expected uint32[2], found key<threefry2x32>[]"),
    (jnp.zeros(2, jnp.uint32), jax.random.key(0), "expected key<threefry2x32>[], found uint32[2]"),
    (jax.random.key(0, impl="rbg"), jax.random.key(0), "expected key<threefry2x32>[], found key<rbg>[]"),
    (jax.random.key(0), np.zeros((), "U3"), "expected U3[], found key<threefry2x32>[]"),
    (np.timedelta64(5, "D"), 0, "expected int, found timedelta64[D][]"),
    (5, np.timedelta64(0, "ns"), "expected timedelta64[ns][], found int"),
    (10**5000, jnp.int32(0), "expected int32[], found int (a number of 16610 bits is not representable as int32)"),
]


@pytest.mark.parametrize(("stored", "wanted", "message"), LOSSY, ids=[message for *_, message in LOSSY])
def test_lossy_conversions_are_errors(stored, wanted, message):
    pts.save({"x": stored}, "model")
    assert f"\n  x: {message}" in message_of(pts.MismatchError, lambda: pts.restore("model", like={"x": wanted}))


def test_64_bit_leaves_are_never_truncated_to_32_bits():
    with jax.enable_x64(True):
        tree = {"count": jnp.int64(2**40), "numpy": np.int64(2**40), "narrow": jnp.int32(1)}
        pts.save(tree, "model")
    message = message_of(pts.MismatchError, lambda: pts.restore("model"))
    assert message == (
        "1 variable of model does not match:\n"
        "with a different shape or dtype (1):\n"
        "  count: expected int32[], found int64[] (JAX has no 64-bit arrays while jax_enable_x64 is off)\n"
        '(jax.config.update("jax_enable_x64", True) enables 64 bits, as_numpy=True returns NumPy arrays; '
        "cast=True converts to 32 bits)"
    )
    assert pts.restore("model", as_numpy=True)["count"] == 2**40
    with jax.enable_x64(True):
        assert_trees_equal(pts.restore("model"), tree)
    template = {**tree, "count": jax.ShapeDtypeStruct((), np.dtype("int64"))}
    assert "count: expected int64[], found int64[]" in message_of(
        pts.MismatchError, lambda: pts.restore("model", like=template)
    )
    assert pts.restore("model", like=template, as_numpy=True)["count"] == 2**40
    numpy_template = {**tree, "count": np.int64(0)}
    assert pts.restore("model", like=numpy_template)["count"] == 2**40


def test_the_template_determines_the_sharding():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("x"))
    columns = NamedSharding(mesh, PartitionSpec(None, "x"))
    values = jnp.arange(16 * 8.0).reshape(16, 8)
    keys = jax.random.split(jax.random.key(1), 8)
    pts.save({"w": jax.device_put(values, rows), "keys": keys, "weak": jnp.asarray(1.0)}, "model")
    compiled = jax.jit(lambda x: x, out_shardings=columns)(values).sharding
    for sharding in (rows, columns, compiled, SingleDeviceSharding(jax.devices()[3])):
        template = {
            "w": jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=sharding),
            "keys": jax.device_put(keys, SingleDeviceSharding(jax.devices()[2])),
            "weak": jax.device_put(jnp.asarray(0.0), jax.devices()[5]),
        }
        restored = pts.restore("model", like=template)
        assert restored["w"].sharding == sharding
        np.testing.assert_array_equal(restored["w"], values)
        assert restored["keys"].devices() == {jax.devices()[2]}
        np.testing.assert_array_equal(jax.random.key_data(restored["keys"]), jax.random.key_data(keys))
        assert restored["weak"].devices() == {jax.devices()[5]}
        assert restored["weak"].weak_type


def test_a_restored_array_works_with_arrays_on_any_device():
    pts.save({"w": jnp.ones(8)}, "model")
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    batch = jax.device_put(jnp.ones(8), NamedSharding(mesh, PartitionSpec("x")))
    for restored in (pts.restore("model"), pts.restore("model", like={"w": jnp.zeros(8)})):
        assert jax.jit(jnp.dot)(restored["w"], batch) == 8  # raises if it is committed


def test_restored_arrays_can_be_donated_or_modified():
    pts.save({"jax": jnp.arange(1000.0), "numpy": np.arange(1000.0)}, "model")
    restored = pts.restore("model")
    result = jax.jit(lambda x: x + 1, donate_argnums=0)(restored["jax"])
    assert result[999] == 1000
    restored["numpy"][:] = 0
    again = pts.restore("model")
    assert again["jax"][999] == 999
    assert again["numpy"][999] == 999


def test_the_abstract_arrays_of_a_state_as_template():
    def init():
        return {"params": {"w": jnp.ones((3, 2), jnp.bfloat16)}, "step": 0, "key": jax.random.key(5)}

    state = {**init(), "step": 12}
    pts.save(state, "model")
    restored = pts.restore("model", like=jax.eval_shape(init))
    assert_trees_equal(restored, {**state, "step": jnp.asarray(12)})


def test_an_unsupported_leaf_in_the_template_is_an_error():
    pts.save({"f": 1}, "model")
    with pytest.raises(pts.UnsupportedLeafError, match="f: expected an array, a ShapeDtypeStruct or a value"):
        pts.restore("model", like={"f": print})


def test_two_leaves_with_the_same_name_in_the_template_are_an_error():
    pts.save({"a/b": 1}, "model")
    with pytest.raises(pts.DuplicateNameError, match="a/b"):
        pts.restore("model", like={"a/b": 1, "a": {"b": 2}})


def test_a_flat_checkpoint_is_restored_into_a_nested_template():
    pts.save({"encoder/w": 1, "encoder/b": 2}, "flat")
    assert pts.restore("flat", like={"encoder": {"w": 0, "b": 0}}) == {"encoder": {"w": 1, "b": 2}}


def test_a_sharding_that_does_not_fit_is_a_mismatch():
    pts.save({"w": jnp.zeros(7)}, "model")
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    template = {"w": jax.ShapeDtypeStruct((7,), jnp.float32, sharding=sharding), "v": 1}
    with pytest.raises(pts.MismatchError, match=r"\n  w: expected float32\[7\] with NamedSharding") as caught:
        pts.restore("model", like=template)
    assert caught.value.missing == ["v"]


def test_options_passed_to_savers_and_managers_are_checked():
    manager = pts.CheckpointManager("run", block=True)
    with pytest.raises(TypeError, match="restore_or_init has no argument 'onyl'"):
        manager.restore_or_init({"a": 1}, onyl="a")
    with pytest.raises(ValueError, match="missing: expected"):
        manager.restore_or_init({"a": 1}, missing="kepe")
    manager.save(1, {"a": 1, "b": np.ones(2)})
    assert manager.restore(only="a") == {"a": 1}
    assert manager.restore({"x": 0}, rename={"x": "a"}, only="x", step=1) == {"x": 1}
    with pytest.raises(TypeError, match="restore has no argument 'onyl'"):
        manager.restore(onyl="a")
    saver = pts.Saver({"A": "a"})
    path = saver.save({"a": 1}, "saved")
    with pytest.raises(TypeError, match=r"Saver\.restore has no argument 'onyl'"):
        saver.restore(path, onyl="a")
    with pytest.raises(ValueError, match="rename: cannot be combined with a var_list"):
        saver.restore(path, rename={"b": "A"})
    with pytest.raises(pts.VariableNotFoundError, match=r"\(var_list & 'A'\) selects nothing"):
        saver.restore(path, only="A")
    reshaping = pts.Saver(reshape=True)
    path = reshaping.save({"w": np.ones(2)}, "shaped")
    assert reshaping.restore(path, {"w": np.ones((2, 1))})["w"].shape == (2, 1)
    with pytest.raises(pts.MismatchError):
        reshaping.restore(path, {"w": np.ones((2, 1))}, reshape=False)


def test_an_abstract_leaf_has_nothing_to_keep():
    path = pts.save({"a": 1}, "model")
    like = {"z": jax.ShapeDtypeStruct((1,), np.int32)}
    message = message_of(pts.MismatchError, lambda: pts.restore(path, like, missing="keep", unexpected="ignore"))
    assert message.endswith("(a ShapeDtypeStruct has no value to keep)")


def test_damaged_text_where_the_template_has_an_array_is_a_mismatch_like_any_other():
    path = pts.save({"text": "réseau"}, "model")
    data = next(path.glob("*.safetensors"))
    data.write_bytes(data.read_bytes().replace("é".encode(), b"\xff\xff"))
    with pytest.raises(pts.MismatchError, match="text: expected float32"):
        pts.restore(path, like={"text": np.zeros(3, np.float32)}, verify=False)
