"""A loss of a user's module, by its name in configurations, recipes, the command line, the Trainer and checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from annotation_samples import write_video
from factories import make_trainer, tiny_batch, tiny_model

from modeling_bmdetr import BMDetrForMomentRetrieval, plugins_bmdetr
from modeling_bmdetr.cli import main
from modeling_bmdetr.plugins_bmdetr import import_plugins
from modeling_bmdetr.recipes import read_recipe

LOSS = """
from modeling_bmdetr.loss_bmdetr import BMDetrLoss, LossTerm
from modeling_bmdetr.plugins_bmdetr import register_loss


class WidthLoss(BMDetrLoss):
    terms = {**BMDetrLoss.terms, "loss_width": LossTerm(0.5, lambda x: x.outputs["pred_spans"][..., 1].mean())}


register_loss("NAME", WidthLoss)
"""


@pytest.fixture(autouse=True)
def nothing_imported(monkeypatch):
    """Plug-ins of one test are not those of another."""
    monkeypatch.setattr(plugins_bmdetr, "_imported", [])
    monkeypatch.setattr(plugins_bmdetr, "_losses", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)


def write_loss(folder: Path, module: str, name: str) -> None:
    (folder / f"{module}.py").write_text(LOSS.replace("NAME", name))


def test_a_registered_loss_is_the_models_and_its_checkpoints(tmp_path, monkeypatch):
    write_loss(tmp_path, "losses_of_the_test", "width")
    monkeypatch.chdir(tmp_path)
    import_plugins(["losses_of_the_test"])
    model = tiny_model(loss="width")
    output = model(**tiny_batch())
    assert output.loss_dict["loss_width"] == pytest.approx(output.pred_spans[..., 1].mean().item())
    model.save_pretrained(tmp_path / "model")
    assert type(BMDetrForMomentRetrieval.from_pretrained(tmp_path / "model").criterion).__name__ == "WidthLoss"


def test_an_installed_package_declares_its_loss(tmp_path, monkeypatch):
    write_loss(tmp_path, "packaged_losses", "packaged-width")
    information = tmp_path / "packaged_losses-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: packaged-losses\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[modeling_bmdetr.plugins]\nwidth = packaged_losses\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "loss_width" in tiny_model(loss="packaged-width").criterion.terms


def test_a_checkpoint_answers_without_its_loss_but_does_not_train(tmp_path):
    model = tiny_model(loss="lost")
    with torch.no_grad():
        assert model(**tiny_batch(labels=False)).scores.isfinite().all()
    message = r"`loss` must be the name of a registered loss .*received 'lost'.*--import"
    with pytest.raises(ValueError, match=message):
        model(**tiny_batch())
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, model={"loss": "lost"})


def test_recipes_import_what_they_name(tmp_path, monkeypatch):
    write_loss(tmp_path, "losses_of_a_recipe", "of-a-recipe")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("model: {loss: of-a-recipe}\n")
    with pytest.raises(ValueError, match=r"`loss` must be the name of a registered loss.*'of-a-recipe'"):
        read_recipe("r.yaml")
    (tmp_path / "r.yaml").write_text("import: [losses_of_a_recipe]\nmodel: {loss: of-a-recipe}\n")
    recipe = read_recipe("r.yaml")
    assert recipe.imports == ("losses_of_a_recipe",)
    assert recipe.to_dict()["import"] == ["losses_of_a_recipe"]
    for wrong in ("import: losses_of_a_recipe\n", "import: [1]\n"):
        (tmp_path / "r.yaml").write_text(wrong)
        with pytest.raises(ValueError, match=r"`import` of 'r\.yaml' must be a list of modules"):
            read_recipe("r.yaml")
    (tmp_path / "r.yaml").write_text("import: [no_such_losses]\n")
    with pytest.raises(ImportError, match="cannot import the plug-in 'no_such_losses'"):
        read_recipe("r.yaml")


OWN_GRID = """
from modeling_bmdetr.encoders_bmdetr import PixelGridVideoEncoder, register_video_encoder


class OwnGrid(PixelGridVideoEncoder):
    name = "own-grid"


register_video_encoder("own-grid", OwnGrid)
"""
SMALL = ["hidden_size=16", "intermediate_size=16", "num_attention_heads=2"]


@pytest.fixture
def trained(tmp_path, monkeypatch, capsys):
    """What `bmdetr train --import own_parts`, with the module's encoder and loss, printed in the working directory."""
    write_loss(tmp_path, "own_parts", "own-width")
    with (tmp_path / "own_parts.py").open("a") as file:
        file.write(OWN_GRID)
    (tmp_path / "videos").mkdir()
    lines = ["video,start,end,sentence"]
    for number in range(3):
        write_video(tmp_path / "videos" / f"v{number}.mp4", 10.0)
        lines += [f"v{number}.mp4,1,5,It gets brighter.", f"v{number}.mp4,6,9,It darkens."]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    command = ["train", "rows.csv", "--videos", "videos", "--out", "out", "--video-encoder", "own-grid"]
    command += ["--text-encoder", "hashed-words", "--import", "own_parts", "--override", "model.loss=own-width"]
    assert main([*command, *(f"model.{size}" for size in SMALL), "training.num_train_epochs=1"]) == 0
    return capsys.readouterr().out


def test_a_loss_and_an_encoder_on_the_command_line(trained):
    assert yaml.safe_load(Path("out/recipe.yaml").read_text())["import"] == ["own_parts"]
    assert json.loads(Path("out/model/config.json").read_text())["loss"] == "own-width"
    assert "'loss_width'" in trained  # as the Trainer logs it


@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_other_processes_import_them_by_name():
    """`bmdetr predict --import`, and the recipe that lies beside the model."""
    root = str(Path(__file__).parents[1])
    run = {"env": {**os.environ, "PYTHONPATH": root}, "capture_output": True}
    code = "import sys; from modeling_bmdetr.cli import main; sys.exit(main(sys.argv[1:]))"
    ask = [sys.executable, "-c", code, "predict", "videos/v0.mp4", "It darkens.", "--model", "out/model", "--quiet"]
    assert subprocess.run([*ask, "--import", "own_parts"], **run).returncode == 0
    refused = subprocess.run(ask, **run)
    assert refused.returncode == 2
    assert b"unknown video encoder 'own-grid'" in refused.stderr
    again = [sys.executable, f"{root}/examples/train.py", "out/recipe.yaml", "--out", "again", "--override"]
    again += ["model.loss=own-width", *(f"model.{size}" for size in SMALL), "training.num_train_epochs=1"]
    assert subprocess.run(again, **run).returncode == 0
    first, second = (json.loads(Path(f"{out}/result.json").read_text())["metrics"] for out in ("out", "again"))
    assert first == second
