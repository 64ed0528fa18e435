"""Entry points of the package, each with what it is given and what must hold of a result."""

import io
import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from annotation_samples import DURATIONS_S, SAMPLES, write_video
from factories import CONTRACT, make_model, make_row, make_store
from hostile_values import anything, arrays, damaged, mutated, nested, numbers, words
from hypothesis import strategies as st

from modeling_bmdetr import BMDetrConfig, BMDetrProcessor, MomentRetrievalPipeline
from modeling_bmdetr.calibration_bmdetr import Calibration
from modeling_bmdetr.cli.answers import as_csv, as_text, as_vtt
from modeling_bmdetr.contract_bmdetr import FeatureContract
from modeling_bmdetr.data import FeatureStore, mine_negative_queries, pack_features, read_rows
from modeling_bmdetr.data.batches.collator import MomentRetrievalCollator
from modeling_bmdetr.data.batches.examples import MomentRetrievalDataset
from modeling_bmdetr.data.batches.negative_sampling import NegativeSampler
from modeling_bmdetr.data.rows.importers import ImportOptions, import_annotations
from modeling_bmdetr.data.rows.qids import canonical_qid
from modeling_bmdetr.data.rows.validation import validate_rows
from modeling_bmdetr.evaluation import evaluate_submission
from modeling_bmdetr.index import VideoIndex
from modeling_bmdetr.released import convert_released_checkpoint, to_released_state_dict
from modeling_bmdetr.visualization import plot_moments


@dataclass(frozen=True)
class EntryPoint:
    """`call` gets a value of `inputs`; what it returns has been checked, with `AssertionError` where it is wrong.

    `cost` is how many times fewer inputs it gets than the quickest ones, `limit_s` the processor time that one may
    take.
    """

    inputs: st.SearchStrategy
    call: Callable[[Any], None]
    cost: int = 1
    limit_s: float = 10.0


ROWS = [
    make_row(qid="q1"),
    make_row(qid="q2", query="A man sits.", relevant_windows=[[8.0, 12.0], [1, 3]], neg_query_ids=["q1"]),
]
OPTIONS = ImportOptions(fps=24, tiers=("sentences",), attribute="sentence")
RATED = make_row(
    qid="q3", vid="v2", query="It rains.", relevant_clip_ids=[1, 2], saliency_scores=[[1, 2, 3], [0, 4, 4]]
)


@cache
def scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="bmdetr-fuzz-"))


@cache
def store() -> FeatureStore:
    return make_store([*ROWS, RATED])


@cache
def model() -> Any:
    return make_model().eval()


@cache
def processor() -> BMDetrProcessor:
    return BMDetrProcessor(CONTRACT)


@cache
def pipe() -> MomentRetrievalPipeline:
    return MomentRetrievalPipeline(model(), processor=processor(), device="cpu")


def require_finite(tensors: Mapping[str, Any]) -> None:
    for name, value in tensors.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            assert bool(value.isfinite().all()), f"{name} is not finite"


def require_answer(moments: Any, duration_s: float) -> None:
    scores = [moment["score"] for moment in moments]
    assert scores == sorted(scores, reverse=True), "not best first"
    for moment in moments:
        assert 0 <= moment["start"] <= moment["end"] <= duration_s + 1e-3, moment
        assert 0 <= moment["score"] <= 1, moment


# ---------------------------------------------------------------------------------------------------------------- rows


def _validate(rows: Any) -> None:
    for problem in validate_rows(rows).problems:
        assert problem.severity in ("error", "warning")
        assert str(problem.message).strip()


def _read_lines(content: bytes) -> None:
    path = scratch() / "rows.jsonl"
    path.write_bytes(content)
    for row in read_rows(path):
        assert isinstance(row, dict)


def _import(case: tuple[str, bytes]) -> None:
    name, content = case
    path = scratch() / name
    path.write_bytes(content)
    rows, _ = import_annotations(path, annotated_videos(), OPTIONS)
    assert not validate_rows(rows, require_windows=False).errors


@cache
def annotated_videos() -> Path:
    folder = scratch() / "annotated"
    folder.mkdir()
    for name, duration_s in DURATIONS_S.items():
        write_video(folder / f"{name}.mp4", duration_s)
    return folder


def _importable() -> st.SearchStrategy:
    """Sample files whose bytes are damaged, and JSON ones of which entries are replaced."""
    cases = []
    for path in sorted(SAMPLES.iterdir()):
        content = path.read_bytes()
        cases.append(st.tuples(st.just(path.name), damaged(content)))
        if path.suffix == ".json":
            texts = mutated(json.loads(content), nested).map(lambda document: json.dumps(document).encode())
            cases.append(st.tuples(st.just(path.name), texts))
    return st.one_of(cases)


def _lines() -> st.SearchStrategy:
    return mutated(ROWS, nested).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()).flatmap(damaged)


def _batch(rows: Any) -> None:
    sampler = NegativeSampler(rows, "mined")
    dataset = MomentRetrievalDataset(
        rows, store(), CONTRACT, negatives=sampler, num_negatives=1, temporal_shifting=True
    )
    batch = MomentRetrievalCollator()([dataset[index] for index in range(len(dataset))])
    require_finite(batch)
    real = batch["labels"][batch["labels"][..., 0] != -100]
    assert bool(((real >= 0) & (real <= 1)).all()), "labels outside the video"
    require_finite({name: value for name, value in model()(**_inputs(batch)).items() if value is not None})


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name not in ("durations_s", "row_index")}


def _mine(rows: Any) -> None:
    mined, _ = mine_negative_queries(rows, encoder="hashed-words", progress=False)
    qids = {canonical_qid(row["qid"]) for row in mined}
    for row in mined:
        assert set(row["neg_query_ids"]) <= qids - {canonical_qid(row["qid"])}


# ------------------------------------------------------------------------------------------------------------ features


def _feature_file(case: tuple[str, bytes]) -> None:
    suffix, content = case
    folder = scratch() / "features"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    place = folder / f"v1{suffix}"
    place.write_bytes(content)
    read = FeatureStore.from_files(place if suffix == ".h5" else folder, contract=FeatureContract())
    rows = read.video("v1")
    assert rows.ndim == 2
    assert rows.dtype == np.float32
    assert rows.shape == (read.num_clips("v1"), read.contract.video_dim)


def _feature_files() -> st.SearchStrategy:
    array, cases = np.arange(30, dtype=np.float32).reshape(5, 6), {}
    buffers = {suffix: io.BytesIO() for suffix in (".npy", ".npz", ".pt", ".h5")}
    np.save(buffers[".npy"], array)
    np.savez_compressed(buffers[".npz"], features=array)
    torch.save({"features": torch.from_numpy(array)}, buffers[".pt"])
    try:
        import h5py
    except ImportError:
        del buffers[".h5"]
    else:
        with h5py.File(buffers[".h5"], "w") as file:
            file["v1"] = array
    cases = {suffix: buffer.getvalue() for suffix, buffer in buffers.items()}
    return st.one_of([st.tuples(st.just(suffix), damaged(content)) for suffix, content in cases.items()])


@cache
def _packed() -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """Files of a packed store, and the arrays that they hold."""
    folder = scratch() / "whole"
    packed = pack_features(store(), folder, rows=[*ROWS, RATED], progress=False)
    held = {f"video {name}": packed.video(name) for name in packed.video_ids}
    held |= {f"text {name}": packed.text(name) for name in packed.query_ids}
    packed.close()
    return {path.name: path.read_bytes() for path in folder.iterdir()}, held


def _packed_store(case: tuple[str, bytes]) -> None:
    name, content = case
    folder = scratch() / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    files, held = _packed()
    folder.mkdir()
    for other, whole in files.items():
        (folder / other).write_bytes(content if other == name else whole)
    packed = FeatureStore.from_packed(folder)
    for video in packed.video_ids:
        np.testing.assert_array_equal(packed.video(video), held[f"video {video}"])
    for query in packed.query_ids:
        np.testing.assert_array_equal(packed.text(query), held[f"text {query}"])


def _packed_stores() -> st.SearchStrategy:
    files, _ = _packed()
    return st.one_of([st.tuples(st.just(name), damaged(content)) for name, content in sorted(files.items())])


# ----------------------------------------------------------------------------------------------- processor and answers


def _process(case: tuple[Any, Any]) -> None:
    videos, texts = case
    inputs = processor()(video_features=videos, text_features=texts)
    require_finite(inputs)
    with torch.inference_mode():
        outputs = model()(**inputs)
    for moments in processor().post_process_moments(outputs, inputs["video_mask"]):
        require_answer(moments, CONTRACT.max_clips * CONTRACT.clip_length)


def _process_words(case: tuple[Any, Any]) -> None:
    sentences, options = case
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((3, 5)).astype(np.float32) for _ in (sentences if isinstance(sentences, list) else [0])]
    video = rng.standard_normal((9, 6)).astype(np.float32)
    from modeling_bmdetr.pipeline_bmdetr import EncodedVideo

    answers = pipe()(EncodedVideo(video, 18.0, "v"), sentences, text_features=rows, **options)
    for answer in answers if isinstance(answers, list) else [answers]:
        require_answer(answer["moments"], 18.0)


def _select(case: tuple[Any, dict[str, Any]]) -> None:
    moments, options = case
    kept = processor().select(torch.as_tensor(moments, dtype=torch.float32), **options)
    assert len(kept) <= len(moments)


def _configure(fields: Any) -> None:
    config = BMDetrConfig(**fields)
    again = BMDetrConfig.from_dict(json.loads(config.to_json_string(use_diff=False)))
    assert again.feature_contract == config.feature_contract
    assert json.loads(json.dumps(again.to_dict())) == json.loads(json.dumps(config.to_dict()))  # a tuple becomes a list


def _contract(values: Any) -> None:
    contract = FeatureContract.from_dict(values)
    assert FeatureContract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract
    assert math.isfinite(contract.clip_length)
    assert contract.clip_length > 0


def _calibrate(values: Any) -> None:
    calibration = Calibration.from_dict(values)
    scores = torch.linspace(0, 1, 5)[None]
    applied, presence = calibration.apply(scores, torch.tensor([0.3]))
    for value in (applied, presence):
        assert value is None or bool(((value >= 0) & (value <= 1)).all()), value
    assert calibration.score is None or bool((applied.diff() >= 0).all()), "another ranking"
    assert json.loads(json.dumps(calibration.to_dict())) == calibration.to_dict()


def _evaluate(case: tuple[Any, Any]) -> None:
    for name, value in evaluate_submission(*case).items():
        assert 0 <= value <= 100 or (math.isnan(value) and "-full-" not in name), (name, value)


def _convert(state: Any) -> None:
    require_finite(convert_released_checkpoint(state).state_dict())


@cache
def _released() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "encoder_layers": 1}
    from modeling_bmdetr import BMDetrForMomentRetrieval

    config = BMDetrConfig.released(**sizes, decoder_layers=1, video_dim=8, text_dim=8)
    return to_released_state_dict(BMDetrForMomentRetrieval(config))


def _states() -> st.SearchStrategy:
    odd = [torch.zeros(0), torch.full((16, 16), float("nan")), torch.zeros(3, 3, 3), torch.ones(16, dtype=torch.int64)]
    odd += [torch.full((16,), float("inf")), torch.zeros(16, 16, dtype=torch.complex64), torch.tensor(1.0)]
    values = st.sampled_from(odd) | anything
    options = {
        "hidden_dim": 16,
        "nheads": 2,
        "v_feat_dirs": ["clip"],
        "max_v_l": 75,
        "clip_length": 1,
        "num_queries": 10,
    }
    states = mutated(_released(), values)
    return states | st.fixed_dictionaries({"model": states, "opt": mutated(options)})


def _draw(answer: Any) -> None:
    figure = plot_moments(answer, path=scratch() / "picture.png")
    assert (scratch() / "picture.png").stat().st_size
    from matplotlib import pyplot

    pyplot.close(figure)


def _write(results: Any) -> None:
    for result in results:
        assert isinstance(as_text(result, 0.05, named=True), str)
    rows = as_csv(results)
    assert rows.startswith("video,query,rank")
    assert as_vtt(results[:1]).startswith("WEBVTT")


ANSWER = {
    "query": "a door opens",
    "moments": [{"start": 1.0, "end": 3.0, "score": 0.5}],
    "saliency": [0.1, 0.4, 0.2],
    "frame_probabilities": [0.1, 0.4, 0.2],
    "frame_attention": [0.2, 0.5, 0.3],
    "duration": 6.0,
    "clip_length": 2.0,
    "presence": 0.7,
}


@st.composite
def _results(draw: Any) -> list[dict[str, Any]]:
    """Answers as a pipeline may give them, about whatever was asked and whatever the files are called."""
    moment = st.fixed_dictionaries({"start": st.floats(0, 1e6), "end": st.floats(0, 1e6), "score": st.floats(0, 1)})
    answer = st.fixed_dictionaries(
        {"query": words, "moments": st.lists(moment, max_size=2), "presence": st.floats(0, 1)}
    )
    return [
        {"video": draw(words), "answers": draw(st.lists(answer, max_size=3))} for _ in range(draw(st.integers(1, 2)))
    ]


# --------------------------------------------------------------------------------------------------------------- index


@cache
def _index_files() -> tuple[Any, dict[str, bytes]]:
    """A pipeline whose encoders need no weights, and the small files of an index made with it."""
    from app_world import make_checkpoint, make_pipeline, make_video

    searching = make_pipeline(make_checkpoint(scratch() / "checkpoint"))
    make_video(scratch() / "videos" / "a.mp4", 3.0)
    make_video(scratch() / "videos" / "b.mp4", 3.0, seed=1)
    VideoIndex(scratch() / "index", searching).update(scratch() / "videos")
    names = ("index.json", "catalog.jsonl")
    return searching, {name: (scratch() / "index" / name).read_bytes() for name in names}


def _search(case: tuple[str, bytes, dict[str, Any]]) -> None:
    name, content, options = case
    searching, files = _index_files()
    for other, whole in files.items():
        (scratch() / "index" / other).write_bytes(content if other == name else whole)
    index = VideoIndex(scratch() / "index", searching)
    hits = index.search(**options)
    for hit in hits if isinstance(options["query"], str) else itertools.chain(*hits):
        assert 0 <= hit.start <= hit.end
        assert math.isfinite(hit.score)


def _searches() -> st.SearchStrategy:
    _, files = _index_files()
    options = st.fixed_dictionaries(
        {"query": st.just("a square") | words | st.lists(words, max_size=2) | anything},
        optional={
            "top": numbers | st.just(2),
            "per_video": st.integers(-1, 3) | anything,
            "batch_size": st.integers(0, 9),
        },
    )
    plain = st.tuples(st.just(""), st.just(b""), options)
    broken = []
    for name, content in files.items():
        text = content.decode()
        documents = [json.loads(line) for line in ([text] if name == "index.json" else text.splitlines())]
        lines = mutated(documents, nested).map(lambda lines: ("\n".join(map(json.dumps, lines)) + "\n").encode())
        asked = st.just({"query": "a square"})
        broken += [st.tuples(st.just(name), contents, asked) for contents in (lines, damaged(content))]
    return st.one_of(plain, *broken)


# --------------------------------------------------------------------------------------------------------------- table

CONTRACT_VALUES = json.loads(json.dumps(CONTRACT.to_dict()))
CALIBRATION = Calibration((1.0, 0.5, -0.2), (2.0, 0.1), (0.1, 0.2, 0.3, 0.4), 60, 10, {"presence": "by rule"}).to_dict()
PREDICTIONS = [
    {"qid": "q1", "vid": "v1", "query": "A door opens.", "pred_relevant_windows": [[2.0, 5.0, 0.9], [7.0, 9.0, 0.2]]},
    {"qid": "q2", "vid": "v1", "query": "A door opens.", "pred_relevant_windows": [[8.0, 12.0, 0.5]]},
    {"qid": "q3", "vid": "v2", "query": "A door opens.", "pred_relevant_windows": [[0, 1, 0.1]]},
]
CONFIG = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "encoder_layers": 1,
    "video_dim": 6,
    "text_dim": 5,
    "dropout": 0.1,
}


def _rows_of(width: int) -> st.SearchStrategy:
    """Arrays of the right width at times, and anything at others."""
    fitting = st.integers(1, 20).map(lambda rows: np.random.default_rng(rows).standard_normal((rows, width)))
    several = st.lists(fitting, min_size=1, max_size=3)
    return fitting | several | several | arrays | st.lists(arrays | fitting, max_size=3) | anything


def entry_points() -> dict[str, EntryPoint]:
    """All of them by name; made when they are needed, since some write files first."""
    selection = {"top_k": numbers, "score_threshold": numbers, "nms_threshold": numbers | st.none()}
    odd = {name: values | anything for name, values in selection.items()}
    moments = st.lists(st.tuples(numbers, numbers, numbers), max_size=4).map(lambda rows: np.array(rows).reshape(-1, 3))
    rated = [*ROWS, RATED]
    return {
        "validate_rows": EntryPoint(mutated(rated) | st.lists(anything, max_size=3), _validate),
        "read_rows": EntryPoint(_lines(), _read_lines),
        "import_annotations": EntryPoint(_importable(), _import, 3),
        "dataset_and_collator": EntryPoint(mutated(rated), _batch, 3),
        "mine_negative_queries": EntryPoint(mutated(rated), _mine),
        "feature_files": EntryPoint(_feature_files(), _feature_file, 2),
        "packed_store": EntryPoint(_packed_stores(), _packed_store, 2),
        "processor_of_features": EntryPoint(st.tuples(_rows_of(6), _rows_of(5)), _process),
        "pipeline_options": EntryPoint(
            st.tuples(words | st.lists(words, max_size=3) | anything, st.fixed_dictionaries({}, optional=odd)),
            _process_words,
            3,
        ),
        "select": EntryPoint(st.tuples(moments, st.fixed_dictionaries({}, optional=odd)), _select),
        "configuration": EntryPoint(mutated({**CONFIG, **CONTRACT_VALUES}), _configure, 2),
        "contract": EntryPoint(mutated(CONTRACT_VALUES), _contract),
        "calibration": EntryPoint(mutated(CALIBRATION), _calibrate),
        "evaluate_submission": EntryPoint(st.tuples(mutated(PREDICTIONS), mutated(rated)), _evaluate),
        "released_checkpoint": EntryPoint(_states(), _convert, 10),
        "pictures": EntryPoint(mutated(ANSWER) | words.map(lambda text: {**ANSWER, "query": text}), _draw, 40),
        "answers_as_text": EntryPoint(_results(), _write),
        "index_and_search": EntryPoint(_searches(), _search, 4),
    }
