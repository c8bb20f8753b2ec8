"""`python -m fastnorm`: the console command, where its folder is not on the PATH."""

import sys

from ._cli import main

sys.exit(main())
