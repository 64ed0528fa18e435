"""No worker process outlives a training run that is killed."""

import os
import platform
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from factories import make_rows, make_trainer

from modeling_bmdetr.processes import keep_freed_memory

RUN = """
import sys
from factories import make_rows, make_store, make_trainer
from transformers import TrainerCallback

class Say(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        print("step", state.global_step, flush=True)
        import time; time.sleep(1)  # so that the workers' queues fill up

trainer = make_trainer(
    sys.argv[1], make_rows(20), num_train_epochs=50, dataloader_num_workers=2, eval_strategy="no", save_strategy="no",
    load_best_model_at_end=False,
)
trainer.add_callback(Say())
trainer.train()
"""


def children(pid: int) -> list[int]:
    """Processes whose parent has this id."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_a_run_that_is_killed(tmp_path, sent):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    assert run.stdout is not None
    assert any(b"step 2" in line for line in run.stdout)
    workers = children(run.pid)
    assert len(workers) == 2
    run.send_signal(sent)
    run.wait(timeout=30)
    until = time.monotonic() + 15
    while any(map(is_alive, workers)) and time.monotonic() < until:
        time.sleep(0.2)
    assert not any(map(is_alive, workers))
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the processors of a process are not known here")
@pytest.mark.parametrize(("processors", "asked", "workers"), [(2, 4, 2), (1, 4, 1), (8, 4, 4), (2, 0, 0)])
def test_no_more_workers_than_processors_read_batches(processors, asked, workers, tmp_path, monkeypatch, package_log):
    """Four workers on two processors took double the time of two, and every loader warned of it, 200 times a run."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)))
    trainer = make_trainer(tmp_path, make_rows(4), dataloader_num_workers=asked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaders = [trainer.get_train_dataloader(), trainer.get_eval_dataloader(make_rows(2))]
    assert [loader.num_workers for loader in loaders] == [workers] * 2
    said = [record.getMessage() for record in package_log.records if "dataloader_num_workers" in record.getMessage()]
    assert len(said) == (workers < asked)


def test_memory_is_kept_where_the_c_library_can():
    if platform.libc_ver()[0] == "glibc":
        assert keep_freed_memory()
    else:
        assert not keep_freed_memory()
