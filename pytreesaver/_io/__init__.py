"""File I/O: atomic commits, parallel reads and writes, checksums. Independent of trees."""

import sys

if sys.platform == "win32":
    raise ImportError(
        "pytreesaver: expected Linux or macOS, whose file locks and syncs it needs, found Windows, which is not "
        "supported yet; use the Windows Subsystem for Linux"
    )
