"""Model cards: what they say, and that every figure in them comes from the configuration or the record of results."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from factories import make_model, make_trainer
from huggingface_hub import ModelCard
from transformers import TrainerState

from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval
from modeling_bmdetr.cards import TEMPLATE, render_model_card, write_model_card
from modeling_bmdetr.training.record import metrics_of_current_weights, training_record

REPOSITORY = Path(__file__).parents[2]
QUICKSTART = REPOSITORY / "examples" / "results" / "quickstart.json"
RECORD = {
    "metrics": {
        "MR-full-R1@0.5": 71.23,
        "MR-full-R1@0.7": 51.5,
        "MR-full-mIoU": 60.01,
        "MR-full-mAP": 44.0,
        "HL-min-Fair-mAP": 55.5,
        "p_inside": 0.9132,
    },
    "baselines": {"whole video": {"MR-full-R1@0.5": 12.25, "MR-full-mIoU": 21.75}},
    "dataset": {"name": "Kitchen Moments", "id": "tester/kitchen", "split": "test"},
    "data": {"train": {"videos": 240, "queries": 1733}, "test": {"videos": 31, "queries": 177}},
    "training": {"num_train_epochs": 30, "learning_rate": 1e-3, "temporal_shifting": True},
    "seed": 17,
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "examples": ["he cuts bread", "the tap runs"],
}
RAW_VIDEO = BMDetrConfig(
    video_encoders=[{"name": "pixel-grid", "dim": 36, "grid": 2, "frames_per_clip": 3}],
    text_encoder={"name": "hashed-words", "dim": 48},
    video_dim=36,
    text_dim=48,
    clip_length=1.5,
    max_clips=41,
    long_video="window",
)
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)*")


def figures(text: str) -> set[str]:
    """Numbers in a text, without separators of thousands and trailing zeros."""
    found = {number.replace(",", "") for number in NUMBER.findall(text)}
    return {number.rstrip("0").rstrip(".") if number.count(".") == 1 else number for number in found}


def figures_of(value) -> set[str]:
    if isinstance(value, dict):
        return set().union(*(figures_of(inner) | figures(str(name)) for name, inner in value.items()), set())
    if isinstance(value, (list, tuple)):
        return set().union(*map(figures_of, value), set())
    return figures(f"{value:g}") | figures(str(value)) if isinstance(value, float) else figures(str(value))


def assert_figures_have_a_source(card: ModelCard, config: BMDetrConfig, record: dict, parameters: int) -> None:
    longest_s = config.max_clips * config.clip_length
    known = figures_of(record) | figures_of(config.to_dict()) | figures(TEMPLATE.read_text())
    known |= figures_of([parameters, longest_s, round(longest_s)])
    assert figures(str(card)) <= known


def test_every_figure_has_a_source():
    card = render_model_card(RAW_VIDEO, RECORD, parameters=1_234_567)
    assert_figures_have_a_source(card, RAW_VIDEO, RECORD, 1_234_567)
    assert {"71.23", "1234567", "12.25", "17", "0.001", "41", "61.5", "1733"} <= figures(str(card))
    # and the check notices a figure that has none
    changed = ModelCard(str(card).replace("51.50", "51.60"))
    with pytest.raises(AssertionError):
        assert_figures_have_a_source(changed, RAW_VIDEO, RECORD, 1_234_567)


def test_the_header_is_read_back():
    card = ModelCard(
        str(render_model_card(RAW_VIDEO, RECORD, parameters=7, repo_id="a/b", license="mit", language="en"))
    )
    data = card.data
    assert (data.license, data.language, data.library_name, data.datasets) == (
        "mit",
        "en",
        "transformers",
        ["tester/kitchen"],
    )
    assert {"moment-retrieval", "temporal-grounding", "highlight-detection"} <= set(data.tags)
    assert data.model_name == "b"
    results = {result.metric_type: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        name: figure for name, figure in RECORD["metrics"].items() if name != "p_inside"
    }
    assert results["HL-min-Fair-mAP"].task_type == "highlight-detection"
    retrieval = results["MR-full-R1@0.5"]
    assert (retrieval.task_type, retrieval.dataset_name, retrieval.dataset_split) == (
        "temporal-grounding",
        "Kitchen Moments",
        "test",
    )
    # The Hub has no task for this; a wrong one would put the model among others that do something else.
    assert "pipeline_tag" not in data.to_dict()


def test_the_tables_are_tables():
    text = render_model_card(RAW_VIDEO, RECORD, parameters=7).text
    assert "| | R1@0.5 | R1@0.7 | mIoU | mAP |\n|---|---:|---:|---:|---:|\n" in text
    assert "| **this model** | 71.23 | 51.50 | 60.01 | 44.00 |" in text
    assert "| whole video | 12.25 |  | 21.75 |  |" in text
    assert "On Kitchen Moments, test (31 videos, 177 queries)." in text
    assert "| `p_inside` | 0.9132 |" in text
    assert "| data | train: 240 videos, 1,733 queries; test: 31 videos, 177 queries |" in text
    assert "| `temporal_shifting` | yes |" in text
    assert "`pixel-grid` (36 values per clip, grid 2, frames_per_clip 3)" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        lengths = {line.count("|") for line in block.splitlines()}
        assert len(lengths) == 1, block


def test_a_model_of_raw_videos_is_shown_with_a_video_and_its_own_sentences():
    text = render_model_card(RAW_VIDEO, RECORD, parameters=7, repo_id="a/b").text
    assert 'pipeline("temporal-grounding", model="a/b", trust_remote_code=True)' in text
    assert '["he cuts bread", "the tap runs"]' in text
    assert "video_features" not in text


def test_a_model_of_published_features_is_shown_with_features():
    slowfast = BMDetrConfig(video_encoders=[{"name": "slowfast", "dim": 2304}], video_dim=2304)
    for config in (slowfast, BMDetrConfig()):
        text = render_model_card(config, parameters=7).text
        assert f"(clips, {config.video_dim}) float32" in text
        assert "pipe.encode_video" not in text


def test_without_a_record_nothing_is_claimed():
    card = render_model_card(BMDetrConfig(), parameters=9_876_543)
    assert "No results are recorded" in card.text
    assert "No training arguments are recorded" in card.text
    assert "No licence is stated" in card.text
    assert card.data.eval_results is None
    assert card.data.license is None
    assert_figures_have_a_source(card, BMDetrConfig(), {}, 9_876_543)


def test_code_blocks_are_python():
    for config in (RAW_VIDEO, BMDetrConfig()):
        blocks = re.findall(
            r"```python\n(.*?)```", render_model_card(config, RECORD, parameters=7).text, flags=re.DOTALL
        )
        assert blocks
        for block in blocks:
            compile(block, "card", "exec")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"long_video": "truncate"}, "Only the first 75 s"),
        ({"long_video": "resample"}, "pooled to 75 clips"),
        ({"long_video": "window"}, "overlapping windows"),
        ({"background_aware": False}, "differs from the library's defaults in `background_aware=False`"),
        ({"text_rows": "all"}, "padding rows of the text encoder | kept"),
        ({}, "Everything else in its configuration is the library's default."),
    ],
)
def test_the_configuration_is_described(fields, words):
    text = render_model_card(BMDetrConfig(**fields), parameters=7).text
    assert words in text
    assert ("frame probabilities" in text) == fields.get("background_aware", True)


def test_a_record_must_be_one(tmp_path):
    with pytest.raises(ValueError, match="must be a dict"):
        render_model_card(BMDetrConfig(), [1, 2], parameters=7)
    with pytest.raises(ValueError, match=r"flat dict of figures.*'MR'"):
        render_model_card(BMDetrConfig(), {"metrics": {"MR": {"R1": 1.0}}}, parameters=7)
    for name, value in (
        *(("metrics", True), ("metrics", {"MR": 10**400}), ("baselines", {"whole video": [1]}), ("data", [1])),
        *(("dataset", {"name": 5}), ("dataset", {"id": ["a/b"]}), ("repo_id", {}), ("license", 3), ("versions", "1")),
        *(("examples", ["one"]), ("examples", "she"), ("converted", {"from": "a"}), ("training", {5: 5})),
        *(("language", 5), ("language", [5])),
    ):
        with pytest.raises(ValueError, match=r"must be|must have"):
            render_model_card(BMDetrConfig(), {**RECORD, name: value}, parameters=7)
    with pytest.raises(FileNotFoundError):
        render_model_card(BMDetrConfig(), tmp_path / "absent.json", parameters=7)


def test_scalars_of_numpy_leave_a_header_that_anybody_reads(tmp_path):
    """They would become tags of Python, which no reader of YAML takes from a stranger."""
    record = {**RECORD, "metrics": {"MR-full-mIoU": np.float64(60.01)}, "dataset": {"name": np.str_("Kitchen")}}
    (tmp_path / "README.md").write_text(str(render_model_card(BMDetrConfig(), record, parameters=7)))
    (result,) = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert (result.metric_value, result.dataset_name) == (60.01, "Kitchen")


def test_a_card_is_written_from_a_file(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(RECORD))
    model = make_model()
    path = write_model_card(model, tmp_path / "out", tmp_path / "results.json", license="cc-by-4.0")
    card = ModelCard.load(path)
    assert path == tmp_path / "out" / "README.md"
    assert f"with {model.num_parameters():,} parameters" in card.text
    assert "under the licence `cc-by-4.0`" in card.text


# The card of the quickstart


def run_render(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["render_model_card.py", *map(str, arguments)])
    return runpy.run_path(str(REPOSITORY / "examples" / "render_model_card.py"))["main"]()


def test_a_report_becomes_a_record_and_the_record_a_card(tmp_path, monkeypatch, capsys):
    model = make_model(num_queries=5)
    model.save_pretrained(tmp_path / "model")
    report = {
        **{name: RECORD[name] for name in ("metrics", "baselines", "seed", "data", "versions", "training")},
        "swapped_sentences": {"MR-full-R1@0.5": 8.5},
        "answers": [{"query": "a"}, {"query": "b"}, {"query": "c"}],
        "seconds": {"total": 123.4},
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    options = ("--model", tmp_path / "model", "--dataset", "Shapes", "--split", "test", "--license", "mit")
    assert run_render(monkeypatch, tmp_path / "report.json", *options, "--record", tmp_path / "record.json") == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["examples"] == ["a", "b"]
    assert record["config"]["num_queries"] == 5
    assert "seconds" not in record
    assert run_render(monkeypatch, tmp_path / "record.json", "--out", tmp_path / "card.md") == 0
    card = ModelCard.load(tmp_path / "card.md")
    assert "| this model, asked with another sentence of the video | 8.50 |" in card.text
    assert f"with {model.num_parameters():,} parameters" in card.text
    assert card.data.license == "mit"
    assert_figures_have_a_source(card, model.config, record, model.num_parameters())
    assert run_render(monkeypatch, tmp_path / "report.json") == 2
    assert "lacks ['config', 'parameters']" in capsys.readouterr().err


def test_the_card_at_the_top_is_that_of_the_recorded_quickstart(tmp_path, monkeypatch):
    assert run_render(monkeypatch, QUICKSTART, "--out", tmp_path / "card.md") == 0
    text = (tmp_path / "card.md").read_text()
    assert (REPOSITORY / "model_card.md").read_text() == text
    record = json.loads(QUICKSTART.read_text())
    config = BMDetrConfig(**record["config"])
    assert BMDetrForMomentRetrieval(config).num_parameters() == record["parameters"]
    assert_figures_have_a_source(ModelCard(text), config, record, record["parameters"])


# Records of training runs


def log(*entries: dict) -> list[dict]:
    return list(entries)


def evaluation(step: int, figure: float, prefix: str = "eval") -> dict:
    return {f"{prefix}_MR-full-mIoU": figure, f"{prefix}_loss": 1.0, f"{prefix}_p_inside": 0.5, "step": step}


@pytest.mark.parametrize(
    ("history", "best", "steps", "loads_best", "expected"),
    [
        (log(), None, 0, False, ("eval", None)),
        (log(evaluation(1, 10), evaluation(2, 20)), None, 2, False, ("eval", 20)),
        (log(evaluation(1, 10), {"loss": 1, "step": 2}), None, 2, False, ("eval", None)),
        (log(evaluation(1, 30), evaluation(2, 20), {"train_runtime": 1, "step": 2}), 1, 2, True, ("eval", 30)),
        (log(evaluation(1, 30), evaluation(2, 20), {"train_runtime": 1, "step": 2}), 1, 2, False, ("eval", 20)),
        (log(evaluation(1, 30), evaluation(2, 20)), 1, 2, True, ("eval", 20)),
        (log(evaluation(2, 20), {"train_runtime": 1, "step": 2}, evaluation(2, 40)), 2, 2, True, ("eval", 40)),
        (
            log({"train_runtime": 1, "step": 2}, evaluation(2, 50, "test"), evaluation(2, 40)),
            None,
            2,
            False,
            ("test", 50),
        ),
    ],
)
def test_the_metrics_are_those_of_the_weights_at_hand(history, best, steps, loads_best, expected):
    state = TrainerState(log_history=history, best_global_step=best, global_step=steps)
    split, metrics = metrics_of_current_weights(state, loads_best)
    assert (split, metrics.get("MR-full-mIoU")) == expected
    assert set(metrics) <= {"MR-full-mIoU", "p_inside"}


def test_the_record_of_a_trainer(tmp_path):
    trainer = make_trainer(tmp_path, num_train_epochs=1, seed=23)
    trainer.train()
    trainer.evaluate()
    record = json.loads(json.dumps(training_record(trainer, "Tiny")))
    assert record["dataset"] == {"name": "Tiny", "split": "eval"}
    assert record["data"]["train"]["queries"] == len(trainer.train_dataset)
    assert record["data"]["train"]["videos"] == len({row["vid"] for row in trainer.train_dataset})
    assert record["seed"] == 23
    assert record["training"]["temporal_shifting"] is True
    assert "lr_drop_factor" not in record["training"]
    # A reader must see that the figures are of rows that took part in the choice of the weights.
    assert record["training"]["checkpoint_chosen_by"] == "MR-full-R1@0.7 on eval"
    assert record["training"]["optimizer_steps"] == trainer.state.global_step > 0
    last = trainer.state.log_history[-1]
    assert record["metrics"]["MR-full-mIoU"] == last["eval_MR-full-mIoU"]
    assert {"python", "torch", "transformers"} <= set(record["versions"])


def test_the_trainer_writes_card_and_record(tmp_path):
    trainer = make_trainer(tmp_path, num_train_epochs=1)
    trainer.create_model_card(dataset="Tiny", license="mit", tags="mine")
    card = ModelCard.load(tmp_path / "README.md")
    assert "No results are recorded" in card.text
    assert "mine" in card.data.tags
    assert json.loads((tmp_path / "results.json").read_text())["metrics"] == {}
    with pytest.raises(TypeError, match="tasks"):
        trainer.create_model_card(tasks="other")


def test_names_and_sentences_in_a_record_stay_text():
    hostile = 'a | b\n---\n# big `code` <script>alert(1)</script> [x](http://e) *s* "quoted" {{ 7 * 7 }} \\'
    record = {
        **RECORD,
        "dataset": {"name": hostile, "id": "tester/kitchen", "split": hostile},
        "baselines": {hostile: {"MR-full-R1@0.5": 1.0}},
        "training": {hostile: hostile},
        "data": {hostile: {"videos": 1}},
        "versions": {hostile: hostile},
        "examples": [hostile, hostile],
        "license": "other",
    }
    card = ModelCard(str(render_model_card(RAW_VIDEO, record, parameters=7)))
    assert card.data.eval_results[0].dataset_name == hostile
    outside_code = re.sub(r"```.*?```", "", card.text, flags=re.DOTALL)
    assert "<script>" not in re.sub(r"(`+)[^`].*?\1", "", outside_code).replace("\\<", "")
    assert [line for line in outside_code.splitlines() if line.startswith("# ")] == [outside_code.splitlines()[1]]
    assert "{{ 7 * 7 }}" in card.text.replace("\\", "")
    columns = {line.replace("\\|", "").count("|") for line in outside_code.splitlines() if line.startswith("| a ")}
    assert columns == {6}
    for block in re.findall(r"```python\n(.*?)```", card.text, re.DOTALL):
        compile(block, "card", "exec")


def test_a_converted_model_s_card_says_where_its_weights_come_from():
    record = {"converted": {"from": "model_`best`.ckpt", "parameters": 12, "dropped": 3}}
    text = render_model_card(RAW_VIDEO, record, parameters=7).text
    assert "# BM-DETR, converted from the authors' release" in text
    assert "converted from ``model_`best`.ckpt``" in text
    assert "12 parameters were converted, and 3 that no output depends on were dropped" in text
    assert "converted" not in render_model_card(RAW_VIDEO, RECORD, parameters=7).text
