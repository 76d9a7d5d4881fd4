"""CHANGELOG.md has an entry for every version that was released, and for the next one."""

import re
import shutil
import subprocess

import pytest
from packaging.version import Version

from tests.release.changelog import CHANGELOG, entries, notes_to_release

TEXT = "# Changelog\n\n## 0.2.0 (2026-02-01)\n\n* Two.\n\n## 0.1.0 (2026-01-01)\n\n### Saving\n\n* One.\n"


def test_the_changelog_is_in_order():
    found = entries(CHANGELOG.read_text(encoding="utf-8"))
    versions = [Version(entry.version) for entry in found]
    assert versions == sorted(set(versions), reverse=True)
    assert all(entry.notes for entry in found)
    dates = [entry.date or "" for entry in found[1:]]  # only the newest may be unreleased
    assert "" not in dates
    assert dates == sorted(dates, reverse=True)


@pytest.mark.skipif(not (CHANGELOG.parent / ".git").exists() or not shutil.which("git"), reason="needs git")
def test_every_tag_has_an_entry():
    git = ["git", "-c", "safe.directory=*", "-C", CHANGELOG.parent, "tag", "--merged", "HEAD", "--list", "v*"]
    tags = subprocess.run(git, capture_output=True, text=True, check=True).stdout.split()
    released = {f"v{entry.version}" for entry in entries(CHANGELOG.read_text(encoding="utf-8")) if entry.date}
    assert set(tags) <= released


def test_the_notes_of_a_release():
    assert notes_to_release(TEXT, "0.2.0") == "* Two."
    assert notes_to_release(TEXT[: TEXT.index("## 0.2.0")] + TEXT[TEXT.index("## 0.1.0") :], "0.1.0").endswith("* One.")


@pytest.mark.parametrize(
    ("text", "version", "message"),
    [
        (TEXT, "0.3.0", "the newest entry of the changelog: expected 0.3.0, found 0.2.0"),
        (TEXT, "0.1.0", "expected 0.1.0, found 0.2.0"),
        ("# Changelog\n", "0.1.0", "expected 0.1.0, found no entry"),
        (TEXT.replace("2026-02-01", "unreleased"), "0.2.0", "expected a date, found 'unreleased'"),
        (TEXT.replace("* Two.", ""), "0.2.0", "expected notes, found none"),
        (TEXT.replace("## 0.1.0 (", "## 0.1 ("), "0.2.0", "found '## 0.1 (2026-01-01)'"),
    ],
)
def test_a_changelog_that_is_not_ready_is_refused(text, version, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        notes_to_release(text, version)
