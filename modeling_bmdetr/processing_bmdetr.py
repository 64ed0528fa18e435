"""From videos and sentences, or their features, to model inputs, and from model outputs to moments in seconds."""

import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from .contract_bmdetr import (
    FeatureContract,
    clip_count,
    pad_rows,
    prepare_text_features,
    prepare_video_features,
    time_axis_s,
)
from .encoder_interface_bmdetr import EncodedVideo, Opened, Progress, TextEncoder, Video, VideoEncoder, encode_video
from .encoders_bmdetr import build_text_encoder, build_video_encoder
from .files_bmdetr import replacing_files
from .spans_bmdetr import spans_cxw_to_se, temporal_nms
from .video_bmdetr import is_one_video

PROCESSOR_FILE = "processor_config.json"
PredictionFormat = Literal["seconds", "released"]
NO_ENCODERS = (
    "this checkpoint does not say which encoder made its {0} features: pass `{0}_features`, or build the processor "
    "with a feature contract that names it"
)


def decode_moments(scores: Tensor, pred_spans: Tensor, axes_s: Tensor, limits_s: Tensor) -> Tensor:
    """Predicted spans as moments, best first: `(batch, queries, 3)` float32 rows (start s, end s, score).

    Args:
        scores: `(batch, queries)`, what moments are ranked by.
        pred_spans: `(batch, queries, 2)` (centre, width).
        axes_s: `(batch,)`, seconds of the time axis.
        limits_s: `(batch,)`, seconds to which starts and ends are clipped.
    """
    scores = scores.float()[..., None]
    times = spans_cxw_to_se(pred_spans.float()) * axes_s[:, None, None]
    times = torch.minimum(times.clamp(min=0), limits_s[:, None, None])
    moments = torch.cat((times, scores), dim=-1)
    order = scores.argsort(dim=1, descending=True, stable=True)
    return moments.gather(1, order.expand_as(moments))


def named_moments(moments: Tensor) -> list[dict[str, float]]:
    """Rows (start s, end s, score) as dicts of these names."""
    return [dict(zip(("start", "end", "score"), row, strict=True)) for row in moments.tolist()]


def check_selection(
    top_k: int | None = None, score_threshold: float | None = None, nms_threshold: float | None = None
) -> None:
    """Raises `ValueError` unless `top_k` is at least 1 and the thresholds lie in [0, 1]; None is left out."""
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < 1):
        raise ValueError(f"`top_k` must be a whole number of at least 1, received {top_k!r}")
    for name, value in (("score_threshold", score_threshold), ("nms_threshold", nms_threshold)):
        if value is not None and not (isinstance(value, Real) and 0 <= value <= 1):
            raise ValueError(f"`{name}` must be a number in [0, 1], received {value!r}")


class BMDetrProcessor(ProcessorMixin):
    """Prepares inputs by a checkpoint's feature contract, and reads its outputs back into seconds.

    Args:
        feature_contract: A [`FeatureContract`], its dict, or the configuration that carries it.
        prediction_format: `seconds` clips moments to the video and leaves them unrounded. `released` writes what the
            authors' code writes: spans times min(duration, max_clips x clip_length), clipped to
            [0, max_clips x clip_length], rounded to multiples of clip_length, scores to 4 digits, at most 10.
        nms_threshold: Temporal IoU above which the weaker of two moments is dropped; None keeps all.
    """

    _auto_class = "AutoProcessor"

    def __init__(
        self,
        feature_contract: FeatureContract | Mapping[str, Any] | None = None,
        prediction_format: PredictionFormat = "seconds",
        nms_threshold: float | None = None,
    ):
        super().__init__()
        if isinstance(feature_contract, Mapping):
            feature_contract = FeatureContract.from_dict(dict(feature_contract))
        contract = getattr(feature_contract, "feature_contract", feature_contract)
        contract = FeatureContract() if contract is None else contract
        if type(contract).__name__ == FeatureContract.__name__:  # this one, or that of the code in a repository
            contract = FeatureContract.from_dict(contract.to_dict())
        if not isinstance(contract, FeatureContract):
            raise ValueError(
                f"`feature_contract` must be a FeatureContract, its dict or a configuration, received {contract!r}"
            )
        check_selection(nms_threshold=nms_threshold)
        if prediction_format not in ("seconds", "released"):
            raise ValueError(f"`prediction_format` must be 'seconds' or 'released', received {prediction_format!r}")
        self.contract: FeatureContract = contract
        self.prediction_format = prediction_format
        self.nms_threshold = nms_threshold

    @property
    def feature_contract(self) -> dict[str, Any]:
        """The feature contract as plain JSON types; [`FeatureContract`] itself is `contract`."""
        return self.contract.to_dict()

    @property
    def model_input_names(self) -> list[str]:
        return ["video_features", "video_mask", "text_features", "text_mask"]

    def to_dict(self) -> dict[str, Any]:
        """What `processor_config.json` holds; encoders are rebuilt from the contract, never saved."""
        names = ("feature_contract", "prediction_format", "nms_threshold")
        extras = {"auto_map": self.auto_map} if hasattr(self, "auto_map") else {}
        return {**{name: getattr(self, name) for name in names}, "processor_class": type(self).__name__, **extras}

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As [`ProcessorMixin.save_pretrained`]; the file is there as a whole or as it was before."""
        if push_to_hub:
            return super().save_pretrained(save_directory, push_to_hub=True, **kwargs)
        with replacing_files(save_directory, PROCESSOR_FILE) as aside:
            super().save_pretrained(aside, **kwargs)
        return [os.path.join(save_directory, PROCESSOR_FILE)]

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """As in transformers.

        Raises:
            OSError: there is no `processor_config.json`, or it is damaged.
        """
        try:
            values, rest = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        except UnicodeDecodeError as error:
            raise OSError(
                f"the {PROCESSOR_FILE} of '{pretrained_model_name_or_path}' is damaged ({error}): download or save it "
                "again"
            ) from error
        if "feature_contract" not in values:  # transformers reads a file that is not there as one without settings
            raise OSError(
                f"'{pretrained_model_name_or_path}' has no {PROCESSOR_FILE} with a feature contract: build the "
                "processor with BMDetrProcessor(model.config), and save it there"
            )
        return values, rest

    @cached_property
    def video_encoders(self) -> list[VideoEncoder]:
        """The contract's video encoders, built at first use."""
        if not self.contract.video_encoders:
            raise ValueError(NO_ENCODERS.format("video"))
        return [build_video_encoder(spec) for spec in self.contract.video_encoders]

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The contract's text encoder, built at first use."""
        if not self.contract.text_encoder:
            raise ValueError(NO_ENCODERS.format("text"))
        return build_text_encoder(self.contract.text_encoder)

    def encode_video(
        self,
        video: Video,
        *,
        fps: float | None = None,
        progress: Progress | None = None,
        opened: Opened | None = None,
    ) -> EncodedVideo:
        """A video to the raw rows of all video encoders, and its duration; arguments as in [`encode_video`]."""
        length_s = self.contract.clip_length
        return encode_video(video, self.video_encoders, length_s, fps=fps, progress=progress, opened=opened)

    def encode_text(self, sentences: Sequence[str]) -> list[np.ndarray]:
        """Sentences to the raw rows of the text encoder, `(tokens, dim)` float32 each.

        With `text_rows="all"` in the contract, rows of padding follow those of the sentence, as in the features that
        such checkpoints were trained on.

        Raises:
            ValueError: a sentence is empty, or the contract asks for rows of padding that the encoder does not have.
        """
        padding = self.contract.text_rows == "all"
        return self.text_encoder.encode_text(sentences, self.contract.max_tokens, padding)

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        videos: Video | Sequence[Video] | None = None,
        *,
        text_features: Sequence[np.ndarray] | None = None,
        video_features: np.ndarray | Sequence[np.ndarray] | None = None,
        negative_text: Sequence[str] | None = None,
        fps: float | None = None,
    ) -> BatchFeature:
        """Model inputs for pairs of a video and a sentence; one video is paired with every sentence.

        Args:
            text: Sentence or sentences, or their raw rows in `text_features`, `(tokens, dim)` each.
            videos: A video or one for each sentence: path, or frames `(frames, height, width, 3)` at `fps`; or their
                raw rows in `video_features`, `(clips, dim)` each.
            negative_text: Optionally one negative query for each sentence (Eq. 1).

        Returns:
            `video_features`, `video_mask`, `text_features`, `text_mask`, and the negative's if given, as documented
            in [`BMDetrModel.forward`].

        Raises:
            ValueError: something is missing, given twice, empty, of a wrong width, or the numbers do not pair.
        """
        contract = self.contract
        if (text is None) == (text_features is None):
            raise ValueError("pass either `text` or `text_features`")
        if (videos is None) == (video_features is None):
            raise ValueError("pass either `videos` or `video_features`")
        if text_features is None:
            text_features = self.encode_text([text] if isinstance(text, str) else list(text or ()))
        if video_features is None:
            several: list[Any] = [videos] if is_one_video(videos) else list(cast(Sequence[Any], videos))
            video_features = [self.encode_video(video, fps=fps).features for video in several]
        elif isinstance(video_features, (np.ndarray, Tensor)) and video_features.ndim == 2:
            video_features = [video_features]
        if len(video_features) not in (1, len(text_features)):
            raise ValueError(
                f"{len(video_features)} videos do not pair with {len(text_features)} sentences; pass one video for "
                "all sentences, or one for each"
            )
        prepared = [prepare_video_features(np.asarray(rows), contract) for rows in video_features]
        inputs: dict[str, Tensor] = {}
        padded, mask = pad_rows(prepared)
        copies = len(text_features) // len(prepared)
        inputs["video_features"] = padded.repeat_interleave(copies, dim=0)
        inputs["video_mask"] = mask.repeat_interleave(copies, dim=0)
        rows = [prepare_text_features(np.asarray(row), contract) for row in text_features]
        inputs["text_features"], inputs["text_mask"] = pad_rows(rows)
        if negative_text is not None:
            if len(negative_text) != len(text_features):
                raise ValueError(
                    f"{len(negative_text)} negative queries for {len(text_features)} sentences; pass one each"
                )
            rows = [prepare_text_features(row, contract) for row in self.encode_text(negative_text)]
            features, mask = pad_rows(rows)
            inputs["negative_text_features"], inputs["negative_text_mask"] = features[:, None], mask[:, None]
        return BatchFeature(inputs)

    def decode(
        self,
        scores: Tensor,
        pred_spans: Tensor,
        num_clips: Tensor,
        durations_s: Tensor,
        axes_s: Tensor | None = None,
    ) -> Tensor:
        """Every predicted span as a moment in seconds, in the processor's format, on the outputs' device.

        Raises:
            ValueError: the outputs are not finite, so that they answer nothing.

        Args:
            scores, pred_spans: As the model returns them.
            num_clips: `(batch,)`, real clips of each video.
            durations_s: `(batch,)`, seconds of each video.
            axes_s: `(batch,)`, seconds that the clips span; from the contract when left out.

        Returns:
            `(batch, queries, 3)` rows (start s, end s, score), best first.
        """
        if not (scores.isfinite().all() and pred_spans.isfinite().all()):
            raise ValueError(
                "the model's outputs are not finite (NaN or infinite): its weights are damaged or its training "
                "diverged; take another checkpoint"
            )
        contract, durations_s = self.contract, durations_s.to(pred_spans.device)
        if self.prediction_format == "released":
            longest_s = torch.full_like(durations_s, contract.max_clips * contract.clip_length)
            moments = decode_moments(scores, pred_spans, torch.minimum(durations_s, longest_s), longest_s)
            times = (moments[..., :2] / contract.clip_length).round() * contract.clip_length
            return torch.cat((times, (moments[..., 2:] * 1e4).round() / 1e4), dim=-1)[:, :10]
        if axes_s is None:
            pairs = zip(num_clips.tolist(), durations_s.tolist(), strict=True)
            axes_s = durations_s.new_tensor([time_axis_s(int(clips), seconds, contract) for clips, seconds in pairs])
        return decode_moments(scores, pred_spans, axes_s, durations_s)

    def post_process_moments(
        self,
        outputs: Mapping[str, Any],
        video_mask: Tensor,
        durations_s: Sequence[float] | None = None,
        *,
        top_k: int | None = None,
        score_threshold: float = 0.0,
        nms_threshold: float | None = None,
    ) -> list[list[dict[str, float]]]:
        """Moments in seconds, best first, for each row of a batch.

        Args:
            outputs: [`BMDetrMomentRetrievalOutput`] of the batch.
            video_mask: `(batch, video_len)`, the mask the model was given.
            durations_s: Seconds of each video, to which moments are clipped. Without it they are clipped to the clips'
                time axis; needed for the released format and for videos that may be resampled.
            top_k: At most so many moments per row.
            score_threshold: Drops moments with a lower score.
            nms_threshold: Overrides the processor's.

        Returns:
            One list a row, of dicts `start` (s), `end` (s) and `score` in [0, 1], see `BMDetrConfig.score`.

        Raises:
            ValueError: the mask is not one of this batch, a duration is no positive number, or see `decode`, `select`.
        """
        scores, per_clip = outputs["scores"], outputs.get("saliency_scores")
        contract, num_clips = self.contract, video_mask.sum(dim=1)
        shape = (len(scores), video_mask.shape[1] if per_clip is None else per_clip.shape[1])
        is_real = torch.arange(shape[1], device=video_mask.device) < num_clips[:, None]
        if video_mask.shape != shape or not is_real[:, 0].all() or not (video_mask == is_real).all():
            raise ValueError(
                f"`video_mask` must be the mask that the model was given, of the shape {shape}, in each row 1 for the "
                f"clips and 0 for padding behind them; received another one, of the shape {tuple(video_mask.shape)}"
            )
        if durations_s is None:
            if self.prediction_format == "released":
                raise ValueError("`durations_s` is missing: the released format scales spans by the video's duration")
            durations_s = [time_axis_s(int(clips), None, contract) for clips in num_clips]
        if len(durations_s) != len(video_mask):
            raise ValueError(f"{len(durations_s)} durations for a batch of {len(video_mask)}; pass one for each row")
        durations_s = durations_s.tolist() if isinstance(durations_s, (Tensor, np.ndarray)) else durations_s
        for seconds in durations_s:
            clip_count(seconds, contract.clip_length)  # refuses what is no length of a video
        decoded = self.decode(scores, outputs["pred_spans"], num_clips, torch.tensor(durations_s).float())
        options: dict[str, Any] = {"top_k": top_k, "score_threshold": score_threshold, "nms_threshold": nms_threshold}
        return [named_moments(self.select(moments, **options)) for moments in decoded.cpu()]

    def select(
        self,
        moments: Tensor,
        *,
        top_k: int | None = None,
        score_threshold: float = 0.0,
        nms_threshold: float | None = None,
    ) -> Tensor:
        """The moments to keep of one query: `(n, 3)` rows (start s, end s, score), best first, in and out.

        Raises:
            ValueError: `top_k` is less than 1, or a threshold lies outside [0, 1].
        """
        check_selection(top_k, score_threshold, nms_threshold)
        moments = moments[moments[:, 2] >= score_threshold]
        nms_threshold = self.nms_threshold if nms_threshold is None else nms_threshold
        return moments[:top_k] if nms_threshold is None else temporal_nms(moments, nms_threshold, top_k)


def __getattr__(name: str) -> Any:
    if name != "l2_normalize":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from .contract_bmdetr import l2_normalize

    warnings.warn(f"{__name__}.{name} has moved to contract_bmdetr", DeprecationWarning, stacklevel=2)
    return l2_normalize
