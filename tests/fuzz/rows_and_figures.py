"""Entry points between rows and figures: cleaning and checks of files, extraction, statistics, cards, command lines."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import chdir
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from app_world import make_checkpoint, make_video
from entry_points import CONTRACT_VALUES, PREDICTIONS, RATED, ROWS, EntryPoint, scratch, store
from factories import make_row, tiny_config, write_lines
from hostile_values import anything, arrays, damaged, mutated, nested, words
from hypothesis import strategies as st
from strangers_files import run_command

from modeling_bmdetr.cards import render_model_card
from modeling_bmdetr.data import (
    FeatureStore,
    add_absent_rows,
    clean_rows,
    extract_features,
    pack_features,
    read_absent_rows,
    read_rows,
    validate_file,
    validate_rows,
    write_rows,
)
from modeling_bmdetr.data.rows.qids import canonical_qid
from modeling_bmdetr.encoders_bmdetr import build_text_encoder, build_video_encoder
from modeling_bmdetr.evaluation import auroc, brier_score, expected_calibration_error, rejection_f1, reliability_bins

FILM_S = 3.0
ABOUT_FILMS = [
    make_row(qid="q1", vid="a", duration=FILM_S, relevant_windows=[[0.0, 2.0]]),
    make_row(qid="q2", vid="b", query="It rains.", duration=FILM_S, relevant_windows=[], video="b.mp4"),
    make_row(
        qid="q3", vid="b", query="A dog barks.", duration=FILM_S, relevant_windows=[[1, 2], [2, 3]], video="b.mp4"
    ),
]
ENCODERS = {"name": "pixel-grid", "grid": 8}, "hashed-words"


@cache
def films() -> Path:
    for seed, name in enumerate("ab"):
        make_video(scratch() / "films" / f"{name}.mp4", FILM_S, seed=seed, side=32)
    return scratch() / "films"


# ---------------------------------------------------------------------------------------------------------------- rows


def _clean(rows: Any) -> None:
    validate_rows(rows).raise_for_errors()  # as `clean_rows` expects
    cleaned, report = clean_rows(rows)
    assert len(cleaned) == len(rows) - report.dropped_rows
    widened, added = add_absent_rows(cleaned, 1.0)
    assert len(widened) == len(cleaned) + added.added
    assert not validate_rows(widened).errors


def _write(rows: Any) -> None:
    path = scratch() / "written.jsonl"
    path.unlink(missing_ok=True)
    write_rows(path, rows)
    again = list(read_rows(path))
    assert len(again) == len(rows)
    for row, read in zip(rows, again, strict=True):
        assert read["qid"] == canonical_qid(row["qid"])
        assert not isinstance(row.get("query"), str) or read["query"] == row["query"]


def _absent(content: bytes) -> None:
    path = scratch() / "absent.jsonl"
    path.write_bytes(content)
    rows = read_absent_rows(path, "in_domain")
    qids = [row["qid"] for row in rows]
    assert len(set(qids)) == len(qids)


def _absent_files() -> st.SearchStrategy:
    rows = [*ROWS, make_row(qid="q1", query="No.", relevant_windows=[[0, 0]], saliency_scores=[[]])]
    return mutated(rows, nested).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()).flatmap(damaged)


def _validate_file(content: bytes) -> None:
    path = scratch() / "validated.jsonl"
    path.write_bytes(content)
    report = validate_file(path, films(), _features(), clip_length_s=1.0, progress=False)
    json.dumps(report.to_dict())
    assert report.format(10)
    if report.ok:
        _features_of(list(read_rows(path)))


@cache
def _features() -> Path:
    extract_features(ABOUT_FILMS, films(), scratch() / "features_of_films", *ENCODERS, 1.0, progress=False)
    return scratch() / "features_of_films"


def _features_of(rows: list[Any]) -> None:
    read = FeatureStore.from_packed(_features())
    read.require(rows)
    read.close()


def _extract(rows: Any) -> None:
    out = scratch() / "extracted"
    shutil.rmtree(out, ignore_errors=True)
    try:
        report = extract_features(rows, films(), out, *ENCODERS, 1.0, progress=False)
    finally:
        assert not [name for name in _files_below(out) if name.startswith(".")], "litter"
    packed = FeatureStore.from_packed(out)
    assert set(packed.video_ids) == {row["vid"] for row in rows} - set(report.failed_videos)
    for vid in packed.video_ids:
        assert np.isfinite(packed.video(vid)).all()
    packed.close()


def _files_below(folder: Path) -> list[str]:
    return [name for _, _, names in os.walk(folder) for name in names]


def _pack(rows: Any) -> None:
    out = scratch() / "packed"
    shutil.rmtree(out, ignore_errors=True)
    packed = pack_features(store(), out, rows=rows, progress=False)
    for vid in packed.video_ids:
        np.testing.assert_array_equal(packed.video(vid), store().video(vid))
    assert set(packed.video_ids) == {row["vid"] for row in rows}
    packed.close()


# ------------------------------------------------------------------------------------------------------------- figures


def _figures(case: tuple[Callable[..., Any], Any, Any]) -> None:
    figure, scores, truths = case
    value = figure(scores, truths)
    value = value.calibration_error if hasattr(value, "calibration_error") else value
    assert 0 <= value <= 1


def _statistics() -> st.SearchStrategy:
    figures = st.sampled_from([auroc, brier_score, expected_calibration_error, reliability_bins, rejection_f1])
    pairs = st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=9).map(
        lambda pairs: (np.array([p for p, _ in pairs]), np.array([t for _, t in pairs], dtype=bool))
    )
    odd = st.tuples(arrays | anything, arrays | anything)
    return st.tuples(figures, pairs | pairs | odd).map(lambda case: (case[0], *case[1]))


RECORD = {
    "metrics": {"MR-full-R1@0.5": 71.23, "MR-full-mIoU": 60.01, "MR-full-mAP": 44.0},
    "baselines": {"whole video": {"MR-full-R1@0.5": 12.25, "MR-full-mIoU": 21.75}},
    "dataset": {"name": "Kitchen Moments", "id": "tester/kitchen", "split": "test"},
    "data": {"train": {"videos": 240, "queries": 1733}},
    "training": {"num_train_epochs": 30, "learning_rate": 1e-3},
    "seed": 17,
    "examples": ["he cuts bread", "the tap runs"],
}


def _card(record: Any) -> None:
    card = str(render_model_card(tiny_config(), record, parameters=7))
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "transformers"
    assert "<script" not in body


def _encoder(case: tuple[Callable[..., Any], Any]) -> None:
    build, spec = case
    try:
        encoder = build(spec)
    except ImportError as error:  # the encoder of another package
        raise ValueError(str(error)) from error
    json.dumps(encoder.spec())
    assert encoder.dim >= 1


def _specs() -> st.SearchStrategy:
    cases = []
    for build, spec in (
        (build_video_encoder, build_video_encoder("pixel-grid").spec()),
        (build_text_encoder, build_text_encoder("hashed-words").spec()),
    ):
        cases.append(st.tuples(st.just(build), mutated(spec) | words | anything))
    return st.one_of(cases)


# -------------------------------------------------------------------------------------------------------- command lines


@cache
def _world() -> Path:
    """A folder with a file or folder of each kind that commands take."""
    folder = scratch() / "world"
    write_lines(folder.parent / "rows.jsonl", *ABOUT_FILMS)
    folder.mkdir()
    write_lines(folder / "rows.jsonl", *ABOUT_FILMS)
    write_lines(folder / "truth.jsonl", *ROWS, RATED)
    write_lines(folder / "predictions.jsonl", *PREDICTIONS)
    shutil.copytree(films(), folder / "films")
    shutil.copytree(_features(), folder / "features")
    make_checkpoint(folder / "model")
    (folder / "empty").mkdir()
    (folder / "empty.jsonl").touch()
    (folder / "table.csv").write_text("video,start,end,sentence\na.mp4,0,2,a square\n")
    (folder / "contract.json").write_text(json.dumps(CONTRACT_VALUES))
    return folder


COMMANDS = {
    "evaluate": (["predictions.jsonl", "truth.jsonl"], ["--clip-length", "--presence-threshold", "--format", "--plot"]),
    "validate": (["rows.jsonl"], ["--videos", "--features", "--reference", "--unlabelled", "--clip-length", "--limit"]),
    "mine-negatives": (
        ["rows.jsonl", "--encoder", "hashed-words", "--out", "out.jsonl"],
        ["--iou-threshold", "--similarity-threshold", "--weight-by-similarity", "--device"],
    ),
    "import": (["table.csv", "--videos", "films", "--out", "out.jsonl"], ["--fps", "--past-end", "--columns"]),
    "pack": (["features", "--out", "packed"], ["--clip-length", "--text", "--rows", "--dtype", "--model"]),
    "extract": (
        [
            *("rows.jsonl", "--videos", "films", "--out", "store", "--video-encoder", "pixel-grid"),
            *("--text-encoder", "hashed-words", "--clip-length", "1"),
        ],
        ["--shard", "--dtype", "--clip-length", "--videos", "--device"],
    ),
    "info": (["model"], ["--revision"]),
    "predict": (
        ["films/a.mp4", "a square", "--model", "model"],
        ["--top-k", "--score-threshold", "--out", "--clip", "--long-video", "--queries", "--csv", "--vtt", "--plot"],
    ),
    "index": (["films", "--out", "index", "--model", "model"], ["--dtype"]),
    "search": (["index", "a square"], ["--top", "--prefilter", "--model"]),
    "calibrate": (["model", "rows.jsonl", "--features", "features", "--out", "calibrated"], ["--seed"]),
    "convert": (["model", "released.ckpt", "--to-released"], ["--lenient", "--prediction-format"]),
}


def _run(case: list[str]) -> None:
    world = _world()
    with chdir(world):
        before = _contents_of_inputs()
        try:
            run_command(*case, finds=True)
        except SystemExit as error:  # argparse, after its one line
            if error.code not in (0, 2):
                raise
            raise ValueError("usage") from error
        finally:
            assert not [name for name in _files_below(world) if name.startswith(".")], "litter"
            assert {name: text for name, text in _contents_of_inputs().items() if name in before} == before


def _contents_of_inputs() -> dict[str, bytes]:
    names = (
        "rows.jsonl",
        "truth.jsonl",
        "predictions.jsonl",
        "films/a.mp4",
        "model/config.json",
        "features/manifest.json",
    )
    return {name: Path(name).read_bytes() for name in names}


@st.composite
def _command_lines(draw: Any) -> list[str]:
    """A command that works, with an argument or two replaced, left out or added."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    usual, options = COMMANDS[name]
    odd = st.sampled_from(
        [
            *("", " ", "-1", "0", "1", "nan", "1e400", "9" * 5000, "1/0", "missing", "empty", "empty.jsonl"),
            *("rows.jsonl", "model", "films", "films/a.mp4", "table.csv", "../rows.jsonl", "\x00", "\ud800", "x" * 300),
            *("cpu", "cuda:99", "contract.json", "/dev/null", "/", ".", "float16", "out/deep/file.json", "a=b", "--"),
            *("index", "picture.png"),
        ]
    )
    arguments = list(usual)
    for _ in range(draw(st.sampled_from([0, 1, 1, 2]))):
        action = draw(st.sampled_from(["replace", "leave out", "add", "option", "option", "option"]))
        if action == "replace" and arguments:
            arguments[draw(st.integers(0, len(arguments) - 1))] = draw(odd)
        elif action == "leave out" and arguments:
            del arguments[draw(st.integers(0, len(arguments) - 1))]
        elif action == "add":
            arguments.append(draw(odd))
        else:
            arguments += [draw(st.sampled_from(options)), draw(odd)]
    return [name, *arguments, "--quiet"]


def rows_and_figures() -> dict[str, EntryPoint]:
    """All of them by name."""
    rows = [*ROWS, RATED]
    lines = mutated(ABOUT_FILMS, nested).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()).flatmap(damaged)
    return {
        "cleaning": EntryPoint(mutated(rows), _clean),
        "written_rows": EntryPoint(mutated(rows), _write),
        "absent_rows": EntryPoint(_absent_files(), _absent),
        "validate_file": EntryPoint(lines, _validate_file, 4),
        "extract": EntryPoint(mutated(ABOUT_FILMS), _extract, 8),
        "pack": EntryPoint(mutated(rows), _pack, 2),
        "statistics": EntryPoint(_statistics(), _figures),
        "model_card": EntryPoint(mutated(RECORD), _card),
        "encoders": EntryPoint(_specs(), _encoder),
        "command_lines": EntryPoint(_command_lines(), _run, 4),
    }
