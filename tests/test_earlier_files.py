"""Files that version 0.1.0 wrote, in `fixtures/legacy`, load today and mean what they meant."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_bmdetr import BMDetrForMomentRetrieval, BMDetrProcessor
from modeling_bmdetr.data import FeatureStore, read_rows, validate_rows
from modeling_bmdetr.evaluation import evaluate_submission

LEGACY = Path(__file__).parent / "fixtures" / "legacy"
EXPECTED = json.loads((LEGACY / "expected.json").read_text(encoding="utf-8"))


def test_packed_store_gives_the_stored_rows():
    store = FeatureStore.from_packed(LEGACY / "store")
    assert store.video_ids == ["v_one", "v_two"]
    assert store.query_ids == ["7", "8", "9"]
    for vid, rows in EXPECTED["store"]["videos"].items():
        np.testing.assert_array_equal(store.video(vid), np.array(rows, dtype=np.float32))
    for qid, rows in EXPECTED["store"]["texts"].items():
        np.testing.assert_array_equal(store.text(qid), np.array(rows, dtype=np.float32))
    assert store.sentence("8") == "she reads – café"
    assert store.failures == {"v_three": "it holds no frame"}
    assert store.contract.clip_length == 2.0
    assert [encoder["name"] for encoder in store.contract.video_encoders] == ["pixel-grid", "clip"]


def test_packed_store_in_float16_gives_the_stored_rows():
    store = FeatureStore.from_packed(LEGACY / "store_float16")
    np.testing.assert_array_equal(store.video("v_one"), np.array(EXPECTED["store_float16"], dtype=np.float32))


def test_rows_are_valid_and_fit_their_store():
    rows = read_rows(LEGACY / "rows.jsonl")
    assert [row["qid"] for row in rows] == ["7", "8", "9"]
    assert rows.integer_qids == frozenset({"7", "8", "9"})
    assert validate_rows(rows, clip_length_s=2.0).problems == []
    FeatureStore.from_packed(LEGACY / "store").require(rows, check_values=True)


def test_predictions_give_the_same_metrics():
    metrics = evaluate_submission(LEGACY / "predictions.jsonl", LEGACY / "rows.jsonl")
    assert {name: metrics[name] for name in EXPECTED["metrics"]} == EXPECTED["metrics"]  # there are others now


def test_checkpoint_gives_the_same_answers():
    model = BMDetrForMomentRetrieval.from_pretrained(LEGACY / "checkpoint")
    processor = BMDetrProcessor.from_pretrained(LEGACY / "checkpoint")
    store = FeatureStore.from_packed(LEGACY / "store", model.config.feature_contract)
    for row in read_rows(LEGACY / "rows.jsonl"):
        inputs = processor(video_features=[store.video(row["vid"])], text_features=[store.text(row["qid"])])
        with torch.no_grad():
            outputs = model(**inputs)
        expected = EXPECTED["model"][row["qid"]]
        for name in ("logits", "pred_spans", "saliency_scores"):
            torch.testing.assert_close(outputs[name][0], torch.tensor(expected[name]), atol=1e-5, rtol=1e-5)
        moments = processor.post_process_moments(outputs, inputs["video_mask"], [row["duration"]])[0]
        received = [[moment["start"], moment["end"], moment["score"]] for moment in moments]
        assert received == [pytest.approx(moment, abs=1e-4) for moment in expected["moments"]]
