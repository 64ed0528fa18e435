"""The contract's room: preparing rows, clips of a duration, and the one time axis."""

import subprocess
import sys
import warnings
from dataclasses import fields

import numpy as np
import pytest
import torch
from factories import MemoryArrays
from huggingface_hub.errors import StrictDataclassError

from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval, BMDetrProcessor, MomentRetrievalPipeline
from modeling_bmdetr.contract_bmdetr import (
    FeatureContract,
    clip_count,
    join_rows,
    pad_rows,
    prepare_text_features,
    prepare_video_features,
    time_axis_s,
)
from modeling_bmdetr.data import FeatureStore, MomentRetrievalCollator, MomentRetrievalDataset
from modeling_bmdetr.pipeline_bmdetr import EncodedVideo

TWO_ENCODERS = FeatureContract(
    video_encoders=({"name": "a", "dim": 2}, {"name": "b", "dim": 3}), text_encoder={"name": "t", "dim": 4}, max_clips=6
)


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


class TestClips:
    def test_a_rest_of_less_than_a_tenth_of_a_clip_is_dropped(self):
        assert [clip_count(seconds, 2.0) for seconds in (0.1, 20.0, 20.1, 20.3, 30.7, 150.05)] == [
            1,
            10,
            10,
            11,
            16,
            75,
        ]

    def test_a_duration_that_went_through_float32_has_as_many_clips(self):
        for tenths in range(1, 4000):
            assert clip_count(float(np.float32(tenths / 10)), 2.0) == clip_count(tenths / 10, 2.0)

    def test_rows_of_several_encoders_end_with_the_shortest(self):
        joined = join_rows([np.ones((4, 2)), np.zeros((3, 1))])
        assert joined.tolist() == [[1, 1, 0]] * 3
        assert join_rows([np.ones((4, 2))], max_rows=2).shape == (2, 2)


class TestTimeAxis:
    RESAMPLE = FeatureContract(
        video_encoders=({"name": "pixel-grid", "dim": 3},),
        text_encoder={"name": "hashed-words", "dim": 4},
        clip_length=2.0,
        max_clips=10,
        long_video="resample",
    )

    def test_clips_times_clip_length(self):
        assert time_axis_s(10, 19.3, FeatureContract(clip_length=2.0)) == 20.0

    def test_the_duration_where_clips_were_resampled(self):
        assert time_axis_s(10, 199.0, self.RESAMPLE) == 199.0
        assert time_axis_s(10, 20.3, self.RESAMPLE) == 20.3
        assert time_axis_s(9, 17.5, self.RESAMPLE) == 18.0
        with pytest.raises(ValueError, match="duration_s"):
            time_axis_s(10, None, self.RESAMPLE)

    def test_a_video_of_exactly_max_clips_is_not_resampled(self):
        assert time_axis_s(10, 18.6, self.RESAMPLE) == time_axis_s(10, 20.0, self.RESAMPLE) == 20.0

    @pytest.mark.parametrize(("duration_s", "clips"), [(18.6, 10), (20.2, 10), (23.0, 12), (17.0, 9)])
    def test_labels_processor_and_pipeline_share_one_axis(self, duration_s, clips):
        rng = np.random.default_rng(0)
        features = rng.standard_normal((clips, 3)).astype(np.float32)
        axis_s = duration_s if clips > 10 else 2.0 * clips
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_queries": 3}
        model = BMDetrForMomentRetrieval(BMDetrConfig.from_contract(self.RESAMPLE, **sizes)).eval()
        processor = BMDetrProcessor(self.RESAMPLE)

        pipe = MomentRetrievalPipeline(model=model, processor=processor, task="temporal-grounding")
        answer = pipe(EncodedVideo(features, duration_s), "a red ball", top_k=None)
        assert answer["clip_length"] * len(answer["saliency"]) == pytest.approx(axis_s)

        inputs = processor("a red ball", video_features=features)
        with torch.no_grad():
            outputs = model(**inputs)
        (moments,) = processor.post_process_moments(outputs, inputs["video_mask"], [duration_s])
        for found, wanted in zip(answer["moments"], moments, strict=True):
            assert found == pytest.approx(wanted, abs=1e-4)

        row = {"qid": "q", "vid": "v", "query": "a red ball", "duration": duration_s, "relevant_windows": [[4.0, 8.0]]}
        store = FeatureStore(
            self.RESAMPLE, MemoryArrays({"v": features}), MemoryArrays({"q": rng.standard_normal((3, 4))})
        )
        labels = MomentRetrievalCollator()([MomentRetrievalDataset([row], store, self.RESAMPLE)[0]])["labels"]
        torch.testing.assert_close(labels[0, 0], torch.tensor([6.0, 4.0]) / axis_s)


class TestConfigurationFields:
    def test_every_entry_of_the_contract_is_a_field_with_the_same_default(self):
        config = BMDetrConfig()
        for field in fields(FeatureContract):
            default = getattr(config, field.name)
            assert (default if field.name != "video_encoders" else tuple(default or ())) == field.default
        assert config.to_dict()["video_encoders"] is None

    @pytest.mark.parametrize(
        ("name", "value"),
        [("clip_length", True), ("max_clips", True), ("normalize_video", "no"), ("endpoint_features", 1)],
    )
    def test_a_value_of_another_type_is_refused(self, name, value):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            FeatureContract(**{name: value})
        with pytest.raises(StrictDataclassError, match=name):
            BMDetrConfig(**{name: value})

    def test_what_is_no_dict_of_entries_is_refused_by_name(self):
        with pytest.raises(ValueError, match=r"a feature contract is a dict .*, received 3\.5"):
            FeatureContract.from_dict(3.5)
        with pytest.raises(ValueError, match="`video_encoders` must be a list of dicts, received 7"):
            FeatureContract.from_dict({"video_encoders": 7})
        for odd in (float("nan"), object()):
            with pytest.raises(ValueError, match="an encoder of the feature contract must be JSON"):
                FeatureContract(text_encoder={"name": "made", "dim": 4, "option": odd})
        for value in (3.5, 0, [], "contract"):
            with pytest.raises(ValueError, match="`feature_contract` must be a FeatureContract"):
                BMDetrProcessor(value)


def test_the_contract_needs_neither_torch_nor_transformers():
    """Whatever reads rows or metrics may import this room; the package around it is loaded by its parents' rules."""
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('contract_bmdetr', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['contract_bmdetr'] = module\n"
        "spec.loader.exec_module(module)\n"
        "assert module.clip_count(18.6, 2.0) == 10\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)\n"
    )
    from modeling_bmdetr import contract_bmdetr

    subprocess.run([sys.executable, "-c", code, contract_bmdetr.__file__], check=True)


def test_names_that_moved_are_found_in_their_old_places():
    import modeling_bmdetr.configuration_bmdetr as configuration
    import modeling_bmdetr.processing_bmdetr as processing
    import modeling_bmdetr.video_bmdetr as video

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert configuration.FeatureContract is FeatureContract
        assert processing.time_axis_s is time_axis_s
    with pytest.warns(DeprecationWarning, match="has moved to contract_bmdetr"):
        assert video.clip_count is clip_count
    with pytest.warns(DeprecationWarning, match="has moved to contract_bmdetr"):
        assert processing.l2_normalize([[3.0, 4.0]]).tolist() == [[0.6, 0.8]]
    for module in (video, processing):
        with pytest.raises(AttributeError, match="no_such_name"):
            module.no_such_name  # noqa: B018 - the access is what is tested
