"""What the tests of this folder interrupt: everything of the package that writes for longer than a moment."""

import itertools
import json
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import av
import matplotlib.figure  # noqa: F401 - once here, not in each process that is forked
import numpy as np
import torch
from factories import CONTRACT, make_row, make_rows, make_store

from dataset_scripts.export import export
from dataset_scripts.moving_shapes import render_moving_shapes
from dataset_scripts.tacos import TACoS
from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval, BMDetrProcessor
from modeling_bmdetr.calibrating import fit_calibration
from modeling_bmdetr.cli import main
from modeling_bmdetr.contract_bmdetr import FeatureContract
from modeling_bmdetr.data import extract_features, mine_negative_queries, pack_features, write_rows
from modeling_bmdetr.encoders_bmdetr import build_text_encoder, build_video_encoder
from modeling_bmdetr.evaluation import write_jsonl
from modeling_bmdetr.released import convert_to_folder, export_released
from modeling_bmdetr.visualization import plot_moments

SIZES = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
}
RELEASED = {**SIZES, "video_dim": 8, "text_dim": 8}
_TACOS = {
    "timestamps": [[0, 100], [100, 220], [40, 90]],
    "sentences": ["He cuts bread.", "He waits.", "The tap runs."],
    "fps": 20,
    "num_frames": 240,
}
_ENCODERS = {"name": "pixel-grid", "grid": 8}, "hashed-words"
# A run of `bmdetr train` with six updates, a checkpoint after each second.
_RECIPE = [
    *(f"model.{name}={value}" for name, value in SIZES.items()),
    *("training.num_train_epochs=2", "training.save_steps=2", "training.eval_steps=2", "training.logging_steps=1"),
    *("training.dataloader_num_workers=0", "training.per_device_train_batch_size=2", "training.report_to=none"),
    "negatives.encoder=hashed-words",
]


@dataclass(frozen=True)
class Task:
    """Something that writes to a folder, and what must hold of the folder whenever it is interrupted.

    Attributes:
        run: Called with the folder of inputs and the folder to write to.
        prepare: What is in the folder before.
        grows: Files that are under their names before the task is done.
        finished: Whether the folder says that it is finished; then nothing may be missing. None where nothing grows.
        timed: Files that differ from run to run, since they tell how long it took, or where it was resumed.
    """

    run: Callable[[Path, Path], None]
    prepare: Callable[[Path, Path], None] | None = None
    grows: Callable[[str], bool] = lambda path: False
    finished: Callable[[Path], bool] | None = None
    timed: Callable[[str], bool] = lambda path: False


def released_model(seed: int, **fields: int) -> BMDetrForMomentRetrieval:
    torch.manual_seed(seed)
    return BMDetrForMomentRetrieval(BMDetrConfig.released(**{**RELEASED, **fields}))


def _model_of(contract: FeatureContract, seed: int = 0) -> BMDetrForMomentRetrieval:
    torch.manual_seed(seed)
    return BMDetrForMomentRetrieval(BMDetrConfig.from_contract(contract, **SIZES))


def make_inputs(folder: Path) -> Path:
    """What the tasks read: videos, features, annotations, models, and a released checkpoint."""
    for name in ("videos", "clip", "text", "tacos"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        _render(folder / "videos" / f"v{number}.mp4", level=40 * number)
        np.save(folder / "clip" / f"v{number}.npy", rng.standard_normal((20, 64)).astype(np.float32))
        np.savez(folder / "text" / f"qid{number}.npz", last_hidden_state=rng.standard_normal((5, 8)))
    for split in ("train", "val", "test"):
        (folder / "tacos" / f"{split}.json").write_text(json.dumps({f"{split}.avi": _TACOS}))
    released_model(0).save_pretrained(folder / "model")
    export_released(folder / "model", folder / "released.ckpt")
    lines = [f"v{i}.mp4,{i % 2},{i % 2 + 1},scene {i} gets {word}" for i in range(4) for word in ("bright", "dark")]
    (folder / "table.csv").write_text("\n".join(["video,start,end,sentence", *lines]) + "\n")
    searching = FeatureContract(
        video_encoders=(build_video_encoder("pixel-grid").spec(),),
        text_encoder=build_text_encoder("hashed-words").spec(),
        max_clips=12,
    )
    _model_of(searching).save_pretrained(folder / "searching")
    BMDetrProcessor(searching).save_pretrained(folder / "searching")
    _make_uncalibrated(folder)
    return folder


def _make_uncalibrated(folder: Path) -> None:
    """Labelled rows with features, and a model whose scores can be fitted to them."""
    rows = make_rows(30)
    store = make_store(rows)
    write_rows(folder / "labelled.jsonl", rows)
    pack_features(store, folder / "labelled", rows=rows, progress=False)
    for seed in itertools.count():
        model = _model_of(CONTRACT, seed)
        if fit_calibration(model, rows, store).score is not None:
            model.save_pretrained(folder / "uncalibrated")
            return


def _render(path: Path, level: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for number in range(24):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), level + number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def command(*arguments: object) -> None:
    """Runs a command of `bmdetr`, without its output; one that is interrupted or fails ends the process."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        code = main([str(argument) for argument in arguments])
    if code:
        raise SystemExit(code)


def _extract(inputs: Path, out: Path, workers: int = 0) -> None:
    rows = [make_row(qid=str(i), vid=f"v{i % 3}", query=f"scene {i} gets brighter", duration=3.0) for i in range(9)]
    extract_features(rows, inputs / "videos", out / "store", *_ENCODERS, 1.0, progress=False, workers=workers)


def _pack(inputs: Path, out: Path) -> None:
    contract = FeatureContract(text_rows="all")
    pack_features(inputs / "clip", out / "store", text_dir=inputs / "text", contract=contract, progress=False)


def _mine(inputs: Path, out: Path) -> None:
    rows, _ = mine_negative_queries(make_rows(60, seed=3), encoder="hashed-words", progress=False)
    write_rows(out / "mined.jsonl", rows)


def _export_dataset(inputs: Path, out: Path) -> None:
    export(TACoS(data_dir=inputs / "tacos", cache_dir=inputs / "cache"), out / "export", progress=False)


def _save(inputs: Path, out: Path) -> None:
    released_model(2).save_pretrained(out / "model")


def _save_older(inputs: Path, out: Path) -> None:
    """An older model, whose weights lie in several files."""
    released_model(1, hidden_size=32).save_pretrained(out / "model", max_shard_size=40_000)


def _render_shapes(inputs: Path, out: Path) -> None:
    render_moving_shapes(out / "shapes", 0, {"train": 1, "val": 0, "test": 0}, progress=False)


def _draw(inputs: Path, out: Path) -> None:
    saliency = np.random.default_rng(0).random(60).tolist()
    moment = {"start": 3.0, "end": 9.0, "score": 0.7}
    answer = {"query": "a", "moments": [moment], "saliency": saliency, "duration": 60.0, "clip_length": 1.0}
    plot_moments(answer, path=out / "picture.png")


def _predict(inputs: Path, out: Path) -> None:
    windows = np.random.default_rng(0).random((300, 5, 3)).round(4)
    write_jsonl([{"qid": i, "pred_relevant_windows": part} for i, part in enumerate(windows)], out / "pred.jsonl")


def _index(videos: Path, inputs: Path, out: Path) -> None:
    command("index", videos, "--out", out / "index", "--model", inputs / "searching", "--quiet", "--json")


def _index_more(inputs: Path, out: Path) -> None:
    """An index of four videos, three of which are gone afterwards, so that its features are copied to a new store."""
    videos = inputs / "fewer"
    shutil.rmtree(videos, ignore_errors=True)
    shutil.copytree(inputs / "videos", videos)
    _index(videos, inputs, out)
    for number in (0, 2, 3):
        (videos / f"v{number}.mp4").unlink()


def _copy_uncalibrated(inputs: Path, out: Path) -> None:
    shutil.copytree(inputs / "uncalibrated", out / "model")


def _calibrate(inputs: Path, out: Path) -> None:
    data = inputs / "labelled.jsonl", "--features", inputs / "labelled"
    command("calibrate", out / "model", *data, "--quiet", "--json")


def _export(inputs: Path, out: Path, *options: str) -> None:
    """As a user does it, who does not export again what is there."""
    if not (out / "exported").exists():
        command("export", inputs / "model", "--out", out / "exported", *options, "--quiet", "--json")


def _train(inputs: Path, out: Path) -> None:
    """As a user does it who starts `bmdetr train` again with --resume, wherever it was interrupted."""
    os.chdir(out)  # the recipe names the folder of the features as it was given
    data = inputs / "table.csv", "--videos", inputs / "videos", "--out", "run"
    encoders = "--video-encoder", "pixel-grid", "--text-encoder", "hashed-words"
    command("train", *data, *encoders, "--override", *_RECIPE, "--resume", "--quiet", "--json")


def _is_index_finished(out: Path) -> bool:
    manifest = out / "index" / "index.json"
    return manifest.is_file() and json.loads(manifest.read_text())["complete"]


def _is_store_finished(out: Path) -> bool:
    manifest = out / "store" / "manifest.json"
    return manifest.is_file() and json.loads(manifest.read_text())["complete"]


def _in_store(path: str) -> bool:
    """Files of a store, which grow; its manifest is written whole, and says that the store is unfinished."""
    return path.startswith("store/")


def _in_index(path: str) -> bool:
    return path.startswith("index/")


def _while_training(path: str) -> bool:
    """Features grow, other checkpoints are there on the way than in the end, and one in work is nobody's to read; the
    report stands without a verdict first."""
    return path.startswith(("run/features/", "run/checkpoint-", "run/_unfinished/", "run/report.md"))


def _with_times(path: str) -> bool:
    """The reports tell how long the run took, and so do the states and cards of its checkpoints."""
    of_times = ("report.json", "result.json", "results.json", "README.md", "trainer_state.json", "training_args.bin")
    return path.startswith("run/") and path.endswith(of_times)


TASKS: dict[str, Task] = {
    "extract": Task(_extract, grows=_in_store, finished=_is_store_finished),
    "pack": Task(_pack, grows=_in_store, finished=_is_store_finished),
    "mine": Task(_mine),
    "export_dataset": Task(_export_dataset),
    "save": Task(_save),
    "save_over_an_older_model": Task(_save, _save_older),
    "convert": Task(lambda inputs, out: convert_to_folder(inputs / "released.ckpt", out / "model")),
    "to_released": Task(lambda inputs, out: export_released(inputs / "model", out / "model.ckpt")),
    "render": Task(_render_shapes),
    "draw": Task(_draw),
    "predict": Task(_predict),
    "index": Task(
        lambda inputs, out: _index(inputs / "videos", inputs, out), grows=_in_index, finished=_is_index_finished
    ),
    "index_fewer": Task(
        lambda inputs, out: _index(inputs / "fewer", inputs, out), _index_more, _in_index, _is_index_finished
    ),
    "calibrate": Task(_calibrate, _copy_uncalibrated),
    "export_program": Task(lambda inputs, out: _export(inputs, out, "--format", "torch-export")),
    "export_onnx": Task(lambda inputs, out: _export(inputs, out, "--format", "onnx", "--int8")),
    "train": Task(_train, grows=_while_training, timed=_with_times),
}
