"""`python -m modeling_bmdetr.cli`, for where the command `bmdetr` is not on the path."""

import sys

from . import main

sys.exit(main())
