"""What an import costs and does: light where it can be, registered with transformers in either order."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import modeling_bmdetr
import modeling_bmdetr.data
import modeling_bmdetr.evaluation

PACKAGE = Path(modeling_bmdetr.__file__).parent
HEAVY = ("torch", "transformers")


def run_python(code: str) -> str:
    """What a new interpreter prints as its last line, running `code`."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def heavy_after(code: str) -> list[str]:
    return json.loads(
        run_python(f"{code}\nimport sys, json\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))")
    )


@pytest.mark.parametrize("code", ["from modeling_bmdetr.data import extract_features", "import examples.quickstart"])
def test_what_processes_that_encode_videos_import_needs_no_model(code: str) -> None:
    models = ("transformers.modeling_utils", "modeling_bmdetr.modeling_bmdetr")
    found = run_python(f"{code}\nimport sys, json\nprint(json.dumps([m for m in {models!r} if m in sys.modules]))")
    assert json.loads(found) == []


def cli_code(*arguments: str) -> str:
    """Runs `bmdetr ARGUMENTS` without leaving the interpreter; it must succeed, or find problems in its input."""
    run = f"try: code = main({list(arguments)!r})\nexcept SystemExit as exit: code = exit.code"
    return f"from modeling_bmdetr.cli import main\n{run}\nassert code in (0, 1), code"


@pytest.mark.parametrize(
    "code",
    [
        "import modeling_bmdetr",
        "import modeling_bmdetr.data, modeling_bmdetr.evaluation",
        cli_code("--help"),
        cli_code("predict", "--help"),
    ],
)
def test_importing_the_package_and_asking_for_help_load_no_library(code: str) -> None:
    assert heavy_after(code) == []


@pytest.mark.parametrize("command", ["validate", "validate --features", "evaluate", "import", "stats"])
def test_commands_on_rows_and_metrics_run_without_torch(command: str, tmp_path: Path) -> None:
    row = {"qid": 1, "vid": "a", "query": "a dog", "duration": 10.0, "relevant_windows": [[1, 4]]}
    rows, predictions, table = tmp_path / "rows.jsonl", tmp_path / "predictions.jsonl", tmp_path / "moments.csv"
    rows.write_text(json.dumps(row) + "\n")
    predictions.write_text(json.dumps({**row, "pred_relevant_windows": [[1, 4, 0.5]]}) + "\n")
    table.write_text("video,start,end,query,duration\na,1,2,a dog barks,10\n")
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    (annotations / "charades_sta_train.txt").write_text("AAAAA 1.0 4.0##a dog barks.\n")
    for name in ("Charades_v1_train.csv", "Charades_v1_test.csv"):
        (annotations / name).write_text("id,length\nAAAAA,10.0\n")
    code = {
        "validate": cli_code("validate", str(rows)),
        "validate --features": cli_code("validate", str(rows), "--features", str(tmp_path)),
        "evaluate": cli_code("evaluate", str(predictions), str(rows)),
        "import": cli_code("import", str(table), "--out", str(tmp_path / "imported.jsonl")),
        "stats": f"from dataset_scripts.__main__ import main\n"
        f"assert main(['stats', 'charades_sta', '--data-dir', {str(annotations)!r}, '--splits', 'train']) == 0",
    }[command]
    assert heavy_after(code) == []


REGISTERED = """
from transformers.pipelines import PIPELINE_REGISTRY
config = AutoConfig.for_model("bmdetr", hidden_size=8, num_attention_heads=2, encoder_layers=1, decoder_layers=1)
assert PIPELINE_REGISTRY.check_task("temporal-grounding")[1]["impl"].__name__ == "MomentRetrievalPipeline"
print(type(AutoModel.from_config(config)).__name__, type(config).__name__)
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import modeling_bmdetr\nfrom transformers import AutoConfig, AutoModel, pipeline",
        "from transformers import AutoConfig, AutoModel, pipeline\nimport modeling_bmdetr",
        pytest.param(  # each of these takes an interpreter of its own
            "import transformers\nimport modeling_bmdetr\nfrom transformers import AutoConfig, AutoModel",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "import modeling_bmdetr.pipeline_bmdetr\nfrom transformers import AutoConfig, AutoModel",
            marks=pytest.mark.slow,
        ),
        "from modeling_bmdetr.configuration_bmdetr import BMDetrConfig\nfrom transformers import AutoModel, AutoConfig",
        pytest.param(
            "import modeling_bmdetr.training\nfrom transformers import AutoModel, AutoConfig", marks=pytest.mark.slow
        ),
    ],
)
def test_transformers_knows_the_model_in_whatever_order_the_two_are_imported(imports: str) -> None:
    assert run_python(imports + REGISTERED) == "BMDetrForMomentRetrieval BMDetrConfig"


def test_auto_processor_knows_the_processor_when_it_alone_is_imported(tmp_path: Path) -> None:
    config = modeling_bmdetr.BMDetrConfig(video_dim=4, text_dim=4)
    config.save_pretrained(tmp_path)
    modeling_bmdetr.BMDetrProcessor(config.feature_contract).save_pretrained(tmp_path)
    code = f"import modeling_bmdetr\nfrom transformers import AutoProcessor\nfolder = {str(tmp_path)!r}\n"
    assert run_python(code + "print(type(AutoProcessor.from_pretrained(folder)).__name__)") == "BMDetrProcessor"


def test_a_saved_model_has_its_card_when_only_the_model_s_module_was_imported(tmp_path: Path) -> None:
    code = f"""
from modeling_bmdetr.modeling_bmdetr import BMDetrForMomentRetrieval
from modeling_bmdetr.configuration_bmdetr import BMDetrConfig
config = BMDetrConfig(hidden_size=8, num_attention_heads=2, encoder_layers=1, decoder_layers=1, video_dim=4, text_dim=4)
BMDetrForMomentRetrieval(config).save_pretrained({str(tmp_path)!r})
print("saved")
"""
    run_python(code)
    assert (tmp_path / "README.md").is_file()


@pytest.mark.parametrize("package", [modeling_bmdetr, modeling_bmdetr.data, modeling_bmdetr.evaluation])
def test_names_for_type_checkers_are_the_names_at_run_time(package) -> None:
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    typed = {alias.name: node.module for block in blocks for node in block.body for alias in node.names}
    assert set(typed) == set(package.__all__)
    for name, module in typed.items():
        value = getattr(package, name)
        assert getattr(value, "__module__", "modeling_bmdetr").startswith("modeling_bmdetr"), module
        assert name in dir(package)


def test_an_unknown_name_is_called_unknown() -> None:
    with pytest.raises(AttributeError, match="no attribute 'BMDetrConfg'"):
        modeling_bmdetr.BMDetrConfg  # noqa: B018


@pytest.mark.parametrize(
    ("module", "name"),
    [("feature_files", "FeatureFolder"), ("schema", "read_rows"), ("collator", "MomentRetrievalDataset")],
)
def test_modules_that_moved_are_found_by_their_old_names(module, name) -> None:
    with pytest.warns(DeprecationWarning, match=rf"data\.{module} has moved to modeling_bmdetr\.data\."):
        old = importlib.import_module(f"modeling_bmdetr.data.{module}")
    assert getattr(old, name).__module__ != old.__name__
    del sys.modules[old.__name__]
