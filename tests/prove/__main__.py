"""Runs campaigns, and writes what held into docs/reliability.json and the table of docs/reliability.md.

``python -m tests.prove`` runs all, ``python -m tests.prove kills power-cuts-on-ext4`` some, and ``--step 10`` every
tenth point. A sample does not replace the result of a fuller run.
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

from tests.prove import peers, planted, pool, report
from tests.prove.campaigns import concurrency, damage, failing_calls, full_disk, kills, power_cuts, simulated_disk
from tests.prove.faults import disk, shim
from tests.prove.scenarios import EVERY, SCENARIOS

_RETENTION = [name for name in SCENARIOS if name.startswith("manager, K") or "keep_every" in name]
"""Runs with other policies make the same calls as others: a kill is tried in all, an error in the others."""


def _unless(why_not: str, run: Callable[..., dict]) -> Iterator[str]:
    """Run a campaign for each scenario, unless there is a reason why it cannot be run here."""
    if why_not:
        print(f"  skipped: {why_not}")
        return
    yield from pool.each(run, list(SCENARIOS))


def _power(step: int, kind: str) -> Iterator[str]:
    return _unless(disk.why_not(kind), partial(power_cuts.run, kind, step=step, times=max(1, 100 // step)))


def _concurrency(step: int) -> Iterator[str]:
    for what, (count, problem) in concurrency.run(60 / step, 5000 // step).items():
        print(f"  {what}: {count} {problem}", flush=True)
        yield from [problem and f"{what}: {problem}"] + [""] * (count - 1)


def _planted(step: int) -> Iterator[str]:
    for name in list(planted.BUGS)[::step]:
        is_caught = planted.run([name])[name]
        print(f"  {name}: {'caught' if is_caught else 'NOT CAUGHT'}", flush=True)
        yield "" if is_caught else f"{name}: not caught"


CAMPAIGNS: dict[str, Callable[[int], Iterator[str]]] = {
    "kills": lambda step: pool.each(partial(kills.run, step=step), list(SCENARIOS)),
    "power cuts on ext4": partial(_power, kind="ext4"),
    "power cuts on xfs": partial(_power, kind="xfs"),
    "power cuts on btrfs": partial(_power, kind="btrfs"),
    "simulated power cuts": lambda step: pool.each(
        partial(simulated_disk.run, step=step), [*simulated_disk.NAMES, *simulated_disk.RANDOM_RUNS]
    ),
    "failing calls": lambda step: pool.each(
        partial(failing_calls.run, step=step), [name for name in EVERY if name not in _RETENTION]
    ),
    "full disks": lambda step: _unless(full_disk.why_not(), partial(full_disk.run, step=step)),
    "damage": lambda step: pool.each(partial(damage.run, step=step), list(damage.NAMES)),
    "concurrency": _concurrency,
    "planted bugs": _planted,
}


_WITHOUT_SHIM = ("simulated power cuts", "damage", "concurrency")


def _wrong_in(name: str, step: int) -> list[str] | None:
    """Run a campaign, and record what came of it. Return its problems, or None if it had to be skipped."""
    if name not in _WITHOUT_SHIM and (why_not := shim.why_not()):
        print(f"  skipped: {why_not}")
        return None
    started, record = time.monotonic(), report.heading()
    if name == "peers":
        record["libraries"] = {each: peers.run(each) for each in peers.PEERS}
        ours = {each: found for each, found in record["libraries"].items() if each.startswith("pytreesaver")}
        wrong = [f"{each}: {found}" for each, found in ours.items() if not peers.has_held(found)]
    else:
        problems = list(CAMPAIGNS[name](step))
        if not problems:
            return None
        wrong = [problem for problem in problems if problem]
        record |= {"tried": len(problems), "held": len(problems) - len(wrong)}
        print(f"{name}: {record['held']} of {record['tried']} held, {time.monotonic() - started:.0f} s")
    print(*wrong[:50], sep="\n", flush=True)
    print(report.write(name, record | {"seconds": round(time.monotonic() - started), "step": step}), flush=True)
    return wrong


def main() -> int:
    """Run the campaigns that the command line names. Return 1 if anything did not hold."""
    parser = argparse.ArgumentParser("python -m tests.prove", description=__doc__)
    known = [*CAMPAIGNS, "peers"]
    parser.add_argument("names", nargs="*", help=f"all but peers, or some of: {', '.join(known)}")
    parser.add_argument("--step", type=int, default=1, help="try every step-th point only, from a random one on")
    parser.add_argument("--require", action="store_true", help="count a campaign that has to be skipped as a failure")
    arguments = parser.parse_args()
    names = [name.replace("-", " ") for name in arguments.names] or list(CAMPAIGNS)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"expected some of {', '.join(known)}; found {', '.join(unknown)}")
    if arguments.step < 1:
        parser.error(f"--step: expected a positive number, found {arguments.step}")
    if why_not := report.why_not():
        parser.error(why_not)
    pool.end_on_signals()
    failed, skipped = 0, []
    for name in names:
        print(name, flush=True)
        try:
            wrong = _wrong_in(name, arguments.step)
        except SystemExit:
            print(f"interrupted: what {name} has tried is not recorded")
            raise
        except Exception:
            traceback.print_exc()
            wrong = [f"{name} ended early, and is not recorded"]
            print(*wrong)
        if wrong is None:
            skipped.append(name)
        else:
            failed += len(wrong)
    print(f"skipped: {', '.join(skipped) or 'nothing'}")
    return 1 if failed or (skipped and arguments.require) else 0


if __name__ == "__main__":
    sys.exit(main())
