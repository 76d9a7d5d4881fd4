"""``python -m pytreesaver``, the same as the command ``pytreesaver``."""

import sys

from pytreesaver._cli import main

if __name__ == "__main__":
    sys.exit(main())
