"""A target that cannot be written is one line that says so, before anything slow is done, and nothing is changed."""

import shutil
from pathlib import Path

import pytest
from app_world import make_video
from factories import make_model, make_rows

import modeling_bmdetr.data as data
import modeling_bmdetr.data.rows.importers.command as importing
from dataset_scripts.__main__ import main as dataset_main
from modeling_bmdetr import BMDetrForMomentRetrieval, evaluation, released
from modeling_bmdetr.cli import main
from modeling_bmdetr.data import write_rows
from modeling_bmdetr.recipes import Recipe, own_data, running, train_by_recipe

SLOW = [
    *((data, name) for name in ("extract_features", "pack_features", "mine_negative_queries")),
    *((importing, "import_annotations"), (own_data, "import_annotations"), (released, "convert_to_folder")),
    *((released, "export_released"), (evaluation, "evaluate_submission")),
    (BMDetrForMomentRetrieval, "from_pretrained"),
]
ENCODERS = "--video-encoder pixel-grid --text-encoder hashed-words"
# What is written where; IN is the folder of inputs.
FILES = {
    "predict": "predict IN/v.mp4 a --model IN/model --out",
    "predict --json": "predict IN/v.mp4 a --model IN/model --json --out",
    "predict --csv": "predict IN/v.mp4 a --model IN/model --csv --out",
    "predict --vtt": "predict IN/v.mp4 a --model IN/model --vtt --out",
    "predict --plot": "predict IN/v.mp4 a --model IN/model --plot",
    "predict --clip": "predict IN/v.mp4 a --model IN/model --clip",
    "mine-negatives": "mine-negatives IN/rows.jsonl --out",
    "import": "import IN/table.csv --out",
    "convert --to-released": "convert IN/model --to-released",
    "evaluate": "evaluate IN/rows.jsonl IN/rows.jsonl --plot",
    "stats": "dataset stats tacos --data-dir IN --out",
}
FOLDERS = {
    "extract": f"extract IN/rows.jsonl --videos IN {ENCODERS} --clip-length 1 --out",
    "pack": "pack IN --out",
    "index": "index IN --model IN/model --out",
    "train": "train IN/table.csv --videos IN --out",
    "calibrate": "calibrate IN/model IN/rows.jsonl --features IN --out",
    "convert": "convert IN/old.ckpt",
    "export": "export IN/model --out",
    "export of a data set": "dataset export tacos --data-dir IN --out",
}
SUFFIXES = {
    "predict --plot": ".png",
    "evaluate": ".png",
    "predict --clip": ".mp4",
    "predict --csv": ".csv",
    "predict --vtt": ".vtt",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_video(folder / "v.mp4", 1.0)
    write_rows(folder / "rows.jsonl", make_rows(3))
    (folder / "table.csv").write_text("video,start,end,sentence\nv.mp4,0,1,a door opens\n")
    (folder / "old.ckpt").write_bytes(b"weights")
    make_model().save_pretrained(folder / "model")
    return folder


@pytest.fixture
def nothing_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in SLOW:
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("not to be reached"))


def run(line: str, inputs: Path, target: Path) -> int:
    words = [word.replace("IN", str(inputs), 1) if word.startswith("IN") else word for word in line.split()]
    return dataset_main([*words[1:], str(target)]) if words[0] == "dataset" else main([*words, str(target)])


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("place", ["below a file", "where no file can be made"])
@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_it_is_refused_in_one_line_before_anything_slow(name, place, inputs, tmp_path, nothing_slow, capsys):
    folder = Path("/proc")
    if place == "below a file":
        folder = tmp_path / "note.txt"
        folder.write_text("kept")
    elif not (folder / "self").exists():
        pytest.skip("there is no /proc here")
    before = contents(inputs)
    target = folder / f"out{SUFFIXES.get(name, '.json')}" if name in FILES else folder / "new" / "out"
    assert run({**FILES, **FOLDERS}[name], inputs, target) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1, said.err
    assert str(folder) in said.err
    assert contents(inputs) == before
    if place == "below a file":
        assert folder.read_text() == "kept"


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("mine-negatives IN/rows.jsonl --out", "rows.jsonl"),
        ("import IN/table.csv --out", "table.csv"),
        ("predict IN/v.mp4 a --model IN/model --out", "v.mp4"),
        ("evaluate IN/rows.jsonl IN/truth.png --plot", "truth.png"),
        ("convert IN/model --to-released", "model/model.safetensors"),
        ("convert IN/released/model.safetensors", "released"),
    ],
)
def test_what_is_read_is_not_written_over(line, target, inputs, tmp_path, nothing_slow, capsys):
    folder = shutil.copytree(inputs, tmp_path / "inputs")
    (folder / "truth.png").write_bytes(b"rows")
    (folder / "released").mkdir()
    (folder / "released" / "model.safetensors").write_bytes(b"weights")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run(line, folder, folder / target) == 2
    said = capsys.readouterr()
    assert "is what is read, and would be lost: write to another file" in said.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_model_on_a_disk_that_is_read_only_is_not_calibrated(inputs, tmp_path, nothing_slow, capsys, monkeypatch):
    """Without --out the checkpoint's own folder is written to."""
    shutil.copytree(inputs / "model", tmp_path / "model")

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    line = f"calibrate {tmp_path / 'model'} {inputs / 'rows.jsonl'} --features {inputs}"
    assert main(line.split()) == 2
    assert f"'{tmp_path / 'model'}' cannot be written to (Read-only file system)" in capsys.readouterr().err


def test_a_recipe_is_not_run_into_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "load_rows", lambda *_: pytest.fail("not to be reached"))
    (tmp_path / "note.txt").touch()
    with pytest.raises(NotADirectoryError, match=r"'\S*note\.txt' is no folder"):
        train_by_recipe(Recipe({}, {}, {}, {}, {}), tmp_path / "note.txt" / "out")


def test_a_target_that_can_be_made_is_not_refused_and_not_made(tmp_path, inputs, capsys):
    assert main(["export", str(inputs / "nowhere"), "--out", str(tmp_path / "a" / "b")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert contents(tmp_path) == []
