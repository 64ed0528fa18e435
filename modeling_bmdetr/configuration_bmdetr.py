"""Configuration of BM-DETR, and the feature contract that every checkpoint carries."""

# No `from __future__ import annotations` here: it would switch off the validation that `strict` does.

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME, logging

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class FeatureContract:
    """What a model expects of its features: who made them, how they lie in time, and how they are prepared.

    The contract is part of [`BMDetrConfig`], is stored beside every feature store, and is compared wherever a
    checkpoint, a store and an input meet. An encoder is described by a dict with at least `name` and `dim`
    (values per row); its other entries are the options that change its output.

    Attributes:
        video_encoders: Encoders whose rows (one a clip) are concatenated, in this order.
        text_encoder: Encoder whose rows (one a token) represent a sentence.
        clip_length: Seconds a clip covers.
        max_clips: Longest video in clips; `long_video` says what happens to a longer one.
        max_tokens: Longest sentence in tokens; the rest is cut.
        long_video: `truncate` keeps the first `max_clips` clips, `resample` mean-pools the whole video to them,
            `window` slides over the video at inference and truncates in training.
        normalize_video: L2-normalise each video encoder's rows before concatenation.
        normalize_text: L2-normalise the text rows.
        endpoint_features: The model appends the clip's start and end, as fractions of the video, to its features.
        text_rows: `to_end_of_text` keeps the rows of real tokens, `all` keeps padding rows as released features do.
    """

    video_encoders: tuple[dict[str, Any], ...] = ()
    text_encoder: dict[str, Any] | None = None
    clip_length: float = 1.0
    max_clips: int = 75
    max_tokens: int = 32
    long_video: Literal["truncate", "resample", "window"] = "truncate"
    normalize_video: bool = True
    normalize_text: bool = True
    endpoint_features: bool = True
    text_rows: Literal["to_end_of_text", "all"] = "to_end_of_text"

    def __post_init__(self):
        object.__setattr__(self, "video_encoders", tuple(_plain_encoder(encoder) for encoder in self.video_encoders))
        if self.text_encoder is not None:
            object.__setattr__(self, "text_encoder", _plain_encoder(self.text_encoder))
        is_number = isinstance(self.clip_length, (int, float))
        if not is_number or not (self.clip_length > 0 and math.isfinite(self.clip_length)):
            raise ValueError(f"`clip_length` must be a positive number of seconds, received {self.clip_length!r}")
        for name in ("max_clips", "max_tokens"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be a whole number of at least 1, received {getattr(self, name)!r}")
        for name in ("long_video", "text_rows"):
            if getattr(self, name) not in (choices := get_args(type(self).__annotations__[name])):
                raise ValueError(f"`{name}` must be one of {choices}, received {getattr(self, name)!r}")

    @property
    def video_dim(self) -> int:
        """Values per clip over all video encoders."""
        return sum(encoder["dim"] for encoder in self.video_encoders)

    @property
    def text_dim(self) -> int:
        """Values per token, 0 when no text encoder is named."""
        return self.text_encoder["dim"] if self.text_encoder else 0

    def to_dict(self) -> dict[str, Any]:
        """The contract as plain JSON types."""
        return {**asdict(self), "video_encoders": [dict(encoder) for encoder in self.video_encoders]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FeatureContract":
        """The contract from `to_dict`'s result; an unknown entry is an error."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown entries in the feature contract: {unknown}; expected some of {sorted(known)}")
        return cls(**values)

    def mismatches(self, other: "FeatureContract") -> list[str]:
        """What differs, among the entries that decide the feature values themselves, one line each."""
        lines = []
        for name in ("video_encoders", "text_encoder", "clip_length", "text_rows"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs and mine and theirs:
                lines.append(f"{name}: {_describe(mine)} against {_describe(theirs)}")
        if self.normalize_video and not self.video_encoders and len(other.video_encoders) > 1:
            # Each encoder's part is normalised by itself, and nothing here says where the parts end.
            theirs = [{"name": encoder["name"], "dim": encoder["dim"]} for encoder in other.video_encoders]
            lines.append(
                f"video_encoders: not named, against {_describe(other.video_encoders)}, whose parts are normalised one "
                f"by one; name them in the configuration, as in `video_encoders={theirs}`"
            )
        return lines

    def require_match(self, other: "FeatureContract", own_name: str, other_name: str) -> None:
        """Raises `ValueError`, naming both sides and the remedy, unless features of `other` fit this contract."""
        if lines := self.mismatches(other):
            raise ValueError(
                f"the features of {other_name} do not fit {own_name}:\n  "
                + "\n  ".join(lines)
                + f"\nExtract the features again with the encoders and clip length of {own_name}, "
                f"or use a checkpoint trained on those of {other_name}."
            )


def _plain_encoder(encoder: Any) -> dict[str, Any]:
    """A copy as JSON gives it back, so that a stored contract equals the one it was stored from."""
    dim = encoder.get("dim") if isinstance(encoder, dict) else None
    if not isinstance(dim, int) or dim < 1 or not isinstance(encoder.get("name"), str):
        raise ValueError(
            "an encoder of the feature contract is a dict with at least `name` (str) and `dim` (int, values per row), "
            f"received {encoder!r}"
        )
    return json.loads(json.dumps(encoder))


def _describe(value: Any) -> str:
    """Encoders by name and width, anything else as it is."""
    if isinstance(value, dict):
        options = ", ".join(f"{k}={v!r}" for k, v in sorted(value.items()) if k not in ("name", "dim"))
        return f"{value['name']} ({value['dim']} wide{', ' + options if options else ''})"
    if isinstance(value, tuple):
        return " + ".join(_describe(item) for item in value)
    return repr(value)


@strict
class BMDetrConfig(PreTrainedConfig):
    r"""Configuration of [`BMDetrModel`] and [`BMDetrForMomentRetrieval`].

    Equations and tables are those of "Background-aware Moment Detection for Video Moment Retrieval"
    (arXiv:2306.02728). The defaults follow the paper, with the sizes of its released code; where our measurements
    say that the literal form is worse, the better one is the default (docs/ablations.md has the figures).

    Feature contract (see [`FeatureContract`] for each): `video_encoders`, `text_encoder`, `clip_length`, `max_clips`,
    `max_tokens`, `long_video`, `normalize_video`, `normalize_text`, `endpoint_features`, `text_rows`.

    Sizes:
        video_dim: Values per clip, without the two endpoint columns; the sum over `video_encoders` where given.
        text_dim: Values per token.
        hidden_size: Width d of encoder and decoder.
        encoder_layers, decoder_layers, num_attention_heads, intermediate_size: Transformer sizes.
        num_queries: M, the learnable spans, and so the number of moments predicted.
        projection_layers: Layers of each input projection (3.3.1).
        projection_dropout, dropout, attention_dropout: Dropout in the projections, in the transformer, on attention.
        activation: Activation of the feed-forward blocks; `prelu` has one learned slope a layer.
        alignment_dim: Width of the contrastive space when `alignment_pooling="gated"`.

    Forms and ablations:
        background_aware: Eq. 1 and 4-8. Off: no frame-query matcher, negative queries are not used (Table 7, BMD).
        learnable_spans: Decoder queries are spans (3.3.4). Off: learned embeddings (Table 7, LS).
        decoder_memory: Eq. 8: the decoder reads the `attended` X'+, or the `encoder` output X+ as the release does.
        frame_attention_scale: Eq. 8: frames times o (`literal`), or times o x n, whose mean over the n frames is one
            (`mean_one`).
        alignment_pooling: Eq. 9-10 as written (`linear`), or with a tanh layer and projections (`gated`).
        alignment_denominator: Eq. 17: `negatives` only as written, or `all` pairs (InfoNCE), the default: as written
            the loss has no floor, keeps falling once every pair is told apart, and drowns the others.

    Loss weights (0 switches a loss off, Table 8):
        class_loss_weight, l1_loss_weight, giou_loss_weight: Class loss and Eq. 14.
        margin_loss_weight, margin: Eq. 15.
        probability_loss_weight: Eq. 16 on the joint probability: the paper's objective, with which the other two are 0.
        positive_probability_loss_weight: Eq. 16 on P(f|Q+), the factor of Eq. 6 that inference uses.
        negative_probability_loss_weight: Eq. 16 on P(f|Q-), the other factor, with the negative query's own moments:
            inside high, outside low; only low where the query belongs to another video.
        alignment_loss_weight, temperature: Eq. 17.
        no_object_weight: Weight of unmatched spans in the class loss.
        class_cost, l1_cost, giou_cost: The matching cost, Eq. 12.
    """

    model_type = "bmdetr"
    _auto_class = "AutoConfig"
    keys_to_ignore_at_inference = ["loss_dict", "shifted"]
    attribute_map = {"d_model": "hidden_size", "num_hidden_layers": "encoder_layers"}

    video_dim: int = 2816
    text_dim: int = 512
    hidden_size: int = 256
    encoder_layers: int = 3
    decoder_layers: int = 3
    num_attention_heads: int = 8
    intermediate_size: int = 1024
    num_queries: int = 10
    projection_layers: int = 2
    projection_dropout: float | int = 0.5
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    activation: Literal["prelu", "relu", "gelu"] = "prelu"
    alignment_dim: int = 256

    background_aware: bool = True
    learnable_spans: bool = True
    decoder_memory: Literal["attended", "encoder"] = "encoder"
    frame_attention_scale: Literal["literal", "mean_one"] = "mean_one"
    alignment_pooling: Literal["linear", "gated"] = "linear"
    alignment_denominator: Literal["negatives", "all"] = "all"

    class_loss_weight: float | int = 8.0
    l1_loss_weight: float | int = 0.5
    giou_loss_weight: float | int = 8.0
    margin_loss_weight: float | int = 8.0
    margin: float | int = 0.2
    probability_loss_weight: float | int = 0.0
    positive_probability_loss_weight: float | int = 2.0
    negative_probability_loss_weight: float | int = 2.0
    alignment_loss_weight: float | int = 1.0
    temperature: float | int = 0.07
    no_object_weight: float | int = 0.1
    class_cost: float | int = 8.0
    l1_cost: float | int = 1.0
    giou_cost: float | int = 8.0

    video_encoders: list[dict] | None = None
    text_encoder: dict | None = None
    clip_length: float | int = 1.0
    max_clips: int = 75
    max_tokens: int = 32
    long_video: Literal["truncate", "resample", "window"] = "truncate"
    normalize_video: bool = True
    normalize_text: bool = True
    endpoint_features: bool = True
    text_rows: Literal["to_end_of_text", "all"] = "to_end_of_text"

    is_encoder_decoder: bool = True

    def __post_init__(self, **kwargs):
        if unknown := sorted(key for key in kwargs if not key.startswith("_") and key not in _BASE_FIELDS):
            hints = "".join(f"; `{key}` is `{_OTHER_NAMES[key]}` here" for key in unknown if key in _OTHER_NAMES)
            if self.transformers_version is None:  # not from a file
                raise TypeError(f"unknown BMDetrConfig fields {unknown}{hints}")
            # A config.json written by another version of the library loads, but not silently.
            logger.warning(f"config.json has fields that BMDetrConfig does not know: {unknown}{hints}")
        if not __name__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
            # The installed library registers the pipeline itself, so its users need not trust a repository's code.
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)

    def validate_sizes(self):
        """Every size is positive, and the heads divide the width."""
        for name in (
            *("video_dim", "text_dim", "hidden_size", "encoder_layers", "decoder_layers", "num_attention_heads"),
            *("intermediate_size", "num_queries", "projection_layers", "alignment_dim"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, received {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads or self.hidden_size % 4:
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) must be a multiple of `num_attention_heads` "
                f"({self.num_attention_heads}) and of 4 (sine and cosine of two coordinates)"
            )

    def validate_ranges(self):
        """Dropout in [0, 1), weights not negative, temperature positive."""
        for name in ("projection_dropout", "dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must lie in [0, 1), received {getattr(self, name)}")
        for name in [key for key in self.__annotations__ if key.endswith(("_weight", "_cost"))] + ["margin"]:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be finite and not negative, received {getattr(self, name)}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"`temperature` must be positive, received {self.temperature}")
        if self.class_cost == self.l1_cost == self.giou_cost == 0:
            raise ValueError("`class_cost`, `l1_cost` and `giou_cost` are all 0: nothing to match by")

    def validate_features(self):
        """The feature contract is well formed and agrees with the widths."""
        contract = self.feature_contract
        if contract.video_encoders and contract.video_dim != self.video_dim:
            raise ValueError(
                f"`video_dim` is {self.video_dim}, but `video_encoders` ({_describe(contract.video_encoders)}) "
                f"give {contract.video_dim} values a clip; leave the two endpoint columns out"
            )
        if contract.text_encoder and contract.text_dim != self.text_dim:
            raise ValueError(
                f"`text_dim` is {self.text_dim}, but `text_encoder` ({_describe(contract.text_encoder)}) "
                f"gives {contract.text_dim} values a token"
            )

    @property
    def feature_contract(self) -> FeatureContract:
        """The contract that features for this model must keep."""
        values = {field.name: getattr(self, field.name) for field in fields(FeatureContract)}
        return FeatureContract(**{**values, "video_encoders": tuple(self.video_encoders or ())})

    @classmethod
    def from_contract(cls, contract: FeatureContract, **kwargs: Any) -> "BMDetrConfig":
        """A configuration for features that keep `contract`; `kwargs` are further fields."""
        widths = {"video_dim": contract.video_dim, "text_dim": contract.text_dim}
        return cls(**{**contract.to_dict(), **{k: v for k, v in widths.items() if v}, **kwargs})

    @classmethod
    def released(cls, **kwargs: Any) -> "BMDetrConfig":
        """The forms and weights of the authors' released code (docs/paper_and_release.md lists each), except its
        defects. The sizes are the released ones already; the loss weights are those of its Charades-STA script.

        Two weights look different because the losses here keep the paper's scale: the release averages the two
        coordinates of the L1 loss (its 1 is 0.5 here) and doubles the margin loss (its 4 is 8 here).
        """
        forms: dict[str, Any] = {
            "decoder_memory": "encoder",
            "frame_attention_scale": "literal",
            "alignment_pooling": "gated",
            "alignment_denominator": "all",
            "l1_loss_weight": 0.5,
            "margin_loss_weight": 8.0,
            "probability_loss_weight": 2.0,
            "positive_probability_loss_weight": 0.0,
            "negative_probability_loss_weight": 0.0,
            "text_rows": "all",
        }
        return cls(**{**forms, **kwargs})


# Names that users of the released code, Moment-DETR and DETR in transformers reach for.
_OTHER_NAMES = {
    "v_feat_dim": "video_dim",
    "t_feat_dim": "text_dim",
    "hidden_dim": "hidden_size",
    "enc_layers": "encoder_layers",
    "dec_layers": "decoder_layers",
    "nheads": "num_attention_heads",
    "dim_feedforward": "intermediate_size",
    "input_dropout": "projection_dropout",
    "n_input_proj": "projection_layers",
    "contrastive_hdim": "alignment_dim",
    "clip_len": "clip_length",
    "max_v_l": "max_clips",
    "max_q_l": "max_tokens",
    "eos_coef": "no_object_weight",
    "saliency_margin": "margin",
}

# Keyword arguments that the base class, the Auto classes and a saved config.json own.
_BASE_FIELDS = frozenset(PreTrainedConfig().to_dict()) | {
    *("num_labels", "torch_dtype", "auto_map", "custom_pipelines", "attn_implementation", "name_or_path"),
    *("model_type", "output_attentions", "output_hidden_states", "use_return_dict", "tie_word_embeddings"),
}
