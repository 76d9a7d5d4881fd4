"""The process that fuzzes one parser, guided by its coverage. It may be killed by what it finds.

    python tests/fuzz/worker.py TARGET SECONDS EXECUTIONS DIRECTORY

Bad inputs, and what is wrong with them, are written into the directory, and so are those that reach new code.
"""

import hashlib
import importlib
import json
import logging
import pkgutil
import sys
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

LEFT_OUT = ("pytreesaver._cli", "pytreesaver.testing", "pytreesaver.__main__", "pytreesaver.inspect_checkpoint")
MOST_NBYTES = 1 << 16


def main():
    """Fuzz until the time is over."""
    import atheris

    name, seconds, executions, directory = sys.argv[1:]
    with atheris.instrument_imports(include=["pytreesaver"], enable_loader_override=False):
        import pytreesaver

        for module in pkgutil.walk_packages(pytreesaver.__path__, "pytreesaver."):
            if not module.name.startswith(LEFT_OUT):
                importlib.import_module(module.name)
    logging.getLogger("pytreesaver").setLevel(logging.CRITICAL + 1)

    from fuzz.by_name import target_named
    from fuzz.execution import Violation, checked, limit_memory, next_input, warm_up
    from fuzz.targets import workspace

    workspace.PARENT = directory
    target = target_named(name)
    found = _Findings(Path(directory))
    warm_up(target)
    limit_memory(8 << 30 if name == "orbax" else 1 << 30)

    def execute(content):
        try:
            checked(target.run, content)
        except Violation as problem:
            found.add(content, str(problem))

    def mutate(content, most, seed):
        random = Random(seed)
        changed = atheris.Mutate(content, most) if random.random() < 0.1 else next_input(target, content, random)
        return changed if len(changed) <= most else content

    corpora = [f"{directory}/reached", f"{directory}/seeds"]
    for i, seed in enumerate(target.seeds):
        (Path(directory) / "seeds" / str(i)).write_bytes(seed)
    options = [f"-max_total_time={seconds}", f"-runs={executions}", f"-max_len={MOST_NBYTES}", "-timeout=25"]
    options += ["-rss_limit_mb=0", f"-artifact_prefix={directory}/killed-", "-len_control=0", "-reload=0"]
    atheris.Setup([name, *options, *corpora], execute, custom_mutator=mutate)
    atheris.Fuzz()


class _Findings:
    """The bad inputs so far: one for each thing that is wrong."""

    def __init__(self, directory):
        self._directory = directory
        self._known = set()

    def add(self, content, problem):
        kind = problem.partition(":")[0] + problem.rpartition(" at ")[2]
        if kind not in self._known:
            self._known.add(kind)
            file = self._directory / f"bad-{hashlib.sha256(content).hexdigest()[:12]}"
            file.write_bytes(content)
            file.with_suffix(".json").write_text(json.dumps(problem))


if __name__ == "__main__":
    main()
