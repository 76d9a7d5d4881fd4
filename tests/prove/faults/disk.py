"""A disk of its own, as an image that is mounted, whose power can be cut."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.prove.faults.shim import Action

KINDS = {
    # By default, ext4 writes the data of a renamed file at once, which would hide a missing sync.
    "ext4": (["mkfs.ext4", "-q", "-F"], "loop,noauto_da_alloc"),
    "xfs": (["mkfs.xfs", "-q", "-f"], "loop,nouuid"),
    "btrfs": (["mkfs.btrfs", "-q", "-f"], "loop"),
}
_NBYTES = 400 << 20


def why_not(kind: str) -> str:
    """Return why a disk with this file system cannot be made here, or nothing."""
    if os.uname().sysname != "Linux" or os.geteuid() != 0:
        return "needs root on Linux"
    command = KINDS[kind][0][0]
    if not shutil.which(command):
        return f"needs {command}"
    try:
        with Disk(kind):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"{kind} cannot be mounted here ({error})"


class Disk:
    """A mounted disk, at `root`.

    A power failure is FS_IOC_SHUTDOWN, which drops what is neither on the disk nor in its journal. Where the file
    system has no such call (btrfs), it is a copy of the image at that moment.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.is_copied = kind == "btrfs"
        self.action = Action.KILL if self.is_copied else Action.CUT_POWER
        self._directory = Path(tempfile.mkdtemp(prefix="pytreesaver-disk-"))
        self._image = self._directory / "image"
        self.root = self._directory / "root"
        self.root.mkdir()

    def __enter__(self) -> "Disk":
        try:
            self.format()
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._unmount()
        shutil.rmtree(self._directory)

    def format(self) -> None:
        """Make an empty file system, and mount it."""
        if self.root.is_mount():
            self._unmount()
        with self._image.open("wb") as file:
            file.truncate(_NBYTES)
        _run([*KINDS[self.kind][0], self._image])
        self._mount()

    def come_back(self) -> None:
        """Mount the disk again after its power was cut."""
        if self.is_copied:
            copy = self._directory / "copy"
            _run(["cp", "--sparse=auto", self._image, copy])
            self._unmount()
            copy.replace(self._image)
        else:
            self._unmount()
        self._mount()

    def _mount(self) -> None:
        _run(["mount", "-o", KINDS[self.kind][1], self._image, self.root])

    def _unmount(self) -> None:
        _run(["umount", self.root])


def _run(command: list[str | Path]) -> None:
    subprocess.run(command, check=True, capture_output=True)
