"""`python -m fastnorm`: the console command, where its folder is not on the PATH."""

import sys

from ._cli import main

if __name__ == "__main__":
    sys.exit(main())
