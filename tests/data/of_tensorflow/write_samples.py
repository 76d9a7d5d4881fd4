"""Write the TensorFlow checkpoints of this directory, with TensorFlow 2.21: ``python write_samples.py DIRECTORY``.

``tensors.json`` lists every tensor of every checkpoint, as TensorFlow's own reader gives it.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

tf1 = tf.compat.v1


def exotic(directory: Path) -> None:
    """Dtypes that are rare, and strings that NumPy cannot hold."""
    values = {
        "float8/e5m2": tf.cast([1.0, -2.0, 448.0], tf.dtypes.experimental.float8_e5m2),
        "float8/e4m3fn": tf.cast([1.0, -2.0, 448.0], tf.dtypes.experimental.float8_e4m3fn),
        "int4": tf.cast([-8, 7, 0], tf.dtypes.experimental.int4),
        "uint4": tf.cast([15, 7, 0], tf.dtypes.experimental.uint4),
        "qint8": tf.quantization.quantize([1.0, -1.0], -1.0, 1.0, tf.qint8).output,
        "quint8": tf.quantization.quantize([1.0, 0.0], 0.0, 1.0, tf.quint8).output,
        "qint32": tf.bitcast(tf.constant([5, -5]), tf.qint32),
        "strings/ending_in_nul": tf.constant([[b"a\0", b""], [b"\0", b"plain"]]),
        "strings/one_long": tf.constant([b"x" * 300, *[b""] * 9]),
        "scalar/nul": tf.constant(b"\0\0"),
        "variant": tf.raw_ops.OptionalFromValue(components=[tf.ones(2)]),
    }
    write(directory / "exotic.ckpt", values)


def write(prefix: Path, values: dict[str, tf.Tensor], slices: dict[str, str] | None = None) -> None:
    names = sorted(values)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[(slices or {}).get(name, "") for name in names],
        tensors=[values[name] for name in names],
    )


def irregular_slices(directory: Path) -> None:
    """A matrix in slices that form no grid: the first row, and the rest in two halves of columns."""
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    parts = [("4 6 0,1:-", whole[:1]), ("4 6 1,3:0,2", whole[1:, :2]), ("4 6 1,3:2,4", whole[1:, 2:])]
    tf.raw_ops.SaveV2(
        prefix=str(directory / "irregular.ckpt"),
        tensor_names=["w"] * 3,
        shape_and_slices=[each for each, _ in parts],
        tensors=[part for _, part in parts],
    )


def many(directory: Path) -> None:
    """So many tensors that the index has several blocks."""
    write(directory / "many.ckpt", {f"layer_{i:04}/{'long_name_' * 12}/weight": tf.constant([i]) for i in range(2500)})


def objects(directory: Path) -> None:
    """An object-based checkpoint with lists, dicts, names to escape, and Keras 3 with an optimizer."""
    root = tf.train.Checkpoint()
    root.step = tf.Variable(7, dtype=tf.int64)
    root.layers = [tf.Module(), tf.Module()]
    for i, layer in enumerate(root.layers):
        layer.w = tf.Variable(tf.fill([2, 2], float(i)))
    root.table = {"a/b": tf.Variable(1.0), "c.d": tf.Variable(2.0)}
    root.save(str(directory / "objects" / "ckpt"))

    tf.keras.utils.set_random_seed(0)
    model = tf.keras.Sequential(
        [tf.keras.Input((3,)), tf.keras.layers.Dense(4), tf.keras.layers.BatchNormalization(), tf.keras.layers.Dense(2)]
    )
    optimizer = tf.keras.optimizers.Adam()
    model.compile(optimizer, "mse")
    model.fit(np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32), verbose=0)
    tf.train.Checkpoint(model=model, optimizer=optimizer).save(str(directory / "keras3" / "ckpt"))


def program_of_tf1(directory: Path) -> None:
    """A run of a TF1 program with an optimizer, three checkpoints and their graphs."""
    with tf1.Graph().as_default():
        inputs = tf1.placeholder(tf.float32, [None, 4], name="inputs")
        kernel = tf1.get_variable("dense/kernel", [4, 3], initializer=tf1.glorot_uniform_initializer(seed=1))
        bias = tf1.get_variable("dense/bias", [3], initializer=tf1.zeros_initializer())
        step = tf1.train.get_or_create_global_step()
        loss = tf1.reduce_mean((tf1.matmul(inputs, kernel) + bias - 1.0) ** 2)
        train = tf1.train.AdamOptimizer(0.1).minimize(loss, global_step=step)
        saver = tf1.train.Saver(max_to_keep=2)
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            for _ in range(3):
                for _ in range(10):
                    session.run(train, {inputs: np.eye(4)})
                saver.save(session, "tf1_run/model.ckpt", global_step=step)


def sharded_by_size(directory: Path) -> None:
    """A checkpoint whose variables TensorFlow cut into shards of a limited size."""
    root = tf.train.Checkpoint(big=tf.Variable(tf.reshape(tf.range(3000.0), [100, 30])), small=tf.Variable(1.0))
    options = tf.train.CheckpointOptions(
        experimental_sharding_callback=tf.train.experimental.MaxShardSizePolicy(max_shard_size=4000)
    )
    root.write(str(directory / "by_size.ckpt"), options)


def version_1(directory: Path) -> None:
    """A file of version 1."""
    tf.raw_ops.SaveSlices(
        filename=str(directory / "version_1.ckpt"),
        tensor_names=["w"],
        shapes_and_slices=[""],
        data=[tf.constant([1.0, 2.0])],
    )


def listed(prefix: str) -> dict[str, object]:
    reader = tf.train.load_checkpoint(prefix)
    tensors = {}
    for name, dtype in sorted(reader.get_variable_to_dtype_map().items()):
        shape = reader.get_variable_to_shape_map()[name]
        try:
            found = reader.get_tensor(name)
            value = np.array(found, object) if dtype == tf.string else np.asarray(found)
        except Exception as error:
            tensors[name] = {"dtype": dtype.name, "shape": shape, "error": type(error).__name__}
            continue
        if dtype == tf.string:
            content = b"".join(len(each).to_bytes(8, "little") + each for each in value.reshape(-1))
        else:
            content = value.tobytes()
        tensors[name] = {"dtype": dtype.name, "shape": shape, "sha256": hashlib.sha256(content).hexdigest()}
    return tensors


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    os.chdir(directory)
    here = Path()
    for write_some in (exotic, irregular_slices, many, objects, program_of_tf1, sharded_by_size, version_1):
        print(write_some.__name__)
        write_some(here)
    prefixes = sorted(str(path.with_suffix("")) for path in here.rglob("*.index"))
    tensors = {prefix: listed(prefix) for prefix in prefixes}
    tensors["many.ckpt"] = dict(list(tensors["many.ckpt"].items())[::100])
    (here / "tensors.json").write_text(json.dumps(tensors, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
