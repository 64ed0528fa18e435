"""Whatever ends a task, no file is half written under its name, and running it again gives the undisturbed result.

Small here, larger among the slow tests, and by hand with `BMDETR_KILLS=50 pytest -m long tests/faults`. The counts of
the last long run stand in docs/reliability.md.
"""

import json
import os
import sys
import time

import pytest

if sys.platform != "linux":
    pytest.skip("kills processes as Linux does", allow_module_level=True)

from faulty_runs import clear, contents, count_calls, fork, full_at, interruptions
from faulty_tasks import TASKS, make_inputs

CONFIG = "model/config.json"
PACKAGES = {"export_onnx": ["onnx", "onnxruntime", "onnxscript"]}
SLOW = ["train", "export_program", "export_onnx"]  # each run takes seconds
QUICK = [name for name in TASKS if name not in SLOW]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("faults") / "inputs")


def prepared(name, inputs, folder):
    """An empty folder, or with what is there before the task begins."""
    for package in PACKAGES.get(name, ()):
        pytest.importorskip(package)
    clear(folder)
    if TASKS[name].prepare is not None:
        assert fork(lambda: TASKS[name].prepare(inputs, folder)) == 0
    return folder


@pytest.fixture(scope="module")
def undisturbed(inputs):
    """The result of each task, how often it touches files, the sizes of what it writes, and its time; found once."""
    known = {}

    def of(name):
        if name not in known:
            task, report = TASKS[name], inputs.parent / f"{name}.calls"
            folder, again = inputs.parent / name / "whole", inputs.parent / name / "again"
            prepared(name, inputs, folder)
            started = time.monotonic()
            assert fork(lambda: task.run(inputs, folder)) == 0
            duration_s = time.monotonic() - started
            prepared(name, inputs, again)
            assert fork(lambda: count_calls(lambda: task.run(inputs, again), report)) == 0
            whole = contents(folder, task.timed)
            assert contents(again, task.timed) == whole
            sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
            known[name] = whole, int(report.read_text()), [size for size in sizes if size > 1], duration_s
        return known[name]

    return of


def is_hidden(path):
    return any(part.startswith(".") for part in path.split("/"))


def shown(files):
    return {path: digest for path, digest in files.items() if not is_hidden(path)}


def require_no_part(task, folder, whole, before):
    """Every file under its own name is as before or as it will be, or belongs to what says that it is unfinished."""
    after = contents(folder, task.timed)
    for path, digest in shown(after).items():
        if task.timed(path) and path.endswith(".json"):
            json.loads((folder / path).read_text())
        if not task.timed(path) and not task.grows(path):
            assert digest in (whole.get(path), before.get(path)), f"{path} is half written"
    if task.finished is not None and task.finished(folder):
        assert shown(after) in (whole, before), "it says that it is finished, and is not"
    if CONFIG in after:  # a model that can be loaded is the old one or the new one
        weights = {path: digest for path, digest in after.items() if path.startswith("model/model")}
        of_old = after[CONFIG] == before.get(CONFIG)
        expected = before if of_old else whole
        assert weights == {path: digest for path, digest in expected.items() if path.startswith("model/model")}


def check_kills(name, inputs, undisturbed, number, seed=0):
    """Ends a task in `number` ways; returns how many of the runs were indeed ended early."""
    task, (whole, calls, sizes, duration_s) = TASKS[name], undisturbed(name)
    folder = inputs.parent / name / "out"
    ended = 0
    for what, interrupted in interruptions(lambda: task.run(inputs, folder), calls, sizes, duration_s, number, seed):
        print(f"{name}: {what}", flush=True)
        before = contents(prepared(name, inputs, folder), task.timed)
        ended += fork(interrupted) != 0
        require_no_part(task, folder, whole, before)
        assert fork(lambda: task.run(inputs, folder)) == 0, f"{what}: cannot be run again"
        assert contents(folder, task.timed) == whole, f"{what}: another result"
        assert not (folder / "run" / "_unfinished").exists(), f"{what}: an unfinished checkpoint stays"
    return ended


@pytest.mark.parametrize("name", QUICK)
def test_a_killed_task_leaves_nothing_half_written_and_runs_again(name, inputs, undisturbed):
    assert check_kills(name, inputs, undisturbed, 5) >= 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", TASKS)
def test_kills_at_many_places(name, inputs, undisturbed):
    number = 4 if name in ("export_program", "export_onnx") else 16
    assert check_kills(name, inputs, undisturbed, number, seed=1) >= number // 2


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", TASKS)
def test_kills_at_very_many_places(name, inputs, undisturbed):
    number = int(os.environ.get("BMDETR_KILLS", "50"))
    ended = check_kills(name, inputs, undisturbed, number, seed=2)
    print(f"\n{name}: {ended} of {number} runs ended early, all run again to the same result")


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_on_a_full_disk_nothing_half_written_stays(name, inputs, undisturbed):
    task, (whole, _, sizes, _) = TASKS[name], undisturbed(name)
    folder = prepared(name, inputs, inputs.parent / name / "full")
    before = contents(folder, task.timed)
    assert fork(full_at(lambda: task.run(inputs, folder), max(sizes) // 2)) == 2
    assert not [path for path in contents(folder) if is_hidden(path)], "litter"
    require_no_part(task, folder, whole, before)
    assert not (folder / "run" / "_unfinished").exists()
    assert fork(lambda: task.run(inputs, folder)) == 0
    assert contents(folder, task.timed) == whole
