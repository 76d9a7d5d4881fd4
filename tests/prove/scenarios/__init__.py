"""What is interrupted: every way of the library to change a disk, and to read from one."""

from tests.prove.scenarios.reading import READING
from tests.prove.scenarios.runs import RUNS
from tests.prove.scenarios.saving import SAVING
from tests.prove.scenarios.scenario import Scenario

SCENARIOS: dict[str, Scenario] = SAVING | RUNS
"""Those that change the disk."""

READERS: dict[str, Scenario] = READING
"""Those that read from it."""

EVERY: dict[str, Scenario] = SCENARIOS | READERS
