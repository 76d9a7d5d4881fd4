"""Checkpoints of T5X: a tree in msgpack, with arrays beside it that TensorStore wrote."""

from pathlib import Path

import flax.serialization
import numpy as np
import tensorstore as ts

import pytreesaver as pts


def write_t5x(directory, arrays, small):
    """Write what `t5x.checkpoints.Checkpointer` does: https://github.com/google-research/t5x."""

    def specification(name, array):
        metadata = {"shape": list(array.shape), "chunks": [2] * array.ndim, "compressor": {"id": "gzip", "level": 1}}
        store = {"driver": "file", "path": f"{directory}/{name}"}
        spec = {"driver": "zarr", "kvstore": store, "metadata": metadata, "dtype": str(array.dtype)}
        ts.open(spec, create=True).result().write(array).result()
        return {**spec, "kvstore": {**store, "path": name}}  # relative to the checkpoint

    tree = {"version": 3, "optimizer": {"target": {}, "state": {"step": small, "param_states": {}}}}
    for name, array in arrays.items():
        tree["optimizer"]["target"][name] = {"kernel": specification(f"target.{name}.kernel", array)}
        tree["optimizer"]["state"]["param_states"][name] = {"kernel": {"v": None, "v_row": np.zeros(1, np.float32)}}
    Path(directory, "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))


def test_a_run_of_t5x_is_read():
    arrays = {name: np.arange(12, dtype=np.float32).reshape(3, 4) * i for i, name in enumerate(("decoder", "encoder"))}
    for step in (100, 200):
        Path(f"run/checkpoint_{step}").mkdir(parents=True)
        write_t5x(f"run/checkpoint_{step}", arrays, np.int32(step))
    assert pts.latest_checkpoint("run") == Path("run/checkpoint_200")
    tree = pts.restore("run")
    assert tree["version"] == 3
    assert tree["optimizer"]["state"]["step"] == 200
    assert tree["optimizer"]["target"]["encoder"]["kernel"].tolist() == arrays["encoder"].tolist()
    assert tree["optimizer"]["state"]["param_states"]["encoder"]["kernel"]["v"] is None
    like = {"encoder": {"kernel": np.zeros((3, 4), np.float32)}}
    restored = pts.restore("run/checkpoint_100", like, rename={"/": "optimizer/target/"}, unexpected="ignore")
    assert restored["encoder"]["kernel"].tolist() == arrays["encoder"].tolist()
    pts.convert("run/checkpoint_100", "converted.msgpack")
    assert pts.list_variables("converted.msgpack") == pts.list_variables("run/checkpoint_100")
