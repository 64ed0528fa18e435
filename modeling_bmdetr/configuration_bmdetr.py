"""Configuration of BM-DETR: sizes, forms, loss weights, and the feature contract that every checkpoint carries."""

# No `from __future__ import annotations` here: it would switch off the validation that `strict` does.

import sys
from dataclasses import fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME, logging

from .contract_bmdetr import FeatureContract, describe_encoders

logger = logging.get_logger(__name__)

FLOATING_TYPES = ("float32", "float16", "bfloat16", "float64")
# A file of a few bytes may state sizes that no memory holds, and depths that are never built.
LARGEST_SIZE, MOST_LAYERS = 1_000_000, 100


def _contract_fields() -> dict[str, Any]:
    """A class body that declares every entry of [`FeatureContract`], with its type and default."""
    entries = {field.name: (field.type, field.default) for field in fields(FeatureContract)}
    entries["video_encoders"] = (list[dict] | None, None)  # as JSON has them
    types = {name: type_ for name, (type_, _) in entries.items()}
    return {"__module__": __name__, "__annotations__": types, **{name: value for name, (_, value) in entries.items()}}


_ContractConfig: Any = type("_ContractConfig", (PreTrainedConfig,), _contract_fields())


@strict
class BMDetrConfig(_ContractConfig):
    r"""Configuration of [`BMDetrModel`] and [`BMDetrForMomentRetrieval`].

    Equations and tables are those of "Background-aware Moment Detection for Video Moment Retrieval"
    (arXiv:2306.02728). The defaults follow the paper, with the sizes of its released code; where our measurements
    say that the literal form is worse, the better one is the default (docs/ablations.md has the figures).

    Feature contract (see [`FeatureContract`] for each): `video_encoders`, `text_encoder`, `clip_length`, `max_clips`,
    `max_tokens`, `long_video`, `normalize_video`, `normalize_text`, `endpoint_features`, `text_rows`.

    Sizes:
        video_dim: Values per clip, without the two endpoint columns; the sum over `video_encoders` where given.
        text_dim: Values per token.
        things_per_clip: Equal parts of a clip's values that describe one thing each, in the same way, as
            `moving-things` alone has them. All are projected by the same weights, and each has an embedding of its own
            in the dual encoder; the clip is their sum. 1: a clip is described as a whole.
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

    Ranking and presence (not in the paper; ranking_bmdetr.py, and docs/ablations.md for what each is worth):
        span_refinement: Each decoder layer goes on from the spans of the one before (DAB-DETR), and has class and span
            losses of its own. Needs learnable spans, without which it has no effect.
        clip_proposals: Every clip proposes a span, and the decoder starts from the best of them, not from places
            learned once for all videos. Needs learnable spans, as above.
        answer_negatives: Negative queries are answered in training as well: with their own moments where they belong to
            the video, as absent where they belong to another.
        quality_head: A head predicts the IoU of each span with the best described moment.
        presence_head: A head predicts whether the video shows what the query says at all.
        dual_encoder: Clips and queries are embedded apart as well, every query of a batch is compared with the clips of
            every video, and what that says of each clip enters the encoder and the heads (dual_encoder_bmdetr.py).
        standardize_inputs: Before training, the first LayerNorm of each projection is set so that every input value has
            mean 0 and deviation 1 over the training rows, whatever the encoder's scale.
        score: What spans are ranked by: the `class` probability of foreground as in the paper, the predicted `quality`,
            or their `product`. Without a quality head it is the class.
        calibration: What turns scores and presence into probabilities, fitted after training for these weights; the
            fields of [`Calibration`]. None: scores are no probabilities.

    Loss weights (0 switches a loss off, Table 8):
        loss: Name of a loss that a plug-in registers (`register_loss`), which the model trains with in place of
            BM-DETR's. To answer, a checkpoint does not need it.
        class_loss_weight, l1_loss_weight, giou_loss_weight: Class loss and Eq. 14.
        margin_loss_weight, margin: Eq. 15.
        probability_loss_weight: Eq. 16 on the joint probability: the paper's objective, with which the other two are 0.
        positive_probability_loss_weight: Eq. 16 on P(f|Q+), the factor of Eq. 6 that inference uses.
        negative_probability_loss_weight: Eq. 16 on P(f|Q-), the other factor, with the negative query's own moments:
            inside high, outside low; only low where the query belongs to another video.
        alignment_loss_weight, temperature: Eq. 17.
        fit_loss_weight: Eq. 14, with the weights of its two terms, of spans that overlap a moment by more than half.
        quality_loss_weight: Cross entropy of the predicted IoU, of spans and of proposals.
        proposal_loss_weight: Eq. 14 of the spans that clips propose, with the weights of its two terms.
        presence_loss_weight: Cross entropy of presence.
        contrast_loss_weight: Cross entropy of every clip and every query of a batch, in the dual encoder.
        retrieval_loss_weight: Cross entropy of a video's query among those of a batch, and of a query's video.
        no_object_weight: Weight of unmatched spans in the class loss.
        class_cost, l1_cost, giou_cost: The matching cost, Eq. 12.
    """

    model_type = "bmdetr"
    _auto_class = "AutoConfig"
    keys_to_ignore_at_inference = ["loss_dict", "shifted"]
    attribute_map = {"d_model": "hidden_size", "num_hidden_layers": "encoder_layers"}

    video_dim: int = 2816
    text_dim: int = 512
    things_per_clip: int = 1
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

    span_refinement: bool = True
    clip_proposals: bool = True
    answer_negatives: bool = True
    quality_head: bool = True
    presence_head: bool = True
    dual_encoder: bool = True
    standardize_inputs: bool = True
    score: Literal["class", "quality", "product"] = "quality"

    calibration: dict[str, Any] | None = None

    loss: str | None = None
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
    fit_loss_weight: float | int = 1.0
    quality_loss_weight: float | int = 4.0
    proposal_loss_weight: float | int = 1.0
    presence_loss_weight: float | int = 1.0
    contrast_loss_weight: float | int = 4.0
    retrieval_loss_weight: float | int = 1.0
    no_object_weight: float | int = 0.1
    class_cost: float | int = 8.0
    l1_cost: float | int = 1.0
    giou_cost: float | int = 8.0

    is_encoder_decoder: bool = True

    def __post_init__(self, **kwargs):
        if unknown := sorted(key for key in kwargs if not key.startswith("_") and key not in _BASE_FIELDS):
            hints = "".join(f"; `{key}` is `{OTHER_NAMES[key]}` here" for key in unknown if key in OTHER_NAMES)
            if self.transformers_version is None:  # not from a file
                raise TypeError(f"unknown BMDetrConfig fields {unknown}{hints}")
            # A config.json written by another version of the library loads, but not silently.
            logger.warning(f"config.json has fields that BMDetrConfig does not know: {unknown}{hints}")
        if not __name__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
            # The installed library registers the pipeline itself, so its users need not trust a repository's code.
            kwargs.pop("custom_pipelines", None)
        if self.dtype is not None and str(self.dtype).removeprefix("torch.") not in FLOATING_TYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(FLOATING_TYPES)}, received {self.dtype!r}")
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """As in transformers; a checkpoint of another architecture, or without a configuration, is refused.

        Raises:
            OSError: there is no `config.json`.
            ValueError: it names another `model_type`.
        """
        values, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not values:
            raise OSError(f"there is no config.json in '{pretrained_model_name_or_path}', so it is no checkpoint")
        if values.get("model_type") != cls.model_type:
            raise ValueError(
                f"'{pretrained_model_name_or_path}' is no BM-DETR checkpoint: its config.json has model_type "
                f"{values.get('model_type')!r}, expected {cls.model_type!r}"
            )
        return values, rest

    def validate_sizes(self):
        """Every size is positive, and the heads divide the width."""
        for name in (
            *("video_dim", "text_dim", "hidden_size", "encoder_layers", "decoder_layers", "num_attention_heads"),
            *("intermediate_size", "num_queries", "projection_layers", "alignment_dim", "things_per_clip"),
        ):
            most = MOST_LAYERS if name.endswith("_layers") else LARGEST_SIZE
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"`{name}` must be at least 1 and at most {most}, received {getattr(self, name)}")
        if self.video_dim % self.things_per_clip:
            raise ValueError(
                f"`things_per_clip` ({self.things_per_clip}) must divide `video_dim` ({self.video_dim}): every thing "
                "has as many values. Give the number of the encoder, or 1"
            )
        if self.things_per_clip == self.video_dim > 1:
            raise ValueError(
                f"`things_per_clip` must be less than `video_dim`, received {self.video_dim} for both: one value by "
                "itself says nothing once it is normalised. Give the number of the encoder, or 1"
            )
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
            if not 0 <= getattr(self, name) <= sys.float_info.max:
                raise ValueError(f"`{name}` must be finite and not negative, received {getattr(self, name)}")
        if not 0 < self.temperature <= sys.float_info.max:
            raise ValueError(f"`temperature` must be positive, received {self.temperature}")
        if self.class_cost == self.l1_cost == self.giou_cost == 0:
            raise ValueError("`class_cost`, `l1_cost` and `giou_cost` are all 0: nothing to match by")

    def validate_features(self):
        """The feature contract is well formed and agrees with the widths."""
        contract = self.feature_contract
        if contract.video_encoders and contract.video_dim != self.video_dim:
            raise ValueError(
                f"`video_dim` is {self.video_dim}, but `video_encoders` ({describe_encoders(contract.video_encoders)}) "
                f"give {contract.video_dim} values per clip; leave the two endpoint columns out"
            )
        if contract.text_encoder and contract.text_dim != self.text_dim:
            raise ValueError(
                f"`text_dim` is {self.text_dim}, but `text_encoder` ({describe_encoders(contract.text_encoder)}) "
                f"gives {contract.text_dim} values per token"
            )

    @property
    def feature_contract(self) -> FeatureContract:
        """The contract that features for this model must keep."""
        values = {field.name: getattr(self, field.name) for field in fields(FeatureContract)}
        return FeatureContract(**{**values, "video_encoders": tuple(self.video_encoders or ())})

    @classmethod
    def from_contract(cls, contract: FeatureContract, **kwargs: Any) -> "BMDetrConfig":
        """A configuration for features that keep `contract`, and their things; `kwargs` are further fields."""
        follows = {**contract_fields(contract), "things_per_clip": contract.things_per_clip}
        return cls(**{**follows, **kwargs})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As the base class; what an earlier file lacks of `WITHOUT_RANKING` is as there."""
        if "transformers_version" in config_dict:
            config_dict = {**WITHOUT_RANKING, **config_dict}
        return super().from_dict(config_dict, **kwargs)

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
            **WITHOUT_RANKING,
        }
        return cls(**{**forms, **kwargs})


def contract_fields(contract: FeatureContract) -> dict[str, Any]:
    """The fields of a configuration that follow from a contract: its entries, and the widths where it has encoders."""
    widths = {"video_dim": contract.video_dim, "text_dim": contract.text_dim}
    return {**contract.to_dict(), **{name: width for name, width in widths.items() if width}}


# All fields of the configuration by name, wherever they are declared.
BMDetrConfig.__annotations__ = {**_ContractConfig.__annotations__, **BMDetrConfig.__annotations__}

# The paper's model: none of the options for ranking and presence. Configurations saved before there were any mean this.
WITHOUT_RANKING: dict[str, Any] = {
    **dict.fromkeys(
        (
            *("span_refinement", "clip_proposals", "answer_negatives", "quality_head", "presence_head"),
            *("dual_encoder", "standardize_inputs"),
        ),
        False,
    ),
    "things_per_clip": 1,
    "fit_loss_weight": 0.0,
    "score": "class",
}

# Names that users of the released code, Moment-DETR and DETR in transformers reach for.
OTHER_NAMES = {
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
