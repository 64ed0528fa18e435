"""The ablation grid: variants, resuming after SIGKILL, sharing between processes, tables."""

import csv
import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import ablate
import ablation_data
import ablation_report
import numpy as np
import pytest
from ablation_variants import PRESETS, REFERENCE, TABLES, VARIANTS, select_variants

from modeling_bmdetr import BMDetrConfig
from modeling_bmdetr.configuration_bmdetr import FeatureContract
from modeling_bmdetr.data import read_rows, write_rows
from modeling_bmdetr.data.features.writer import FeatureWriter
from modeling_bmdetr.training import BMDetrTrainingArguments

CONTRACT = FeatureContract(
    video_encoders=({"name": "random", "dim": 8},), text_encoder={"name": "random text", "dim": 6}, clip_length=2.0
)
MODEL = ["hidden_size=16", "num_attention_heads=2", "intermediate_size=16", "alignment_dim=8"]
TRAINING = ["num_train_epochs=2", "lr_drop_epochs=1", "per_device_train_batch_size=8"]


@pytest.fixture
def folder(tmp_path):
    """Rows of six videos with two queries each, that are each other's negatives, and features for them."""
    rng = np.random.default_rng(0)
    with FeatureWriter(tmp_path / "features", CONTRACT) as writer:
        for split in ("train", "test"):
            rows = []
            for video in range(6):
                writer.add_video(f"{split}{video}", rng.standard_normal((10, 8)))
                for number in range(2):
                    qid, other = (f"{split}{video}_{i}" for i in (number, 1 - number))
                    writer.add_text(qid, rng.standard_normal((4, 6)), f"sentence {qid}")
                    window = [2.0 + 10 * number, 8.0 + 10 * number]
                    row = {"qid": qid, "vid": f"{split}{video}", "query": f"sentence {qid}", "duration": 20.0}
                    rows.append({**row, "relevant_windows": [window], "neg_query_ids": [other]})
            write_rows(tmp_path / f"{split}.jsonl", rows)
        writer.finish()
    return tmp_path


def arguments(folder, variants, seeds="0", out="out", **options):
    extra = [item for name, value in options.items() for item in (f"--{name.replace('_', '-')}", str(value))]
    return [
        *("--train-rows", str(folder / "train.jsonl"), "--eval-rows", str(folder / "test.jsonl")),
        *("--features", str(folder / "features"), "--out", str(folder / out), "--seeds", seeds),
        *("--model", *MODEL, "--training", *TRAINING, "--variants", *variants, *extra),
    ]


def results_of(folder, out="out"):
    results = [json.loads(path.read_text()) for path in sorted((folder / out / "runs").glob("[!.]*.json"))]
    return {(result["variant"], result["seed"]): result for result in results}


def comparable(result):
    timings = ("seconds", "metrics", "losses", "history")
    metrics = {name: value for name, value in result["metrics"].items() if "second" not in name and name != "runtime"}
    return {**{name: value for name, value in result.items() if name not in timings}, "metrics": metrics}


def test_every_variant_is_valid_and_names_are_distinct_within_their_tables():
    labels = [(variant.table, variant.label) for variant in VARIANTS.values()]
    assert len(set(labels)) == len(labels)
    for variant in VARIANTS.values():
        assert variant.table in TABLES
        for preset in PRESETS.values():
            BMDetrConfig(**{**preset.model, **variant.model})
            BMDetrTrainingArguments(output_dir="unused", **{**preset.training, **variant.training})


def test_variants_do_what_their_names_say():
    off = VARIANTS["components_none"]
    config = BMDetrConfig(**off.model)
    assert not config.background_aware
    assert not config.learnable_spans
    assert config.alignment_loss_weight == 0
    assert off.training == {"temporal_shifting": False}
    assert VARIANTS["components_bmd_fs_ls_ts"].model == {}
    assert VARIANTS["components_bmd_fs_ls_ts"].training == {"temporal_shifting": True}
    literal = BMDetrConfig(**VARIANTS["objective_2_0_0"].model)
    assert (literal.probability_loss_weight, literal.positive_probability_loss_weight) == (2, 0)
    assert literal.negative_probability_loss_weight == 0
    without = BMDetrConfig(**VARIANTS["losses_lm_ls_lp"].model)
    assert without.class_loss_weight == without.l1_loss_weight == without.giou_loss_weight == 0
    assert without.margin_loss_weight > 0
    assert VARIANTS["no_negatives"].training["negative_sampling"] == "none"
    assert {VARIANTS[f"negatives_{n}"].training["num_negatives"] for n in (1, 2, 4)} == {1, 2, 4}


def test_variants_are_chosen_by_name_and_table_with_the_reference_first():
    names = [variant.name for variant in select_variants(["form_attended_literal", "shifting"])]
    assert names == [REFERENCE, "form_attended_literal", "shifting_off", "shifting_short", "shifting_all"]
    names = [variant.name for variant in select_variants(["components_ts"])]
    assert names == ["components_bmd_fs_ls_ts", "components_ts"]
    assert len(select_variants(["all"])) == len(VARIANTS)
    with pytest.raises(ValueError, match="unknown variant 'nothing'"):
        select_variants(["nothing"])


def test_a_killed_grid_goes_on_with_what_is_missing(folder):
    """SIGKILL after the first result; the same command then does the rest, and both agree with an unbroken grid."""
    command = arguments(folder, ["objective_2_0_0"], "0,1")
    process = subprocess.Popen(
        [sys.executable, ablate.__file__, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not results_of(folder) if (folder / "out" / "runs").is_dir() else True:
        assert process.poll() is None, "the grid ended before it had a result"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = results_of(folder)
    assert 0 < len(done) < 4
    before = {path: path.stat().st_mtime_ns for path in (folder / "out" / "runs").glob("[!.]*.json")}

    ablate.main(command)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    ablate.main(arguments(folder, ["objective_2_0_0"], "0,1", out="unbroken"))
    resumed, unbroken = results_of(folder), results_of(folder, "unbroken")
    assert set(resumed) == {(name, s) for name in (REFERENCE, "objective_2_0_0") for s in (0, 1)}
    assert {key: comparable(value) for key, value in resumed.items()} == {
        key: comparable(value) for key, value in unbroken.items()
    }


def test_a_half_written_result_does_not_count(folder, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        ablate.write_json(folder / "runs" / "a.json", {"variant": "a"})
    assert not list((folder / "runs").glob("[!.]*.json"))


def test_runs_that_compute_the_same_are_done_once_and_other_settings_are_done_again(folder, capsys, monkeypatch):
    cwd = folder / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    ablate.main(arguments(folder, ["losses_l_lm_ls_lp", "sampling_mined"], evaluate_at="1"))
    assert set(results_of(folder)) == {(REFERENCE, 0)}  # both are the reference by another name
    assert "3 of 3 runs done" in capsys.readouterr().out
    result = results_of(folder)[REFERENCE, 0]
    assert [entry["epoch"] for entry in result["history"]] == [1, 2]
    assert result["history"][-1]["MR-full-R1@0.7"] == result["metrics"]["MR-full-R1@0.7"]
    assert result["steps"] == 4
    ablate.main([*arguments(folder, [REFERENCE]), "--training", *TRAINING[1:], "num_train_epochs=1"])
    assert len(list((folder / "out" / "runs").glob("[!.]*.json"))) == 2
    # The best of several checkpoints is another result, although these are the defaults of the training arguments.
    best = ["eval_strategy=epoch", "save_strategy=epoch", "load_best_model_at_end=true"]
    ablate.main([*arguments(folder, [REFERENCE]), "--training", *TRAINING[1:], "num_train_epochs=1", *best])
    assert len(list((folder / "out" / "runs").glob("[!.]*.json"))) == 3
    assert not list(cwd.iterdir())  # nothing lies about
    with open(folder / "out" / "ablation.csv", newline="") as file:
        assert [row["variant"] for row in csv.DictReader(file)] == [REFERENCE]


def test_a_run_that_another_process_is_at_is_left_out(folder):
    files = (str(folder / "train.jsonl"), str(folder / "test.jsonl"), [str(folder / "features")])
    data = ablation_data.load_data("rows", folder, None, *files)
    small = {**ablate.parse_settings(MODEL), "encoder_layers": 1, "decoder_layers": 1}
    runs = ablate.plan_runs([VARIANTS[REFERENCE]], [0], PRESETS["rows"], data, small, ablate.parse_settings(TRAINING))
    with ablate._claim(folder / "claims" / f"{runs[0].digest}-seed0") as mine:
        assert mine
        assert not ablate.run_grid(runs, data, folder, report=False)
    assert not (folder / "runs").exists()
    assert not ablate.run_grid(runs, data, folder, report=False, parent=os.getppid() + 1)  # an orphan stops
    assert not (folder / "runs").exists()
    assert ablate.run_grid(runs, data, folder, report=False)
    assert set(results_of(folder, "")) == {(REFERENCE, 0)}
    other_rows = replace(data, train_rows=data.train_rows[:-2])
    changed = ablate.plan_runs([VARIANTS[REFERENCE]], [0], PRESETS["rows"], other_rows, small)
    assert changed[0].find_result(folder) is None


def test_table_9_has_negative_queries_in_evaluation(folder):
    """Of one and the same model: joint p is what evaluating with negatives says, whose p is smaller by their factor."""
    variants = [REFERENCE, "no_negatives", "components_fs_ls_ts"]
    ablate.main(arguments(folder, variants))
    ablate.main([*arguments(folder, [REFERENCE], out="given"), "--training", *TRAINING, "evaluate_with_negatives=true"])
    found = {name: values["metrics"] for (name, _), values in results_of(folder).items()}
    given = results_of(folder, "given")[REFERENCE, 0]["metrics"]
    for place in ("inside", "outside"):
        joint, alone = (found[REFERENCE][f"{name}_{place}"] for name in ("joint_p", "p"))
        assert joint == given[f"p_{place}"] == given[f"joint_p_{place}"]
        assert 0 < joint < alone
        # Trained without negative queries, or without p, there is nothing to multiply by.
        assert found["no_negatives"][f"joint_p_{place}"] == found["no_negatives"][f"p_{place}"]
        assert f"joint_p_{place}" not in found["components_fs_ls_ts"]
    assert found[REFERENCE]["MR-full-R1@0.7"] == given["MR-full-R1@0.7"]  # the decoder reads X+
    assert "| joint p inside | joint p outside | difference |" in (folder / "out" / "ablation.md").read_text()


def test_without_mined_negatives_table_9_is_left_out(folder):
    rows = [json.loads(line) | {"neg_query_ids": []} for line in (folder / "test.jsonl").read_text().splitlines()]
    write_rows(folder / "test.jsonl", rows)
    ablate.main(arguments(folder, [REFERENCE]))
    metrics = results_of(folder)[REFERENCE, 0]["metrics"]
    assert "p_inside" in metrics
    assert "joint_p_inside" not in metrics


def result(variant, seed, r1, p=(0.9, 0.1)):
    table = VARIANTS[variant].table
    metrics = {"MR-full-R1@0.5": 80.0, "MR-full-R1@0.7": r1, "p_inside": p[0], "p_outside": p[1]}
    label = VARIANTS[variant].label
    row = {"variant": variant, "table": table, "label": label, "seed": seed}
    return {**row, "seconds": 1.0, "steps": 2, "metrics": metrics}


RESULTS = [
    *(result(REFERENCE, seed, r1) for seed, r1 in enumerate((58.0, 60.0, 62.0))),
    *(result("objective_2_0_0", seed, r1, (0.9, 0.5)) for seed, r1 in enumerate((49.0, 50.0, 51.0))),
    *(result("no_negatives", seed, r1) for seed, r1 in enumerate((57.0, 58.5, 60.0))),
]


def test_trust_is_measured_where_there_are_rows_enough_to_calibrate(folder):
    """Sixty videos with two queries: one half calibrates, the other is measured; six videos are too few.

    What is drawn is learned well enough that scores of right answers are the larger ones: others are not calibrated.
    """
    rng, rows = np.random.default_rng(5), []
    with FeatureWriter(folder / "many", CONTRACT) as writer:
        for row in read_rows(folder / "train.jsonl"):
            if row["qid"].endswith("_0"):
                writer.add_video(row["vid"], rng.standard_normal((10, 8)))
            writer.add_text(row["qid"], rng.standard_normal((4, 6)), row["query"])
        for video in range(60):
            writer.add_video(f"video{video}", rng.standard_normal((10, 8)))
            for number in range(2):
                qid, sentence = f"q{video}_{number}", f"thing{video} action{video}{number}"
                writer.add_text(qid, rng.standard_normal((4, 6)), sentence)
                window = [[0.0, 20.0]] if video % 2 else [[2.0 + 10 * number, 8.0 + 10 * number]]
                row = {"qid": qid, "vid": f"video{video}", "query": sentence, "duration": 20.0}
                rows.append({**row, "relevant_windows": window})
        writer.finish()
    write_rows(folder / "test.jsonl", rows)
    call = arguments(folder, ["reference"])
    call[call.index("--features") + 1] = str(folder / "many")
    ablate.main(call)
    (result,) = results_of(folder).values()
    metrics = result["metrics"]
    assert 0 <= metrics["CAL-ECE"] <= 100
    assert 0 <= metrics["CAL-AUC"] <= 100
    assert "AUC right/wrong" in (folder / "out" / "ablation.md").read_text()


def test_without_rows_enough_nothing_is_said_of_trust(folder):
    ablate.main(arguments(folder, ["reference"]))
    (result,) = results_of(folder).values()
    assert not {name for name in result["metrics"] if name.startswith(("CAL-", "PR-"))}


def test_mean_spread_and_what_lies_within_it():
    summary = {entry["variant"]: entry for entry in ablation_report.summarize(RESULTS)}
    reference = summary[REFERENCE]["MR-full-R1@0.7"]
    assert (reference["mean"], reference["spread"]) == (60.0, 2.0)
    worse, near = (summary[name]["MR-full-R1@0.7"] for name in ("objective_2_0_0", "no_negatives"))
    assert (worse["difference"], worse["spread"], worse["within_spread"]) == (-10.0, 1.0, False)
    assert (near["difference"], near["within_spread"]) == (-1.5, True)  # sqrt(4 + 2.25) = 2.5
    assert summary["objective_2_0_0"]["p_difference"]["mean"] == pytest.approx(0.4)


def test_a_variant_is_held_against_the_seeds_it_shares_with_the_reference():
    summary = ablation_report.summarize([*RESULTS[:3], result("negatives_2", 2, 63.0)])
    assert summary[1]["MR-full-R1@0.7"]["difference"] == 1.0  # 63 - 62, not 63 - 60
    assert math.isnan(summary[1]["MR-full-R1@0.7"]["spread"])
    several = [RESULTS[0], *(result("negatives_2", seed, r1) for seed, r1 in enumerate((60.0, 61.0)))]
    assert ablation_report.summarize(several)[1]["MR-full-R1@0.7"]["within_spread"] is None
    assert "| 2 | +2.0 |" in ablation_report.markdown(several)  # one shared seed: neither within nor beyond
    summary = ablation_report.summarize([result("negatives_2", 2, 63.0)])
    assert "difference" not in summary[0]["MR-full-R1@0.7"]


def test_markdown_csv_and_plots(tmp_path):
    ablation_report.write_report(RESULTS, tmp_path, notes=["Simulated frames."])
    text = (tmp_path / "ablation.md").read_text()
    assert "Simulated frames." in text
    assert "| the package's defaults | 80.0 ± 0.0 | 60.0 ± 2.0 | 0.90 ± 0.00 | 0.10 ± 0.00 |" in text
    assert "0.40 ± 0.00 | 3 | **-10.0** |" in text
    assert "| 3 | ~ -1.5 |" in text
    assert TABLES["losses"] not in text
    with open(tmp_path / "ablation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert rows[3]["MR-full-R1@0.7"] == "49.0"
    pytest.importorskip("matplotlib")
    assert (tmp_path / "objective.png").stat().st_size > 5000


def test_simulated_preset_is_made_once_and_reused(tmp_path, monkeypatch):
    simulation = pytest.importorskip("simulated_features")
    from test_simulated_features import ENCODER, make_rows

    def splits(rows_files, benchmark, data_dir, names):
        assert (benchmark, names) == ("charades_sta", ("train", "test"))
        return {name: make_rows(4, name) for name in names}

    monkeypatch.setattr(simulation, "load_splits", splits)
    monkeypatch.setattr(ablation_data, "build_text_encoder", lambda name: ENCODER)
    preset = replace(PRESETS["charades_simulated"], limits=(4, 2))
    data = ablation_data.simulated_data(tmp_path, preset, None)
    assert (len(data.train_rows), len(data.eval_rows)) == (4, 2)
    monkeypatch.setattr(simulation, "load_splits", None)  # not called again
    assert ablation_data.simulated_data(tmp_path, preset, None).digest() == data.digest()
    assert data.store.contract.video_encoders[0]["name"] == "simulated-frames"


def test_rendered_preset_is_made_once_and_reused(tmp_path, monkeypatch):
    pytest.importorskip("av")
    from dataset_scripts import moving_shapes

    few = functools.partial(
        moving_shapes.render_moving_shapes, num_videos={"train": 2, "val": 1, "test": 1}, progress=False
    )
    monkeypatch.setattr(moving_shapes, "render_moving_shapes", few)
    data = ablation_data.load_data("moving_shapes", tmp_path)
    data.store.require([*data.train_rows, *data.eval_rows], check_values=True)
    assert {row["vid"] for row in data.train_rows}.isdisjoint(row["vid"] for row in data.eval_rows)
    assert any(row["neg_query_ids"] for row in data.train_rows)
    monkeypatch.setattr(moving_shapes, "render_moving_shapes", None)  # not called again
    assert ablation_data.load_data("moving_shapes", tmp_path).digest() == data.digest()


def test_runs_that_compute_the_same_have_one_digest(folder):
    data = ablation_data.load_data(
        "rows", folder, None, str(folder / "train.jsonl"), str(folder / "test.jsonl"), [str(folder / "features")]
    )

    def digest(name, training=None):
        return ablate.plan_runs([VARIANTS[name]], [0], PRESETS["rows"], data, {}, training)[0].digest

    assert digest(REFERENCE) == digest("objective_0_2_2") == digest("form_encoder_mean_one") == digest("negatives_1")
    assert digest(REFERENCE, {"num_train_epochs": 2}) == digest(REFERENCE, {"num_train_epochs": 2.0})
    others = ("objective_2_2_0", "no_negatives", "form_encoder_literal", "negatives_2")
    assert len({digest(name) for name in (REFERENCE, *others)}) == 5


def test_a_variant_may_mine_its_own_negative_queries(folder):
    data = ablation_data.load_data(
        "rows", folder, None, str(folder / "train.jsonl"), str(folder / "test.jsonl"), [str(folder / "features")]
    )
    data = replace(data, sentence_encoder="hashed-words")
    plain, weighted = (VARIANTS[name] for name in (REFERENCE, "negatives_weighted"))
    runs = ablate.plan_runs([plain, weighted], [0], PRESETS["rows"], data)
    assert runs[0].data_digest == data.digest() != runs[1].data_digest
    assert data.train_rows_with(runs[0].mining) is data.train_rows
    rows = data.train_rows_with(runs[1].mining)
    assert all(len(row["neg_query_weights"]) == len(row["neg_query_ids"]) == 1 for row in rows)
    assert data.train_rows_with(runs[1].mining) == rows
    assert len(list(folder.glob("negatives-*.jsonl"))) == 1  # mined once


def test_command_line_errors_and_list(folder, capsys):
    ablate.main(["--list"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in [*VARIANTS, *PRESETS])
    with pytest.raises(ValueError, match="all three"):
        ablate.main(["--train-rows", str(folder / "train.jsonl")])
    with pytest.raises(ValueError, match="needs `--train-rows`"):
        ablate.main(["--preset", "rows"])
    with pytest.raises(ValueError, match=r"`--training` expects .* received \['epochs', 'seed'\]"):
        ablate.main(["--preset", "rows", "--training", "seed=1", "epochs=2"])
    with pytest.raises(ValueError, match=r"`--model` expects fields of BMDetrConfig, received \['hiden'\]"):
        ablate.main(["--preset", "rows", "--model", "hiden=1"])
    with pytest.raises(ValueError, match="FIELD=VALUE"):
        ablate.parse_settings(["hidden_size"])
    assert ablate.parse_settings(["a=1", "b=0.5", "c=true", "d=text"]) == {"a": 1, "b": 0.5, "c": True, "d": "text"}
