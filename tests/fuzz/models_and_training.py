"""Entry points that run, train, calibrate and export models, given tensors, rows, recipes and folders of any kind."""

import copy
import json
import math
import shutil
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import yaml
from app_world import make_video
from entry_points import RATED, ROWS, EntryPoint, model, require_finite, scratch
from factories import (
    CONTRACT,
    SIZES,
    make_model,
    make_rows,
    make_store,
    make_trainer,
    tiny_batch,
    tiny_model,
    write_lines,
)
from hostile_values import anything, arrays, damaged, mutated, nested, numbers, words
from hypothesis import strategies as st
from strangers_files import run_command

from modeling_bmdetr.calibrating import fit_calibration
from modeling_bmdetr.data import pack_features
from modeling_bmdetr.export import DESCRIPTION, export_model, load_exported
from modeling_bmdetr.recipes import read_recipe, training_arguments
from modeling_bmdetr.recipes.own_data import choose_recipe
from modeling_bmdetr.recipes.preparation import build_config, load_rows, open_store

# -------------------------------------------------------------------------------------------------------------- tensors


def _tensors() -> st.SearchStrategy:
    """Of any type and shape, some of them as the tiny batch has them, some with one value that no feature has."""
    shapes = st.sampled_from([(4, 9, 6), (4, 9), (4, 4, 5), (4, 2, 6, 5), (4, 0, 6), (0, 9, 6), (4, 9, 7), (9,), ()])
    types = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64]
    fills = st.sampled_from([0.0, 1.0, -1.0, 1e30, float("nan"), float("inf"), 7.0])

    def make(shape: tuple[int, ...], dtype: torch.dtype, fill: float, form: str) -> Any:
        tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        if tensor.numel() and (tensor.is_floating_point() or abs(fill) < 9):
            tensor.flatten()[0] = fill
        forms = {"sparse": tensor.to_sparse, "meta": lambda: tensor.to("meta"), "array": lambda: np.array(0)}
        return forms.get(form, lambda: tensor)()

    return st.builds(
        make, shapes, st.sampled_from(types), fills, st.sampled_from(["", "", "", "", "sparse", "meta", "array"])
    )


@cache
def _tiny() -> Any:
    return tiny_model()


def _forward(batch: dict[str, Any]) -> None:
    with torch.no_grad():
        outputs = _tiny()(**batch)
    require_finite(outputs)
    spans = outputs["pred_spans"]
    assert spans.shape[0] == len(batch["video_features"])
    assert bool(((spans >= 0) & (spans <= 1)).all())
    if outputs.get("loss") is not None:
        assert outputs["loss"].ndim == 0


# ------------------------------------------------------------------------------------------------------------- training


def _train(rows: Any) -> None:
    """One update, and an evaluation of the rows."""
    options = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    trainer = make_trainer(scratch() / "trained", rows, rows, store=_store(), logging_steps=1, report_to=[], **options)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 1
    assert math.isfinite(losses[0])
    assert losses[0] > 0
    assert all(math.isfinite(value) for name, value in trainer.evaluate().items() if name.startswith("eval_MR-full"))


@cache
def _store() -> Any:
    return make_store([*ROWS, RATED])


@cache
def _labelled() -> tuple[list[Any], Any]:
    rows = make_rows(20)
    return rows, make_store(rows)


def _calibrate(rows: Any) -> None:
    fitted = fit_calibration(copy.deepcopy(model()), rows, _labelled()[1])
    for numbers_of in (fitted.score, fitted.presence):
        assert numbers_of is None or all(map(math.isfinite, numbers_of))
        assert numbers_of is None or numbers_of[0] > 0
    assert fitted.score is not None or fitted.notes.get("score")


# -------------------------------------------------------------------------------------------------------------- recipes


@cache
def _recipe() -> dict[str, Any]:
    """A recipe that `bmdetr train` writes, for rows and features that are there."""
    folder = scratch() / "recipe"
    rows = make_rows(6)
    pack_features(make_store(rows), folder / "features", rows=rows, progress=False)
    (folder / "data").mkdir()
    for name in ("train", "val"):
        write_lines(folder / "data" / f"{name}.jsonl", *rows)
    recipe = choose_recipe(rows, folder, CONTRACT.clip_length, 24.0)
    recipe["features"] = {"video": recipe["features"]["video"], "max_clips": 12}
    return {**recipe, "negatives": {"encoder": "hashed-words"}}


def _read_recipe(case: tuple[bytes, Sequence[str]]) -> None:
    content, overrides = case
    path = scratch() / "recipe.yaml"
    path.write_bytes(content)
    try:
        recipe = read_recipe(path, overrides)
    except ImportError as error:  # documented: a module that is not there
        raise ValueError(str(error)) from error
    json.dumps(recipe.to_dict())
    rows = load_rows(recipe)
    assert rows.train
    assert open_store(recipe, rows).contract.max_clips >= 1
    build_config(recipe, CONTRACT)
    training_arguments(recipe, scratch() / "of_recipe")


def _recipes() -> st.SearchStrategy:
    def as_yaml(document: Any) -> bytes:
        return yaml.safe_dump(document).encode(errors="surrogatepass")

    documents = mutated(_recipe(), nested.filter(_is_yaml)).map(as_yaml)
    places = [f"{section}.{entry}" for section, entries in _recipe().items() for entry in entries]
    overrides = st.builds(lambda place, value: f"{place}={value}", st.sampled_from(places), numbers | words)
    return st.tuples(documents | damaged(as_yaml(_recipe())), st.lists(overrides | words, max_size=2))


def _is_yaml(value: Any) -> bool:
    try:
        yaml.safe_dump(value).encode()
    except (yaml.YAMLError, ValueError):
        return False
    return True


@cache
def _table() -> bytes:
    """Sentences about four short films, in a table."""
    for number in range(4):
        make_video(scratch() / "own" / f"v{number}.mp4", 3.0, seed=number, side=32)
    lines = [f"v{i}.mp4,{i % 2},{i % 2 + 1},scene {i} gets {word}" for i in range(4) for word in ("bright", "dark")]
    return ("\n".join(["video,start,end,sentence", *lines]) + "\n").encode()


def _train_on_own(content: bytes) -> None:
    table, out = scratch() / "own.csv", scratch() / "own_model"
    table.write_bytes(content)
    shutil.rmtree(out, ignore_errors=True)
    sizes = [f"model.{name}={value}" for name, value in SIZES.items()]
    entries = ["training.num_train_epochs=1", "training.dataloader_num_workers=0", "training.report_to=none"]
    encoders = "--video-encoder", "pixel-grid", "--text-encoder", "hashed-words", "--override"
    said = run_command(
        *("train", table, "--videos", scratch() / "own", "--out", out, *encoders, *sizes, *entries),
        *("negatives.encoder=hashed-words", "--quiet", "--json"),
    )
    report = json.loads(said[said.rindex("\n{") :] if "\n{" in said else said)
    for metrics in report["runs"][0]["metrics"].values():
        assert all(math.isfinite(value) for name, value in metrics.items() if name.startswith("MR-full"))
    assert (out / "model" / "config.json").is_file()


# ------------------------------------------------------------------------------------------------------------ exported


@cache
def _exported() -> dict[str, dict[str, bytes]]:
    """The files of an exported model, by format."""
    found = {}
    for form in ("onnx", "torch-export"):
        folder = scratch() / form
        export_model(make_model(), folder, form)  # type: ignore[arg-type]
        found[form] = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found


def _run_exported(case: tuple[str, str, bytes, list[Any]]) -> None:
    form, name, content, inputs = case
    folder = scratch() / "exported"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for other, whole in _exported()[form].items():
        (folder / other).write_bytes(content if other == name else whole)
    (scratch() / "outside.onnx").write_bytes(_exported()["onnx"]["model.onnx"])
    found = load_exported(folder)(*inputs)
    require_finite(found)
    if name == "":
        with torch.no_grad():
            expected = model()(*(torch.as_tensor(part, dtype=torch.float32) for part in inputs))
        for key, value in found.items():
            torch.testing.assert_close(value, expected[key], atol=1e-4, rtol=1e-3)


def _exports() -> st.SearchStrategy:
    whole = [value for name, value in tiny_batch(0, False, False).items()]
    whole = [torch.nn.functional.normalize(value, dim=-1) if value.ndim == 3 else value for value in whole]
    odd = mutated(whole, _tensors() | anything)
    cases = [st.tuples(st.sampled_from(list(_exported())), st.just(""), st.just(b""), odd | st.just(whole))]
    names = st.sampled_from(["../outside.onnx", str(scratch() / "outside.onnx"), "model.pt2", "model.onnx"])
    for form, files in _exported().items():
        for name, content in files.items():
            contents = [damaged(content)]
            if name == DESCRIPTION:
                described = mutated(json.loads(content), nested | names)
                contents += [described.map(lambda document: json.dumps(document).encode())] * 3
                contents += [
                    names.map(lambda other, text=content: json.dumps({**json.loads(text), "file": other}).encode())
                ]
            cases += [st.tuples(st.just(form), st.just(name), part, st.just(whole)) for part in contents]
    return st.one_of(cases)


def models_and_training() -> dict[str, EntryPoint]:
    """All of them by name."""
    batches = mutated(tiny_batch(), _tensors() | arrays | anything)
    return {
        "model_forward": EntryPoint(batches, _forward),
        "trainer": EntryPoint(mutated([*ROWS, RATED]), _train, 10),
        "fit_calibration": EntryPoint(mutated(_labelled()[0]), _calibrate, 4),
        "recipes": EntryPoint(_recipes(), _read_recipe, 2),
        "own_data": EntryPoint(damaged(_table()), _train_on_own, 100),
        # Opening a program of torch.export takes 4 s, and several times that where its many log lines are captured.
        "exported_models": EntryPoint(st.deferred(_exports), _run_exported, 20, limit_s=60),
    }
