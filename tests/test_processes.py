"""Workers end with the process they work for, however that ended."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

SCRIPT = """
    import os, sys, time
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    from modeling_bmdetr.processes import end_with_parent

    if __name__ == "__main__":
        with ProcessPoolExecutor(2, get_context(sys.argv[1]), end_with_parent) as pool:
            workers = {pool.submit(os.getpid).result() for _ in range(8)}
            print(*workers, flush=True)
            pool.submit(time.sleep, 600).result()
"""


def is_alive(process: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at processes as Linux shows them")
@pytest.mark.parametrize("context", ["spawn", "fork"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(tmp_path, context, how):
    script = tmp_path / "pool.py"
    script.write_text(textwrap.dedent(SCRIPT))
    parent = subprocess.Popen([sys.executable, str(script), context], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert workers
    assert all(is_alive(worker) for worker in workers)
    parent.send_signal(how)
    assert parent.wait() == -how
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while any(is_alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)
