"""Parameter names of the authors' released code and of this package: one table, read in both directions."""

import re
from collections.abc import Iterable

from ..configuration_bmdetr import BMDetrConfig

_ENCODER, _OWN_ENCODER = "transformer.encoder.layers.{i}.", "model.encoder.layers.{i}."
_DECODER, _OWN_DECODER = "transformer.decoder.layers.{i}.", "model.decoder.layers.{i}."
_OWN_SELF, _OWN_CROSS = _OWN_DECODER + "self_attention.", _OWN_DECODER + "cross_attention."

# Released name, own name. `{i}` is the index of a layer and `{p}` is `weight` or `bias`; `.{p}` is left out at the end.
# Where there are several own names, the released tensor stacks their rows in this order.
_PAIRS: tuple[tuple[str, *tuple[str, ...]], ...] = (
    ("input_vid_proj.{i}.LayerNorm", "model.video_projection.norms.{i}"),
    ("input_vid_proj.{i}.net.1", "model.video_projection.linears.{i}"),
    ("input_txt_proj.{i}.LayerNorm", "model.text_projection.norms.{i}"),
    ("input_txt_proj.{i}.net.1", "model.text_projection.linears.{i}"),
    # encoder
    (
        _ENCODER + "self_attn.in_proj_{p}",
        _OWN_ENCODER + "self_attention.q_proj.{p}",
        _OWN_ENCODER + "self_attention.k_proj.{p}",
        _OWN_ENCODER + "self_attention.v_proj.{p}",
    ),
    (_ENCODER + "self_attn.out_proj", _OWN_ENCODER + "self_attention.o_proj"),
    (_ENCODER + "linear1", _OWN_ENCODER + "feed_forward.up"),
    (_ENCODER + "linear2", _OWN_ENCODER + "feed_forward.down"),
    (_ENCODER + "activation", _OWN_ENCODER + "feed_forward.activation"),
    (_ENCODER + "norm1", _OWN_ENCODER + "attention_norm"),
    (_ENCODER + "norm2", _OWN_ENCODER + "output_norm"),
    ("transformer.encoder.query_scale.layers.0", "model.encoder.position_scale.0"),
    ("transformer.encoder.query_scale.layers.1", "model.encoder.position_scale.2"),
    # frame-query matcher, anchors
    ("FPM.0", "model.frame_query_matcher.w1"),
    ("FPM.2", "model.frame_query_matcher.w2"),
    ("query_embed", "model.query_embedding"),
    # decoder
    (_DECODER + "sa_qcontent_proj", _OWN_SELF + "q_content_proj"),
    (_DECODER + "sa_qpos_proj", _OWN_SELF + "q_position_proj"),
    (_DECODER + "sa_kcontent_proj", _OWN_SELF + "k_content_proj"),
    (_DECODER + "sa_kpos_proj", _OWN_SELF + "k_position_proj"),
    (_DECODER + "sa_v_proj", _OWN_SELF + "v_proj"),
    (_DECODER + "self_attn.out_proj", _OWN_SELF + "o_proj"),
    (_DECODER + "norm1", _OWN_DECODER + "self_attention_norm"),
    (_DECODER + "ca_qcontent_proj", _OWN_CROSS + "q_content_proj"),
    (_DECODER + "ca_qpos_proj", _OWN_CROSS + "q_position_proj"),
    (_DECODER + "ca_kcontent_proj", _OWN_CROSS + "k_content_proj"),
    (_DECODER + "ca_kpos_proj", _OWN_CROSS + "k_position_proj"),
    (_DECODER + "ca_v_proj", _OWN_CROSS + "v_proj"),
    (_DECODER + "ca_qpos_sine_proj", _OWN_CROSS + "q_sine_proj"),
    (_DECODER + "cross_attn.out_proj", _OWN_CROSS + "o_proj"),
    (_DECODER + "norm2", _OWN_DECODER + "cross_attention_norm"),
    (_DECODER + "linear1", _OWN_DECODER + "feed_forward.up"),
    (_DECODER + "linear2", _OWN_DECODER + "feed_forward.down"),
    (_DECODER + "activation", _OWN_DECODER + "feed_forward.activation"),
    (_DECODER + "norm3", _OWN_DECODER + "output_norm"),
    ("transformer.decoder.norm", "model.decoder.norm"),
    ("transformer.decoder.query_scale.layers.0", "model.decoder.span_scale.0"),
    ("transformer.decoder.query_scale.layers.1", "model.decoder.span_scale.2"),
    ("transformer.decoder.ref_point_head.layers.0", "model.decoder.span_position.0"),
    ("transformer.decoder.ref_point_head.layers.1", "model.decoder.span_position.2"),
    ("transformer.decoder.ref_anchor_head.layers.0", "model.decoder.span_width.0"),
    ("transformer.decoder.ref_anchor_head.layers.1", "model.decoder.span_width.2"),
    # heads
    ("class_embed", "class_head"),
    ("span_embed.layers.0", "span_head.0"),
    ("span_embed.layers.1", "span_head.2"),
    ("span_embed.layers.2", "span_head.4"),
    ("saliency_proj", "saliency_head"),
    ("vid_att_pooling.feat2att", "video_pooling.gate"),
    ("vid_att_pooling.to_alpha", "video_pooling.score"),
    ("vid_att_pooling.fc", "video_pooling.output.0"),
    ("contrastive_align_vid_proj", "video_pooling.output.1"),
    ("txt_att_pooling.feat2att", "text_pooling.gate"),
    ("txt_att_pooling.to_alpha", "text_pooling.score"),
    ("txt_att_pooling.fc", "text_pooling.output.0"),
    ("contrastive_align_txt_proj", "text_pooling.output.1"),
)


def _whole(template: str) -> str:
    return template if "{p}" in template else template + ".{p}"


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{p\}", "(?P<p>weight|bias)")
    return re.compile(escaped)


# (pattern of one own name, released template, templates of all own names that it stacks)
_TABLE = [
    (_pattern(_whole(own)), _whole(released), tuple(map(_whole, owns))) for released, *owns in _PAIRS for own in owns
]


def released_layout(own_names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The released state dict that a model's own parameters make up.

    Args:
        own_names: Names in `model.state_dict()`.

    Returns:
        Each released name with the own parameters whose rows it stacks: one, or query, key and value of the
        encoder's attention.

    Raises:
        ValueError: parameters that the released code has no place for, all by name.
    """
    layout: dict[str, tuple[str, ...]] = {}
    homeless = []
    for name in own_names:
        for pattern, released, owns in _TABLE:
            if match := pattern.fullmatch(name):
                places = match.groupdict()
                layout[released.format(**places)] = tuple(own.format(**places) for own in owns)
                break
        else:
            homeless.append(name)
    if homeless:
        raise ValueError(f"the released code has no parameters like {homeless}")
    return layout


def idle_parameters(config: BMDetrConfig) -> dict[str, tuple[int, ...]]:
    """Released parameters, with their shapes, that no output of the released code depends on.

    The position embedding of the text is switched off in every released run. The decoder's `query_scale` acts from
    the second layer on.
    """
    d = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "txt_position_embed.position_embeddings.weight": (config.max_tokens, d),
        "txt_position_embed.LayerNorm.weight": (d,),
        "txt_position_embed.LayerNorm.bias": (d,),
    }
    if config.decoder_layers == 1:
        for i in (0, 1):
            shapes[f"transformer.decoder.query_scale.layers.{i}.weight"] = (d, d)
            shapes[f"transformer.decoder.query_scale.layers.{i}.bias"] = (d,)
    return shapes


# Released loss: own loss, and what the released value is in units of ours. The release averages the two coordinates
# of the L1 loss and doubles the margin loss; the weights of `BMDetrConfig.released()` make up for both.
RELEASED_LOSSES: dict[str, tuple[str, float]] = {
    "loss_label": ("loss_cls", 1.0),
    "loss_span": ("loss_l1", 0.5),
    "loss_giou": ("loss_iou", 1.0),
    "loss_saliency": ("loss_margin", 2.0),
    "loss_prob_guidance": ("loss_prob", 1.0),
    "loss_contrastive_align": ("loss_semantic", 1.0),
}

# Output of the released code: field of BMDetrMomentRetrievalOutput.
RELEASED_OUTPUTS: dict[str, str] = {
    "pred_logits": "logits",
    "pred_spans": "pred_spans",
    "vid_logits": "frame_probabilities",
    "saliency_scores": "saliency_scores",
    "proj_vid_mem": "video_embeds",
    "proj_txt_mem": "text_embeds",
}
