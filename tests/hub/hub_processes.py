"""Starts the scripts of `processes/` as processes of their own: with the library, or where only torch, transformers and
NumPy are installed."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

SCRIPTS = Path(__file__).parent / "processes"
REPOSITORY = Path(__file__).parents[2]
ALLOWED = ("torch", "transformers", "numpy")


def run_script(
    name: str, folder: Path, environment: dict[str, str], *, site: Path | None = None, arguments: Any = None
) -> dict[str, Any]:
    """Runs `processes/<name>.py` in an empty folder without standard input, and returns what it reports.

    Args:
        folder: Where the process may write; its working directory is an empty folder in it.
        environment: Variables in addition to this process's.
        site: The only place that packages are imported from, see `make_bare_site`; None for the tests' environment.
        arguments: Handed to the script as JSON.
    """
    workplace, report = folder / f"{name}_workplace", folder / f"{name}.json"
    workplace.mkdir(parents=True)
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    variables |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "", **environment}
    if site is None:
        command = [sys.executable, str(SCRIPTS / f"{name}.py")]
        variables["PYTHONPATH"] = os.pathsep.join(map(str, (SCRIPTS, REPOSITORY / "tests", REPOSITORY)))
    else:
        # -I and -S leave only the standard library; the script may import its neighbours and what `site` holds.
        start = f"import runpy, sys; sys.path[:0] = {[str(SCRIPTS), str(site)]!r}; runpy.run_path(sys.argv[1], run_name"
        command = [sys.executable, "-I", "-S", "-c", f"{start}='__main__')", str(SCRIPTS / f"{name}.py")]
    finished = subprocess.run(
        [*command, str(report), json.dumps(arguments)],
        cwd=workplace,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert finished.returncode == 0, f"{name} failed:\n{finished.stdout[-2000:]}\n{finished.stderr[-6000:]}"
    return json.loads(report.read_text())


def make_bare_site(folder: Path) -> Path:
    """A folder to import from that holds torch, transformers, NumPy and what these require, and nothing else."""
    for distribution in _with_requirements(ALLOWED):
        root = Path(str(distribution.locate_file("")))
        for top in {file.parts[0] for file in distribution.files or ()}:
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(root / top)
    return folder


def _with_requirements(names: tuple[str, ...]) -> list[importlib.metadata.Distribution]:
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        requirements = map(Requirement, found[name].requires or ())
        waiting += [item.name for item in requirements if item.marker is None or item.marker.evaluate({"extra": ""})]
    return list(found.values())
