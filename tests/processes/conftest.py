import pytest
from processes.team import Team


@pytest.fixture(scope="session")
def pair():
    """Two processes with two devices each."""
    team = Team(2)
    yield team
    team.close()
