"""Many predictions, threads and processes at once: the same answers, and no memory that grows."""

import gc
import multiprocessing
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from app_world import make_checkpoint, make_pipeline, make_video
from factories import make_rows, make_store

from modeling_bmdetr.data import FeatureStore, pack_features
from modeling_bmdetr.data.features.writer import FeatureWriter

QUERIES = [f"a square moves {where}" for where in ("left", "right", "up", "down")]
MIB = 2**20


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return make_pipeline(make_checkpoint(tmp_path_factory.mktemp("shared") / "model"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [make_video(folder / f"{seed}.mp4", 2.0, seed=seed) for seed in range(3)]


def asked(pipe, videos, number):
    """The answer to a question that follows from its number."""
    return pipe(str(videos[number % len(videos)]), QUERIES[number % len(QUERIES)])


def check_threads(pipe, videos, number):
    alone = [asked(pipe, videos, index) for index in range(12)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda index: asked(pipe, videos, index), range(number)))
    for index, answer in enumerate(together):
        assert answer == alone[index % 12]


def test_threads_on_one_pipeline_get_the_answers_of_one(pipe, videos):
    check_threads(pipe, videos, 24)


@pytest.mark.slow
def test_eight_threads_on_one_pipeline_get_the_answers_of_one(pipe, videos):
    check_threads(pipe, videos, 400)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")
def test_memory_stays_flat_over_a_thousand_predictions(pipe, videos):
    process, held = psutil.Process(), []
    answers = [asked(pipe, videos, index) for index in range(12)]
    for index in range(1_000):
        assert asked(pipe, videos, index) == answers[index % 12]
        if index % 200 == 199:
            gc.collect()
            held.append(process.memory_info().rss)
    assert held[-1] - held[0] < 20 * MIB, [round(value / MIB) for value in held]
    assert threading.active_count() < 20


def read_all(folder, answers):
    """Every array of a store, read by a process of its own."""
    store = FeatureStore.from_packed(folder)
    total = sum(float(store.video(name).sum()) for name in store.video_ids)
    answers.put((len(store.video_ids), total))


def test_eight_processes_read_a_store_that_another_writes_to(tmp_path):
    first, more = make_rows(8), make_rows(12, seed=1, prefix="more")
    store = make_store(first, more)
    packed = pack_features(store, tmp_path / "store", rows=first, progress=False)
    expected = sum(float(packed.video(name).sum()) for name in packed.video_ids)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    answers = context.Queue()
    with FeatureWriter(tmp_path / "store", packed.contract) as writer:
        for vid in dict.fromkeys(row["vid"] for row in more):
            writer.add_video(vid, store.video(vid))
        readers = [context.Process(target=read_all, args=(tmp_path / "store", answers)) for _ in range(8)]
        for reader in readers:
            reader.start()
        received = [answers.get(timeout=60) for _ in readers]
        for reader in readers:
            reader.join()
        with pytest.raises(ValueError, match="another process is writing"):
            FeatureWriter(tmp_path / "store", packed.contract).__enter__()
        writer.finish()
    assert received == [(8, pytest.approx(expected))] * 8  # the last finished state
    assert len(FeatureStore.from_packed(tmp_path / "store").video_ids) == 20
