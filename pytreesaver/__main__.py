"""``python -m pytreesaver`` is the command line."""

import sys

from pytreesaver._cli import main

if __name__ == "__main__":
    sys.exit(main())
