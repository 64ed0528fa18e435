"""Entry points that open files which anybody may have made: subtitles, and the files of a checkpoint."""

import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from annotation_samples import DURATIONS_S
from app_world import make_checkpoint, make_pipeline, make_video
from entry_points import CALIBRATION, OPTIONS, EntryPoint, annotated_videos, require_answer, scratch
from hostile_values import damaged, mutated, nested, numbers, words
from hypothesis import strategies as st
from safetensors.torch import load, save

from modeling_bmdetr.calibration_bmdetr import weights_fingerprint
from modeling_bmdetr.cli import main
from modeling_bmdetr.data.rows.importers import import_annotations
from modeling_bmdetr.data.rows.validation import validate_rows
from modeling_bmdetr.pipeline_bmdetr import EncodedVideo

VIDEO_S = 3.0

# ------------------------------------------------------------------------------------------------------------ captions


def _captions(case: tuple[str, str]) -> None:
    suffix, text = case
    path = scratch() / f"kitchen{suffix}"
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    rows, _ = import_annotations(path, annotated_videos(), OPTIONS)
    assert not validate_rows(rows).errors
    for row in rows:
        for start, end in row["relevant_windows"]:
            assert 0 <= start < end <= DURATIONS_S["kitchen"]


@st.composite
def _caption_files(draw: Any) -> tuple[str, str]:
    """Files of cues, most of them right, with what players meet between them."""
    suffix = draw(st.sampled_from([".vtt", ".srt"]))
    separator = "." if suffix == ".vtt" else ","
    odd_times = st.sampled_from(
        ["", "1:2:3", "00:61.000", "99:99:99.999", "-00:05.000", "NaN", "９:00.000", "0" * 3000]
    )
    right_times = st.integers(0, 70_000).map(
        lambda ms: f"00:{ms // 60000:02}:{ms // 1000 % 60:02}{separator}{ms % 1000:03}"
    )
    times = right_times | right_times | right_times | odd_times | words
    right_ends = st.integers(1, 9_000)
    pieces = [draw(st.sampled_from(["WEBVTT", "WEBVTT", "WEBVTT - kitchen", "\ufeffWEBVTT", "", "webvtt"]))]
    start_ms = 0
    for number in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(["cue", "cue", "cue", "odd cue", "note", "other"]))
        text = draw(
            st.sampled_from(["He <i>cuts</i> bread.", "<v Ann>She &amp; he", "{\\an8}two\nlines", "<" * 2000]) | words
        )
        if kind == "cue":
            end_ms = start_ms + draw(right_ends)
            stamps = [f"00:00:{ms // 1000:02}{separator}{ms % 1000:03}" for ms in (start_ms, end_ms)]
            pieces.append(f"{number}\n{' --> '.join(stamps)} {draw(st.sampled_from(['', 'align:start']))}\n{text}")
            start_ms = end_ms
        elif kind == "odd cue":
            arrow = draw(st.sampled_from([" --> ", "-->", " -> ", " --> --> ", "\t-->\t"]))
            pieces.append(f"{draw(times)}{arrow}{draw(times)}\n{text}")
        else:
            pieces.append(f"NOTE {text}" if kind == "note" else text)
    return suffix, draw(st.sampled_from(["\n\n", "\r\n\r\n", "\n\n\n", "\r\r", "\n"])).join(pieces)


# --------------------------------------------------------------------------------------------------------- model files


@cache
def _checkpoint() -> dict[str, bytes]:
    """The files of a calibrated checkpoint whose encoders need no weights."""
    folder = make_checkpoint(scratch() / "whole_model")
    config = json.loads((folder / "config.json").read_text())
    calibration = {**CALIBRATION, "fingerprint": weights_fingerprint(make_pipeline(folder).model)}
    (folder / "config.json").write_text(json.dumps({**config, "calibration": calibration}))
    make_video(scratch() / "asked.mp4", VIDEO_S)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".safetensors")}


def _damaged_model(case: tuple[str, bytes]) -> Path:
    name, content = case
    folder = scratch() / "damaged_model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for other, whole in _checkpoint().items():
        (folder / other).write_bytes(content if other == name else whole)
    return folder


def _load_model(case: tuple[str, bytes]) -> None:
    pipe = make_pipeline(_damaged_model(case))
    contract = pipe.processor.contract
    rng = np.random.default_rng(0)
    video = EncodedVideo(rng.standard_normal((3, contract.video_dim)).astype(np.float32), VIDEO_S, "v")
    text = [rng.standard_normal((4, contract.text_dim)).astype(np.float32)]
    answer = pipe(video, "a square", text_features=text)
    require_answer(answer["moments"], VIDEO_S)
    assert 0 <= answer["presence"] <= 1


def run_command(*arguments: object, finds: bool = False) -> str:
    """What a command of `bmdetr` prints; `ValueError` where it refuses with its one line.

    `finds` says that it may find faults in what it was given, with exit code 1.
    """
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    assert code in (0, 2) or (finds and code == 1), f"exit code {code}: {err.getvalue()}"
    assert "a fault of bmdetr" not in err.getvalue(), err.getvalue()
    if code == 2:
        lines = [line for line in err.getvalue().splitlines() if line.startswith("bmdetr ")]
        assert len(lines) == 1, err.getvalue()
        raise ValueError(lines[0])
    return out.getvalue()


def _info(case: tuple[str, bytes]) -> None:
    json.loads(run_command("info", _damaged_model(case), "--json", "--quiet"), parse_constant=_no_constant)


def _predict(case: tuple[str, bytes]) -> None:
    model = _damaged_model(case)
    said = run_command("predict", scratch() / "asked.mp4", "a square", "--model", model, "--json", "--quiet")
    for answer in json.loads(said, parse_constant=_no_constant)["answers"]:
        require_answer(answer["moments"], VIDEO_S)


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} in the answer")


def _model_files() -> st.SearchStrategy:
    cases = []
    for name, content in sorted(_checkpoint().items()):
        cases.append(st.tuples(st.just(name), damaged(content)))
        if name.endswith(".json"):
            document = json.loads(content)
            values = nested | numbers
            cases += [st.tuples(st.just(name), mutated(document, values).map(_as_json))] * 3
            for part in ("calibration", "feature_contract"):
                if isinstance(document.get(part), dict):
                    whole = mutated(document[part], values).map(
                        lambda value, d=document, p=part: _as_json({**d, p: value})
                    )
                    cases.append(st.tuples(st.just(name), whole))
        else:
            tensors = mutated(load(content), st.sampled_from(_odd_tensors())).map(_as_safetensors)
            cases.append(st.tuples(st.just(name), tensors))
    return st.one_of(cases)


def _odd_tensors() -> list[torch.Tensor]:
    filled = [torch.full((16, 16), value) for value in (float("nan"), float("inf"), 1e38, 0.0)]
    shaped = [torch.zeros(shape) for shape in ((0,), (16,), (16, 16), (3, 3, 3), ())]
    return [*filled, *shaped, torch.ones(16, 16, dtype=torch.int64), torch.ones(16, dtype=torch.bool)]


def _as_safetensors(tensors: dict[str, torch.Tensor]) -> bytes:
    return bytes(save({name: value.clone() for name, value in tensors.items() if "\ud800" not in name}))


def _as_json(document: Any) -> bytes:
    return json.dumps(document).encode()


def strangers_files() -> dict[str, EntryPoint]:
    """All of them by name."""
    return {
        "captions": EntryPoint(_caption_files(), _captions),
        "model_files": EntryPoint(_model_files(), _load_model, 4),
        "info": EntryPoint(_model_files(), _info, 4),
        "predict": EntryPoint(_model_files(), _predict, 8),
    }
