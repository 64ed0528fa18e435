"""Whenever an upload ends, the repository shows the model before or the new one, and pushing again completes it."""

import hashlib
import os
import random
import signal
import sys
import tempfile
import time

import pytest

if sys.platform != "linux":
    pytest.skip("kills processes as Linux does", allow_module_level=True)

from faulty_runs import clear, count_calls, fork, killed_after, killed_at
from faulty_tasks import released_model
from huggingface_hub import constants
from loopback_hub import TOKEN, loopback_hub

REPOSITORY = "tester/pushed"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@pytest.fixture(scope="module")
def hub():
    with loopback_hub() as server:
        yield server


def digests(hub):
    """What a reader of the repository sees."""
    with hub.lock:
        if ("models", REPOSITORY) not in hub.repositories:
            return {}
        files = hub.files(REPOSITORY)
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def pushing(url, model, scratch):
    """Uploads a model from a process of its own, which keeps temporary files in `scratch`."""

    def push():
        constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = url, False, True
        constants.HUGGINGFACE_CO_URL_TEMPLATE = url + "/{repo_id}/resolve/{revision}/{filename}"
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        tempfile.tempdir = str(scratch)
        model.push_to_hub(REPOSITORY, token=TOKEN)

    return push


def check_pushes(hub, folder, number, seed):
    """Ends `number` uploads of a new model over an old one; returns how many were indeed ended early."""
    old, new = (released_model(i) for i in range(2))
    scratch, report = clear(folder / "scratch"), folder / "calls"
    draw, states = random.Random(seed), {}
    for name, model in (("new", new), ("old", old)):
        hub.repositories.clear()
        assert fork(pushing(hub.url, model, scratch)) == 0
        states[name] = digests(hub)
    before = dict(hub.repositories["models", REPOSITORY].refs)
    started = time.monotonic()
    assert fork(lambda: count_calls(pushing(hub.url, new, scratch), report)) == 0
    duration_s, calls = time.monotonic() - started, int(report.read_text())
    replaced = digests(hub)  # the card of the old model stays
    assert {name for name in states["new"] if states["new"][name] != replaced[name]} <= {"README.md"}
    ended = 0
    for index in range(number):
        repository = hub.repositories["models", REPOSITORY]
        with hub.lock:
            repository.refs.update(before)
        how, push = SIGNALS[index % 3], pushing(hub.url, new, scratch)
        event, seconds = draw.randrange(1, calls + 1), draw.uniform(0, duration_s)
        print(f"{how.name} at call {event} of {calls}, or after {seconds:.3f} s of {duration_s:.3f}", flush=True)
        ended += fork(killed_at(push, event, how) if index % 2 else killed_after(push, seconds, how)) != 0
        time.sleep(0.05)  # what the process had sent may still be under way
        assert digests(hub) in (states["old"], replaced)
        assert fork(push) == 0
        assert digests(hub) == replaced
        assert not list(scratch.iterdir()), "litter"
    return ended


def test_a_killed_push_shows_nothing_of_it_and_is_repeated(hub, tmp_path):
    assert check_pushes(hub, tmp_path, 2, seed=0) >= 1


@pytest.mark.slow
def test_pushes_killed_at_many_places(hub, tmp_path):
    assert check_pushes(hub, tmp_path, 16, seed=1) >= 6


@pytest.mark.long
@pytest.mark.timeout(0)
def test_pushes_killed_at_very_many_places(hub, tmp_path):
    number = int(os.environ.get("BMDETR_KILLS", "50"))
    ended = check_pushes(hub, tmp_path, number, seed=2)
    print(f"\npush: {ended} of {number} runs ended early, all run again to the same result")
