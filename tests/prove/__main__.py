"""Runs campaigns, and writes what held into docs/reliability.json and the table of docs/reliability.md.

``python -m tests.prove`` runs all, ``python -m tests.prove kills damage`` some, and ``--step 10`` every tenth point.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

from tests.prove import peers, planted, report
from tests.prove.campaigns import concurrency, damage, failing_calls, full_disk, kills, power_cuts, simulated_disk
from tests.prove.faults import disk, shim
from tests.prove.scenarios import EVERY, SCENARIOS

_PROCESSES = 2
_RETENTION = [name for name in SCENARIOS if name.startswith("manager, K") or "keep_every" in name]
"""Runs with other policies make the same calls as others: a kill is tried in all, an error in the others."""


def _each(run: Callable[..., dict], names: Sequence[str]) -> Iterator[str]:
    """Run a campaign for each name, in several processes. Yield its problems, "" for each try that held."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_PROCESSES, mp_context=context) as executor:
        for name, found in zip(names, executor.map(run, [[name] for name in names]), strict=True):
            problems = found[name]
            print(f"  {name}: {sum(not each for each in problems)} of {len(problems)}", flush=True)
            yield from problems


def _unless(why_not: str, run: Callable[..., dict]) -> Iterator[str]:
    """Run a campaign for each scenario, unless there is a reason why it cannot be run here."""
    if why_not:
        print(f"  skipped: {why_not}")
        return
    yield from _each(run, list(SCENARIOS))


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
    "kills": lambda step: _each(partial(kills.run, step=step), list(SCENARIOS)),
    "power cuts on ext4": partial(_power, kind="ext4"),
    "power cuts on xfs": partial(_power, kind="xfs"),
    "power cuts on btrfs": partial(_power, kind="btrfs"),
    "simulated power cuts": lambda step: _each(
        partial(simulated_disk.run, step=step), [*simulated_disk.NAMES, *simulated_disk.RANDOM_RUNS]
    ),
    "failing calls": lambda step: _each(
        partial(failing_calls.run, step=step), [name for name in EVERY if name not in _RETENTION]
    ),
    "full disks": lambda step: _unless(full_disk.why_not(), partial(full_disk.run, step=step)),
    "damage": lambda step: _each(partial(damage.run, step=step), list(damage.NAMES)),
    "concurrency": _concurrency,
    "planted bugs": _planted,
}


def main() -> int:
    """Run the campaigns that the command line names. Return 1 if anything did not hold."""
    parser = argparse.ArgumentParser("python -m tests.prove", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"{', '.join(CAMPAIGNS)}, or peers")
    parser.add_argument("--step", type=int, default=1, help="try every step-th point only")
    parser.add_argument("--require", action="store_true", help="count a campaign that has to be skipped as a failure")
    arguments = parser.parse_args()
    if why_not := shim.why_not():
        print(f"cannot run: {why_not}")
        return 2
    failed, skipped = 0, []
    for name in arguments.names or CAMPAIGNS:
        print(name, flush=True)
        started, record = time.monotonic(), {"date": datetime.now(UTC).date().isoformat()}
        if name == "peers":
            record["libraries"] = {each: peers.run(each) for each in peers.PEERS}
        else:
            try:
                problems = list(CAMPAIGNS[name](arguments.step))
            except Exception as error:
                problems = [f"{name} ended early: {type(error).__name__}: {error}"]
            wrong = [problem for problem in problems if problem]
            failed += len(wrong)
            print(*wrong[:50], sep="\n")
            record |= {"tried": len(problems), "held": len(problems) - len(wrong)}
            print(f"{name}: {record['held']} of {record['tried']} held, {time.monotonic() - started:.0f} s", flush=True)
            if not problems:
                skipped.append(name)
                continue
        report.write(name, record | {"seconds": round(time.monotonic() - started), "step": arguments.step})
    print(f"skipped: {', '.join(skipped) or 'nothing'}")
    return 1 if failed or (skipped and arguments.require) else 0


if __name__ == "__main__":
    sys.exit(main())
