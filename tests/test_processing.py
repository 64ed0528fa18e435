"""Features in, moments out: preparation by the contract, and the way back to seconds."""

import json

import numpy as np
import pytest
import torch

from modeling_bmdetr import BMDetrProcessor, FeatureContract
from modeling_bmdetr.processing_bmdetr import (
    decode_moments,
    pad_rows,
    prepare_text_features,
    prepare_video_features,
    time_axis_s,
)

TWO_ENCODERS = FeatureContract(
    video_encoders=({"name": "a", "dim": 2}, {"name": "b", "dim": 3}), text_encoder={"name": "t", "dim": 4}, max_clips=6
)


def logit_of(score: float) -> list[float]:
    """Logits of (foreground, background) whose softmax gives `score`."""
    return [float(np.log(score / (1 - score))), 0.0]


class TestPreparation:
    def test_each_encoder_is_normalised_on_its_own(self):
        rows = prepare_video_features(np.array([[3.0, 4.0, 0.0, 0.0, 2.0]]), TWO_ENCODERS)
        np.testing.assert_allclose(rows, [[0.6, 0.8, 0.0, 0.0, 1.0]], rtol=1e-6)

    def test_a_long_video_is_truncated_or_resampled(self):
        features = np.arange(10.0)[:, None]
        plain = FeatureContract(max_clips=4, normalize_video=False)
        assert prepare_video_features(features, plain)[:, 0].tolist() == [0, 1, 2, 3]
        resampled = FeatureContract(max_clips=4, normalize_video=False, long_video="resample")
        # Shares of 2.5 clips: (0 + 1 + 2 / 2) / 2.5, (2 / 2 + 3 + 4) / 2.5, ...
        np.testing.assert_allclose(prepare_video_features(features, resampled)[:, 0], [0.8, 3.2, 5.8, 8.2], rtol=1e-6)

    def test_resampling_keeps_the_mean(self):
        features = np.random.default_rng(0).normal(size=(23, 3))
        contract = FeatureContract(max_clips=7, normalize_video=False, long_video="resample")
        np.testing.assert_allclose(prepare_video_features(features, contract).mean(0), features.mean(0), rtol=1e-5)

    def test_a_short_video_is_left_alone(self):
        features = np.ones((3, 1))
        contract = FeatureContract(max_clips=7, normalize_video=False, long_video="resample")
        assert prepare_video_features(features, contract).shape == (3, 1)

    @pytest.mark.parametrize("shape", [(0, 5), (5,), (3, 4)])
    def test_wrong_video_features_are_refused(self, shape):
        with pytest.raises(ValueError, match="video features"):
            prepare_video_features(np.ones(shape), TWO_ENCODERS)

    def test_text_is_cut_and_normalised(self):
        contract = FeatureContract(text_encoder={"name": "t", "dim": 2}, max_tokens=2)
        rows = prepare_text_features(np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 1.0]]), contract)
        np.testing.assert_allclose(rows, [[0.6, 0.8], [0.0, 1.0]], rtol=1e-6)

    def test_padding(self):
        padded, mask = pad_rows([np.ones((2, 3)), np.ones((4, 3))])
        assert padded.shape == (2, 4, 3)
        assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
        assert padded[0, 2:].abs().sum() == 0


class TestTimeAxis:
    def test_clips_times_clip_length(self):
        assert time_axis_s(10, 19.3, FeatureContract(clip_length=2.0)) == 20.0

    def test_duration_where_clips_may_have_been_resampled(self):
        contract = FeatureContract(clip_length=2.0, max_clips=10, long_video="resample")
        assert time_axis_s(10, 199.0, contract) == 199.0
        assert time_axis_s(9, 17.5, contract) == 18.0
        with pytest.raises(ValueError, match="duration_s"):
            time_axis_s(10, None, contract)


class TestMoments:
    def test_decoding_sorts_scales_and_clips(self):
        logits = torch.tensor([[logit_of(0.2), logit_of(0.9)]])
        spans = torch.tensor([[[0.5, 0.2], [0.9, 0.4]]])
        moments = decode_moments(logits, spans, torch.tensor([10.0]), torch.tensor([9.5]))
        np.testing.assert_allclose(moments[0], [[7.0, 9.5, 0.9], [4.0, 6.0, 0.2]], atol=1e-5)

    def test_post_processing_in_seconds(self):
        processor = BMDetrProcessor(FeatureContract(clip_length=2.0))
        outputs = {
            "logits": torch.tensor([[logit_of(0.7), logit_of(0.6), logit_of(0.1)]]),
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
            "logits": torch.tensor([[logit_of(0.123456)]]).repeat(1, 12, 1),
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
        outputs = {"logits": torch.zeros(2, 1, 2), "pred_spans": torch.full((2, 1, 2), 0.5)}
        with pytest.raises(ValueError, match="durations for a batch of 2"):
            BMDetrProcessor().post_process_moments(outputs, torch.ones(2, 3), [3.0])


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

    def test_padded_text_rows_are_refused_for_sentences(self):
        contract = FeatureContract(text_encoder={"name": "hashed-words", "dim": 256}, text_rows="all")
        with pytest.raises(ValueError, match="text_rows='all'"):
            BMDetrProcessor(contract).encode_text(["a"])

    def test_saved_and_loaded(self, tmp_path):
        processor = BMDetrProcessor(TWO_ENCODERS, prediction_format="released", nms_threshold=0.7)
        processor.save_pretrained(tmp_path)
        loaded = BMDetrProcessor.from_pretrained(tmp_path)
        assert loaded.contract == TWO_ENCODERS
        assert (loaded.prediction_format, loaded.nms_threshold) == ("released", 0.7)
        assert json.loads((tmp_path / "processor_config.json").read_text())["processor_class"] == "BMDetrProcessor"

    def test_an_unknown_format_is_refused(self):
        with pytest.raises(ValueError, match="'seconds' or 'released'"):
            BMDetrProcessor(prediction_format="frames")
