"""No worker process outlives a training run that is killed."""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def test_memory_is_kept_where_the_c_library_can():
    if platform.libc_ver()[0] == "glibc":
        assert keep_freed_memory()
    else:
        assert not keep_freed_memory()
