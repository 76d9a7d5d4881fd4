"""Start a training process, kill it at a random moment and check its checkpoints. The argument is the repeat count."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

import pytreesaver as pts
import pytreesaver._savers.manager  # imported before the fork, which makes the children faster
from pytreesaver.testing import assert_trees_equal

RUN = Path("run")
LIMIT = 3
TABLE = np.arange(30_000.0)


def tree(step):
    values = np.random.default_rng(step)
    part = np.random.default_rng(step // 3).normal(size=20_000)  # which an incremental save does not write each time
    layers = [values.normal(size=500) for _ in range(20)]
    return {"w": values.normal(size=20_000), "part": part, "table": TABLE, "layers": layers, "step": step}


def train(report, *, block, incremental):
    manager = pts.CheckpointManager(RUN, max_to_keep=LIMIT, block=block, incremental=incremental)
    step = manager.restore()["step"] + 1 if manager.latest_step() is not None else 0
    while True:
        manager.save(step, tree(step))
        manager.wait_until_finished()
        os.write(report, b"%d\n" % step)
        step += 1


def main(kills):
    chance = random.Random(0)
    finished = -1
    interrupted = 0
    most = LIMIT
    for kill in range(kills):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            train(writer, block=kill % 2 == 0, incremental=kill % 4 >= 2)
        os.close(writer)
        time.sleep(chance.uniform(0.01, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reader, "rb") as reports:
            steps = [int(line) for line in reports.read().split()]
        if steps:
            finished = steps[-1]
        interrupted += bool(list(RUN.glob(".*.tmp")))
        if finished < 0:
            continue
        manager = pts.CheckpointManager(RUN, max_to_keep=LIMIT)
        latest = manager.latest_step()
        assert latest in (finished, finished + 1), (latest, finished)
        assert_trees_equal(manager.restore(), tree(latest))
        assert pts.latest_checkpoint(RUN) == RUN / f"ckpt-{latest}"
        steps_on_disk = manager.all_steps()
        assert set(range(max(0, latest - LIMIT + 1), latest + 1)) <= set(steps_on_disk)
        most = (LIMIT if steps else most) + 1  # each kill can leave one more, until a save succeeds
        assert len(steps_on_disk) <= most, steps_on_disk
        for step in steps_on_disk:
            assert_trees_equal(manager.restore(step=step), tree(step))
        finished = latest
    print(f"{kills} kills, {interrupted} of them in the middle of writing; the last step was {finished}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
