"""BM-DETR without heads: projections, encoder, background awareness and decoder.

Axis legend, used by every shape comment below:
    batch      video-query pairs            video_len  clips, padded       text_len  tokens, padded
    negatives  negative queries per pair    queries    learnable spans M   hidden    model width d
    passes     what one encoder call sees: (1 + negatives) x views x batch
    things     parts of a clip that its features describe one by one; 1 where they describe it as a whole
    views      1, or 2 with temporal shifting: the video as it is, and with its frames in another order

Masks are 1 = real everywhere; they are turned into attention masks in one place, by transformers' mask functions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import can_return_tuple

from .background_bmdetr import (
    BMDetrFrameQueryMatcher,
    attended_frames,
    joint_probability,
    present_negatives,
    stack_queries,
)
from .configuration_bmdetr import BMDetrConfig
from .dual_encoder_bmdetr import BMDetrDualEncoder, pair_logits, video_logits
from .input_checks_bmdetr import check_model_inputs, check_no_stray_tensors
from .layers_bmdetr import BMDetrProjection, masked_softmax, split_things, video_positions
from .outputs_bmdetr import BMDetrModelOutput
from .ranking_bmdetr import BMDetrClipProposals
from .transformer_bmdetr import BMDetrDecoder, BMDetrEncoder, BMDetrPreTrainedModel


class BMDetrModel(BMDetrPreTrainedModel):
    """Projections, encoder, frame-query matcher and decoder; no heads."""

    def __init__(self, config: BMDetrConfig):
        super().__init__(config)
        endpoints = 2 if config.endpoint_features else 0
        self.video_projection = BMDetrProjection(config, config.video_dim // config.things_per_clip + endpoints)
        self.text_projection = BMDetrProjection(config, config.text_dim)
        self.dual_encoder = BMDetrDualEncoder(config) if config.dual_encoder else None
        self.encoder = BMDetrEncoder(config)
        self.frame_query_matcher = BMDetrFrameQueryMatcher(config) if config.background_aware else None
        self.clip_proposals = self.query_embedding = None
        if config.learnable_spans and config.clip_proposals:
            self.clip_proposals = BMDetrClipProposals(config)
        else:
            self.query_embedding = nn.Embedding(config.num_queries, 2 if config.learnable_spans else config.hidden_size)
        self.decoder = BMDetrDecoder(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        video_features: Tensor,
        video_mask: Tensor,
        text_features: Tensor,
        text_mask: Tensor,
        negative_text_features: Tensor | None = None,
        negative_text_mask: Tensor | None = None,
        shifted_frame_order: Tensor | None = None,
        negative_weights: Tensor | None = None,
        **kwargs,
    ) -> BMDetrModelOutput:
        """One encoder pass over the positive and negative queries of every view; the decoder sees positives only.

        Args:
            video_features: `(batch, video_len, video_dim)`, without endpoint columns (they are appended here).
            video_mask: `(batch, video_len)`, 1 = real.
            text_features: `(batch, text_len, text_dim)`.
            text_mask: `(batch, text_len)`, 1 = real.
            negative_text_features: `(batch, negatives, any length, text_dim)`.
            negative_text_mask: `(batch, negatives, same length)`; all zero means that there is no such negative.
            shifted_frame_order: `(batch, video_len)` long, the clips of the shifted view; a permutation of the row's
                clips that leaves padding in place. Endpoint features describe places, so they do not move.
            negative_weights: `(batch, negatives)` in [0, 1], how much P(f|Q-) of each negative query counts, in Eq. 6
                and in Eq. 16; fully when left out. Less for one that is close to the query in meaning.

        Raises:
            ValueError: shapes, widths, masks or (on the CPU) values that cannot be right, by name.
        """
        cfg = self.config
        check_no_stray_tensors(kwargs)
        check_model_inputs(
            cfg,
            video_features,
            video_mask,
            text_features,
            text_mask,
            negative_text_features=negative_text_features,
            negative_text_mask=negative_text_mask,
            shifted_frame_order=shifted_frame_order,
            negative_weights=negative_weights,
        )
        batch = video_mask.shape[0]  # `len` would fix it in an exported model
        video_features, text_features = video_features.to(self.dtype), text_features.to(self.dtype)
        if not cfg.background_aware:
            negative_text_features = negative_text_mask = None

        # Each frame order and each query is projected once, however many passes use it.
        frames = video_features[None]  # (views, batch, video_len, video_dim)
        if shifted_frame_order is not None:
            shifted = video_features.gather(1, shifted_frame_order[..., None].expand_as(video_features))
            frames = torch.stack((video_features, shifted))
        things = self.project_clips(frames, video_mask)  # (views, batch, video_len, things, hidden)
        # (views, batch, video_len, hidden), of the same type: autocast on a GPU makes sums float32
        frames = things.sum(dim=-2, dtype=things.dtype)
        texts, texts_mask = stack_queries(text_features, text_mask, negative_text_features, negative_text_mask)
        texts = self.text_projection(texts)  # (1 + negatives, batch, text_len, hidden)

        # (1 + negatives, views, batch, video_len + text_len, hidden), positives of every view first
        views, queries = len(frames), len(texts)
        grid = (queries, views, batch)
        seen, apart = frames.expand(*grid, -1, -1), {}
        if self.dual_encoder is not None:
            apart = self.dual_encoder(things, video_mask, texts, texts_mask)
            seen = seen + self.dual_encoder.evidence(apart["clip_logits"][..., None].to(frames.dtype) / 4)
        embeds = torch.cat((seen, texts[:, None].expand(*grid, -1, -1)), dim=3)
        mask = torch.cat((video_mask.expand(*grid, -1), texts_mask[:, None].expand(*grid, -1)), dim=3)
        positions = video_positions(video_mask, cfg.hidden_size).to(embeds.dtype)
        answers_negatives = cfg.answer_negatives and queries > 1
        recorded = any(kwargs.get(name, getattr(cfg, name)) for name in ("output_hidden_states", "output_attentions"))
        encoded = self.encoder(
            embeds.flatten(0, 2),
            mask.flatten(0, 2),
            positions.expand(queries * views, -1, -1, -1).flatten(0, 1),
            # Of negatives that are not answered, only clips are read.
            whole_passes=None if recorded or answers_negatives or queries == 1 else views * batch,
            return_dict=True,
            **kwargs,
        )
        memory = encoded.last_hidden_state.view(*grid, -1, cfg.hidden_size)

        outputs = {"encoder_last_hidden_state": memory[0], "attended_hidden_state": memory[0]}
        if apart:
            outputs["clip_logits"] = apart["clip_logits"][0]
            outputs["clip_embeds"] = apart["clip_embeds"]
            outputs["query_embeds"] = apart["query_embeds"][0].expand(views, -1, -1)
        if self.frame_query_matcher is not None:
            matched = self.frame_query_matcher(memory[..., : video_mask.shape[1], :]) * video_mask.to(memory.dtype)
            present = present_negatives(texts_mask[1:]).T  # (batch, negatives)
            weights = present if negative_weights is None else present * negative_weights
            outputs.update(self.attend_frames(memory[0], matched, video_mask, present, weights))
        # What the decoder answers: the query in every view and, where they are answered too, the negative queries.
        read = outputs["attended_hidden_state" if cfg.decoder_memory == "attended" else "encoder_last_hidden_state"]
        read, read_mask = read.flatten(0, 1), mask[0].flatten(0, 1)
        copies = views + (queries - 1 if answers_negatives else 0)
        if answers_negatives:
            read = torch.cat((read, memory[1:, 0].flatten(0, 1)))
            read_mask = torch.cat((read_mask, mask[1:, 0].flatten(0, 1)))
        anchors, contents, proposals = self.start_spans(read, video_mask.repeat(copies, 1))
        decoded = self.decoder(
            anchors,
            read,
            read_mask,
            F.pad(positions, (0, 0, 0, texts.shape[2])),
            contents,
            return_dict=True,
            **kwargs,
        )
        answers: dict[str, Any] = {
            name: decoded.get(name) for name in ("last_hidden_state", "layer_states", "layer_spans")
        }
        answers |= proposals
        if anchors.dim() == 3:
            answers["anchors"] = anchors
        answers = {name: value for name, value in answers.items() if value is not None}
        outputs |= {name: value[: views * batch].unflatten(0, (views, batch)) for name, value in answers.items()}

        shared: dict[str, Any] = {"anchors": anchors} if cfg.learnable_spans and anchors.dim() == 2 else {}
        view_outputs = [
            BMDetrModelOutput(**{name: value[view] for name, value in outputs.items()}, **shared)
            for view in range(views)
        ]
        output = view_outputs[0]
        output.shifted = view_outputs[1] if views > 1 else None
        if answers_negatives:
            output.negative = BMDetrModelOutput(
                **{name: value[views * batch :] for name, value in answers.items()},
                **shared,
                encoder_last_hidden_state=memory[1:, 0].flatten(0, 1),
                clip_logits=apart["clip_logits"][1:, 0].flatten(0, 1) if apart else None,
                positive_probabilities=None if self.frame_query_matcher is None else matched[1:, 0].flatten(0, 1),
            )
        for source, name in ((encoded, "encoder"), (decoded, "decoder")):
            for kind in ("hidden_states", "attentions"):
                if (layers := source.get(kind)) is not None:
                    output[f"{name}_{kind}"] = tuple(layer[:batch] for layer in layers)
        if decoded.get("cross_attentions") is not None:
            output.cross_attentions = tuple(layer[:batch] for layer in decoded.cross_attentions)
        return output

    def project_clips(self, frames: Tensor, video_mask: Tensor) -> Tensor:
        """`(views, batch, video_len, video_dim)` clips to `(views, batch, video_len, things, hidden)`.

        Args:
            video_mask: `(batch, video_len)`, 1 = real; the places of endpoint features follow from it.
        """
        cfg = self.config
        return self.video_projection(split_things(frames, video_mask, cfg.things_per_clip, cfg.endpoint_features))

    def match_videos(
        self, video_features: Tensor, video_mask: Tensor, text_features: Tensor, text_mask: Tensor
    ) -> Tensor:
        """How sure the dual encoder alone is that each video shows what each query says.

        It sees every video and every query once, where `forward` sees pairs.

        Args:
            video_features: `(videos, video_len, video_dim)`, and `video_mask`, 1 = real.
            text_features: `(queries, text_len, text_dim)`, and `text_mask`, 1 = real.

        Returns:
            `(videos, queries)` logits.

        Raises:
            ValueError: the model has no dual encoder.
        """
        if self.dual_encoder is None:
            raise ValueError(
                "this model has no dual encoder (`config.dual_encoder`), which compares videos and queries"
            )
        things = self.project_clips(video_features.to(self.dtype)[None], video_mask)[0]
        clips = self.dual_encoder.embed_clips(things, video_mask)
        queries = self.dual_encoder.embed_queries(self.text_projection(text_features.to(self.dtype)), text_mask)
        return video_logits(pair_logits(clips, queries), video_mask[:, None])

    def start_spans(self, memory: Tensor, video_mask: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """What the decoder's queries start from: spans that clips propose, spans that are learned, or embeddings.

        Args:
            memory: `(rows, video_len + text_len, hidden)`.
            video_mask: `(rows, video_len)`.

        Returns:
            The queries of [`BMDetrDecoder.forward`], their contents, and the outputs that proposals add.
        """
        if self.clip_proposals is None:
            assert self.query_embedding is not None  # there is one or the other
            anchors = self.query_embedding.weight
            return anchors.float().sigmoid() if self.config.learnable_spans else anchors, None, {}
        frames = memory[:, : video_mask.shape[1]]
        proposed_se, logits = self.clip_proposals(frames, video_mask)
        index, anchors = self.clip_proposals.select(proposed_se, logits, video_mask)
        chosen = frames.gather(1, index[..., None].expand(-1, -1, frames.shape[-1]))
        return anchors, self.clip_proposals.content(chosen), {"proposed_spans": proposed_se, "proposal_logits": logits}

    def attend_frames(
        self, memory: Tensor, matched: Tensor, video_mask: Tensor, negative_mask: Tensor, negative_weights: Tensor
    ) -> dict[str, Tensor]:
        """Eq. 6-8 on the positive passes.

        Args:
            memory: `(views, batch, video_len + text_len, hidden)`, X+ of every view.
            matched: `(1 + negatives, views, batch, video_len)`, Eq. 4 of every query, 0 on padding.
            negative_mask: `(batch, negatives)` bool, negatives that are present.
            negative_weights: `(batch, negatives)`, how much each counts in Eq. 6; 0 where there is none.

        Returns:
            The fields of [`BMDetrModelOutput`] with a leading `views` dimension.
        """
        video_len = video_mask.shape[1]
        frames, words = memory[..., :video_len, :], memory[..., video_len:, :]
        positive, negative = matched[0], matched[1:].movedim(0, 2)  # (views, batch, [negatives,] video_len)
        joint = joint_probability(positive, negative, negative_weights)
        attention = masked_softmax(joint.float(), video_mask.expand_as(joint))
        attended = attended_frames(frames, attention, video_mask, self.config.frame_attention_scale)
        outputs = {
            "attended_hidden_state": torch.cat((attended, words), dim=2),
            "frame_probabilities": joint,
            "frame_attention": attention,
            "positive_probabilities": positive,
        }
        if negative_mask.shape[1]:
            outputs["negative_probabilities"] = negative * negative_mask[..., None]
        return outputs
