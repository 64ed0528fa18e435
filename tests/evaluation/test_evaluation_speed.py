"""The benchmark script runs; how long it takes is for a reader to see."""

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "evaluation_speed.py"


def test_benchmark_runs(capsys):
    runpy.run_path(str(SCRIPT))["main"](["--queries", "12", "--repeats", "1"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "12 queries x 10 predictions and highlights, best of 1:"
    assert [line.split()[-1] for line in printed[1:]] == ["s", "s"]
