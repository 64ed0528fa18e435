"""Time to a given accuracy: both curves, where the second stops, and the table."""

import json

import numpy as np
import pytest
import time_to_accuracy
from ablation_data import opened
from ablation_variants import Preset

from modeling_bmdetr.configuration_bmdetr import FeatureContract
from modeling_bmdetr.data import write_rows
from modeling_bmdetr.data.features.store import FeatureStore
from modeling_bmdetr.data.features.writer import FeatureWriter

CONTRACT = FeatureContract(
    video_encoders=({"name": "random", "dim": 8},), text_encoder={"name": "random text", "dim": 6}, clip_length=2.0
)
PRESET = Preset(
    "tiny",
    {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "alignment_dim": 8},
    {"num_train_epochs": 3, "lr_drop_epochs": 2, "per_device_train_batch_size": 2, "negative_sampling": "none"},
)


@pytest.fixture
def data(tmp_path):
    rng, rows = np.random.default_rng(0), []
    with FeatureWriter(tmp_path / "features", CONTRACT) as writer:
        for video in range(4):
            writer.add_video(f"v{video}", rng.standard_normal((10, 8)))
            writer.add_text(f"q{video}", rng.standard_normal((4, 6)), f"sentence {video}")
            row = {"qid": f"q{video}", "vid": f"v{video}", "query": f"sentence {video}", "duration": 20.0}
            rows.append({**row, "relevant_windows": [[2.0, 10.0]]})
        writer.finish()
    write_rows(tmp_path / "rows.jsonl", rows)
    return opened([tmp_path / "rows.jsonl"] * 2, FeatureStore.open([tmp_path / "features"]), tmp_path, "hashed-words")


def test_both_are_trained_once_and_the_second_stops_where_it_is_as_accurate(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setattr(time_to_accuracy, "load_data", lambda *_: data)
    monkeypatch.setitem(time_to_accuracy.PRESETS, "charades_simulated", PRESET)
    given = ["--out", str(tmp_path), "--every", "1"]
    time_to_accuracy.main(given)
    released, own = (
        json.loads((tmp_path / f"charades_simulated-{name}-every1-seed0.json").read_text())
        for name in ("released", "own")
    )
    assert [point["updates"] for point in released] == [1, 2, 3, 4, 5, 6]
    assert sorted(released, key=lambda point: point["processor_s"]) == released
    target = released[-1]["R1@0.7"]
    assert all(point["R1@0.7"] < target for point in own[:-1])
    assert own[-1]["R1@0.7"] >= target or own[-1]["updates"] == 6
    printed = capsys.readouterr().out.splitlines()[-4:]
    monkeypatch.setattr(time_to_accuracy, "curve_of", None)  # nothing is trained again
    time_to_accuracy.main(given)
    assert capsys.readouterr().out.splitlines() == printed


def test_the_table_tells_what_was_not_reached():
    def curve(*accuracies):
        return [
            {"updates": 10 * i, "processor_s": 2.5 * i, "R1@0.7": value} for i, value in enumerate(accuracies, start=1)
        ]

    assert time_to_accuracy.table(curve(5, 60), curve(40, 61, 59)).endswith("| 61 | 20 | 5.0 |")
    assert time_to_accuracy.table(curve(5, 60), curve(40, 59)).endswith("| 59 at most | | |")
