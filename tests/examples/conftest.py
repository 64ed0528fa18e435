"""Makes the scripts in `examples` importable here."""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"

# Last, so that no example hides an installed package of the same name (`evaluate`).
sys.path += [str(EXAMPLES), str(EXAMPLES / "benchmarks")]
