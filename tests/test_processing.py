"""Features in, moments out: preparation by the contract, and the way back to seconds."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_bmdetr import BMDetrProcessor, FeatureContract
from modeling_bmdetr.contract_bmdetr import prepare_video_features
from modeling_bmdetr.processing_bmdetr import decode_moments

TWO_ENCODERS = FeatureContract(
    video_encoders=({"name": "a", "dim": 2}, {"name": "b", "dim": 3}), text_encoder={"name": "t", "dim": 4}, max_clips=6
)


class TestMoments:
    def test_decoding_sorts_scales_and_clips(self):
        scores = torch.tensor([[0.2, 0.9]])
        spans = torch.tensor([[[0.5, 0.2], [0.9, 0.4]]])
        moments = decode_moments(scores, spans, torch.tensor([10.0]), torch.tensor([9.5]))
        np.testing.assert_allclose(moments[0], [[7.0, 9.5, 0.9], [4.0, 6.0, 0.2]], atol=1e-5)

    def test_post_processing_in_seconds(self):
        processor = BMDetrProcessor(FeatureContract(clip_length=2.0))
        outputs = {
            "scores": torch.tensor([[0.7, 0.6, 0.1]]),
            "pred_spans": torch.tensor([[[0.5, 0.5], [0.5, 0.48], [0.1, 0.2]]]),
        }
        mask = torch.ones(1, 10)
        (moments,) = processor.post_process_moments(outputs, mask, [19.0])
        assert [round(m["start"], 3) for m in moments] == [5.0, 5.2, 0.0]
        assert [round(m["end"], 3) for m in moments] == [15.0, 14.8, 4.0]
        assert [round(m["score"], 3) for m in moments] == [0.7, 0.6, 0.1]
        (kept,) = processor.post_process_moments(outputs, mask, [19.0], nms_threshold=0.8)
        assert [round(m["score"], 3) for m in kept] == [0.7, 0.1]
        assert len(processor.post_process_moments(outputs, mask, [19.0], top_k=1)[0]) == 1
        assert len(processor.post_process_moments(outputs, mask, [19.0], score_threshold=0.5)[0]) == 2

    def test_the_released_format(self):
        """Spans times min(duration, longest), clipped to [0, longest], rounded to clips, scores to four digits."""
        processor = BMDetrProcessor(FeatureContract(clip_length=2.0, max_clips=75), prediction_format="released")
        outputs = {
            "scores": torch.full((1, 12), 0.123456),
            "pred_spans": torch.tensor([[[0.97, 0.1]]]).repeat(1, 12, 1),
        }
        (moments,) = processor.post_process_moments(outputs, torch.ones(1, 75), [150.0])
        assert len(moments) == 10
        assert moments[0] == {"start": 138.0, "end": 150.0, "score": pytest.approx(0.1235, abs=1e-7)}
        (short,) = processor.post_process_moments(outputs, torch.ones(1, 70), [141.0])
        assert (short[0]["start"], short[0]["end"]) == (130.0, 144.0)  # 129.7 and 143.8: not clipped to the video
        with pytest.raises(ValueError, match="durations_s"):
            processor.post_process_moments(outputs, torch.ones(1, 75))

    def test_durations_must_pair_with_rows(self):
        outputs = {"scores": torch.full((2, 1), 0.5), "pred_spans": torch.full((2, 1, 2), 0.5)}
        with pytest.raises(ValueError, match="durations for a batch of 2"):
            BMDetrProcessor().post_process_moments(outputs, torch.ones(2, 3), [3.0])

    @pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, 0, 10**400])
    def test_a_duration_that_is_none_is_refused(self, seconds):
        outputs = {"scores": torch.full((2, 1), 0.5), "pred_spans": torch.full((2, 1, 2), 0.5)}
        mask, given = torch.ones(2, 3), torch.tensor([3.0, 3.0])
        with pytest.raises(ValueError, match="duration_s must be a positive number of seconds"):
            BMDetrProcessor().post_process_moments(outputs, mask, [3.0, seconds])
        assert BMDetrProcessor().post_process_moments(outputs, mask, given)

    @pytest.mark.parametrize(
        "mask",
        [
            *(torch.ones(2, 4), torch.ones(3, 3), torch.full((2, 3), 0.5), torch.full((2, 3), torch.nan)),
            *(torch.tensor([[0, 0, 0], [1, 1, 1]]), torch.tensor([[1, 0, 1], [1, 1, 1]])),
        ],
    )
    def test_a_mask_that_the_model_was_not_given_is_refused(self, mask):
        outputs = {"scores": torch.full((2, 1), 0.5), "pred_spans": torch.full((2, 1, 2), 0.5)}
        outputs["saliency_scores"] = torch.zeros(2, 3)
        with pytest.raises(ValueError, match="must be the mask that the model was given"):
            BMDetrProcessor().post_process_moments(outputs, mask)


class TestProcessor:
    def test_inputs_from_features(self):
        processor = BMDetrProcessor(TWO_ENCODERS)
        inputs = processor(video_features=np.ones((8, 5)), text_features=[np.ones((3, 4)), np.ones((2, 4))])
        assert inputs["video_features"].shape == (2, 6, 5)
        assert inputs["text_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
        assert list(inputs) == processor.model_input_names

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"video_features": np.ones((2, 5))}, "`text` or `text_features`"),
            ({"text_features": [np.ones((2, 4))]}, "`videos` or `video_features`"),
            (
                {"text_features": [np.ones((2, 4))] * 3, "video_features": [np.ones((2, 5))] * 2},
                "2 videos do not pair with 3 sentences",
            ),
        ],
    )
    def test_what_does_not_pair_is_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            BMDetrProcessor(TWO_ENCODERS)(**arguments)

    def test_negative_queries_get_an_axis_of_their_own(self):
        contract = FeatureContract(
            video_encoders=({"name": "a", "dim": 2},), text_encoder={"name": "hashed-words", "dim": 256}
        )
        inputs = BMDetrProcessor(contract)(
            text=["a red ball", "it"], video_features=np.ones((3, 2)), negative_text=["a blue box spins", "no"]
        )
        assert inputs["negative_text_features"].shape == (2, 1, 4, 256)
        assert inputs["negative_text_mask"][:, 0].sum(dim=1).tolist() == [4, 1]

    def test_unnamed_encoders_are_asked_for(self):
        with pytest.raises(ValueError, match="pass `text_features`"):
            BMDetrProcessor().encode_text(["a"])
        with pytest.raises(ValueError, match="pass `video_features`"):
            BMDetrProcessor().encode_video("x.mp4")

    def test_padded_text_rows_are_refused_where_the_encoder_has_none(self):
        contract = FeatureContract(text_encoder={"name": "hashed-words", "dim": 256}, text_rows="all")
        with pytest.raises(ValueError, match="text_rows='all'"):
            BMDetrProcessor(contract).encode_text(["a"])

    def test_padded_text_rows_are_asked_of_the_encoder(self):
        processor = BMDetrProcessor(FeatureContract(text_rows="all", max_tokens=7))
        processor.text_encoder = SimpleNamespace(encode_text=lambda *arguments: arguments)
        assert processor.encode_text(["a"]) == (["a"], 7, True)

    def test_saved_and_loaded(self, tmp_path):
        processor = BMDetrProcessor(TWO_ENCODERS, prediction_format="released", nms_threshold=0.7)
        processor.save_pretrained(tmp_path)
        loaded = BMDetrProcessor.from_pretrained(tmp_path)
        assert loaded.contract == TWO_ENCODERS
        assert (loaded.prediction_format, loaded.nms_threshold) == ("released", 0.7)
        assert json.loads((tmp_path / "processor_config.json").read_text())["processor_class"] == "BMDetrProcessor"

    def test_a_folder_without_one_is_refused(self, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(OSError, match=r"has no processor_config.json.*BMDetrProcessor\(model.config\)"):
            BMDetrProcessor.from_pretrained(tmp_path)

    def test_an_unknown_format_is_refused(self):
        with pytest.raises(ValueError, match="'seconds' or 'released'"):
            BMDetrProcessor(prediction_format="frames")

    def test_the_contract_is_parsed_once(self, monkeypatch):
        processor = BMDetrProcessor(TWO_ENCODERS.to_dict())
        monkeypatch.setattr(FeatureContract, "from_dict", None)  # not called again
        for _ in range(3):
            processor(video_features=np.ones((5, 5)), text_features=[np.ones((5, 4))])
        assert processor.feature_contract == TWO_ENCODERS.to_dict()


class TestValues:
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_features_that_are_not_finite_are_refused(self, value):
        good, bad = np.ones((5, 5)), np.ones((5, 5))
        bad[2, 1] = value
        processor = BMDetrProcessor(TWO_ENCODERS)
        with pytest.raises(ValueError, match=r"video features .* not finite .* rows \[2\] of 5"):
            processor(video_features=bad, text_features=[good[:, :4]])
        with pytest.raises(ValueError, match=r"text features .* not finite .* rows \[2\] of 5"):
            processor(video_features=good, text_features=[bad[:, :4]])

    def test_large_features_keep_their_direction(self):
        rows = prepare_video_features(np.array([[3e25, 4e25, 0.0, 0.0, 2e30]]), TWO_ENCODERS)
        np.testing.assert_allclose(rows, [[0.6, 0.8, 0.0, 0.0, 1.0]], rtol=1e-6)
        assert rows.dtype == np.float32

    def test_outputs_that_are_not_finite_answer_nothing(self):
        outputs = {"scores": torch.full((1, 2), torch.nan), "pred_spans": torch.full((1, 2, 2), 0.5)}
        with pytest.raises(ValueError, match="outputs are not finite"):
            BMDetrProcessor().post_process_moments(outputs, torch.ones(1, 3), [3.0])

    @pytest.mark.parametrize(
        "options",
        [
            {"top_k": 0},
            {"top_k": -1},
            {"top_k": 1.5},
            {"top_k": True},
            {"score_threshold": float("nan")},
            {"score_threshold": 1.5},
            {"nms_threshold": -1},
            {"nms_threshold": "0.5"},
        ],
    )
    def test_a_selection_out_of_range_is_refused(self, options):
        outputs = {"scores": torch.full((1, 2), 0.5), "pred_spans": torch.full((1, 2, 2), 0.5)}
        (name,) = options
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            BMDetrProcessor().post_process_moments(outputs, torch.ones(1, 3), [3.0], **options)
        if name == "nms_threshold":
            with pytest.raises(ValueError, match=f"`{name}` must be"):
                BMDetrProcessor(**options)
