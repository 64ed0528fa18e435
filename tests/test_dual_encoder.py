"""The dual encoder: clips and queries apart, against loops and numbers worked out by hand."""

import math

import pytest
import torch
from factories import PAPER, tiny_batch, tiny_config, tiny_model

from modeling_bmdetr import BMDetrConfig
from modeling_bmdetr.dual_encoder_bmdetr import (
    FACETS,
    START_BIAS,
    START_SCALE,
    BMDetrDualEncoder,
    clip_logits,
    pair_logits,
    video_logits,
)
from modeling_bmdetr.ranking_losses_bmdetr import OTHERS_WEIGHT, contrast_loss, retrieval_loss


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_logit_is_that_of_the_facet_that_fits_best():
    clips, query = random(2, 3, FACETS, 5), random(2, 5, seed=1)
    logits = clip_logits(clips, query[None])[0]
    for row in range(2):
        for clip in range(3):
            expected = max(float(facet @ query[row]) for facet in clips[row, clip])
            assert logits[row, clip].item() == pytest.approx(expected, abs=1e-5)


def test_pairs_are_every_video_with_every_query():
    clips, queries = random(3, 4, FACETS, 5), random(2, 5, seed=1)
    logits = pair_logits(clips, queries)
    assert logits.shape == (3, 2, 4)
    for video in range(3):
        for query in range(2):
            torch.testing.assert_close(logits[video, query], clip_logits(clips[video], queries[query, None])[0])


def test_embeddings_are_cosines_scaled_and_shifted():
    torch.manual_seed(0)
    encoder = BMDetrDualEncoder(tiny_config())
    frames, texts = random(2, 6, 16), random(2, 3, 16, seed=1)
    ones = torch.ones(2, 6), torch.ones(2, 3)
    clips, queries = encoder.embed_clips(frames[:, :, None], ones[0]), encoder.embed_queries(texts, ones[1])
    assert clips.shape == (2, 6, FACETS, 17)
    cosine = torch.cosine_similarity(clips[..., :-1], queries[:, None, None, :-1], dim=-1).amax(dim=-1)
    torch.testing.assert_close(clip_logits(clips, queries[None])[0], START_SCALE * cosine + START_BIAS)


def test_padding_changes_nothing():
    torch.manual_seed(0)
    encoder = BMDetrDualEncoder(tiny_config())
    frames, texts = random(1, 6, 16), random(1, 3, 16, seed=1)
    whole = clip_logits(
        encoder.embed_clips(frames[:, :4, None], torch.ones(1, 4)),
        encoder.embed_queries(texts[None, :, :2], torch.ones(1, 2)),
    )
    mask, text_mask = torch.tensor([[1, 1, 1, 1, 0, 0]]), torch.tensor([[1, 1, 0]])
    padded = clip_logits(encoder.embed_clips(frames[:, :, None], mask), encoder.embed_queries(texts[None], text_mask))
    torch.testing.assert_close(padded[..., :4], whole)


@pytest.mark.parametrize("length", [1, 3, 5, 9])
def test_a_video_counts_as_its_best_five_clips(length):
    logits = random(2, 9)
    mask = (torch.arange(9) < length).long().expand(2, 9)
    found = video_logits(logits, mask)
    for row in range(2):
        real = logits[row, :length].tolist()
        means = [sum(window := real[max(0, at - 2) : at + 3]) / len(window) for at in range(length)]
        assert found[row].item() == pytest.approx(max(means), abs=1e-5)


def test_contrast_loss_by_hand():
    logits = random(2, 3, 4)  # two videos, three queries; the videos' own are the second and the third
    foreground = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0]]).bool()
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    rows = []
    for video in range(2):
        total, clips = 0.0, int(mask[video].sum())
        for clip in range(clips):
            for query in range(3):
                x = logits[video, query, clip].item()
                if query == video + 1:
                    total += softplus(-x) if foreground[video, clip] else softplus(x)
                else:
                    total += OTHERS_WEIGHT * softplus(x) / (1 + math.exp(-x)) / 2
        rows.append(total / clips)
    both, first = torch.tensor([True, True]), torch.tensor([True, False])
    assert contrast_loss(logits, foreground, mask, both, 1).item() == pytest.approx(sum(rows) / 2, abs=1e-5)
    assert contrast_loss(logits, foreground, mask, first, 1).item() == pytest.approx(rows[0], abs=1e-5)
    assert contrast_loss(logits, foreground, mask, both, 1, torch.tensor(4.0)).item() == pytest.approx(sum(rows) / 4)


def test_retrieval_loss_by_hand():
    logits = random(3, 3)  # two rows of this batch, after one of another process
    rows = []
    for own in (1, 2):
        across = sum(math.exp(logits[own, query]) for query in range(3))
        down = sum(math.exp(logits[video, own]) for video in range(3))
        rows.append((math.log(across) + math.log(down)) / 2 - logits[own, own].item())
    both, second = torch.tensor([True, True]), torch.tensor([False, True])
    assert retrieval_loss(logits, both, 1).item() == pytest.approx(sum(rows) / 2, abs=1e-5)
    assert retrieval_loss(logits, second, 1).item() == pytest.approx(rows[1], abs=1e-5)


def test_the_query_of_another_row_changes_no_answer():
    model, batch = tiny_model(), tiny_batch(shifted=False, labels=False, negatives=0)
    before = model(**batch)
    other = dict(batch, text_features=batch["text_features"].clone())
    other["text_features"][1:] *= -1
    after = model(**other)
    torch.testing.assert_close(after.pred_spans[0], before.pred_spans[0])
    torch.testing.assert_close(after.clip_logits[0], before.clip_logits[0])
    assert not torch.allclose(after.clip_logits[1], before.clip_logits[1])


def test_what_it_finds_reaches_spans_and_presence():
    model, batch = tiny_model(), tiny_batch(shifted=False, labels=False, negatives=0)
    before = model(**batch)
    with torch.no_grad():
        model.model.dual_encoder.bias += 3.0
    after = model(**batch)
    real = batch["video_mask"].bool()
    torch.testing.assert_close(after.clip_logits[real], before.clip_logits[real] + 3.0)
    assert after.clip_logits[~real].abs().sum() == 0
    assert not torch.allclose(after.positive_probabilities, before.positive_probabilities)
    assert not torch.allclose(after.presence_logits, before.presence_logits)


def test_every_weight_learns():
    model = tiny_model().train()
    model(**tiny_batch()).loss.backward()
    for name, parameter in model.model.dual_encoder.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_the_released_form_and_earlier_files_have_none():
    assert not BMDetrConfig.released().dual_encoder
    earlier = {**BMDetrConfig().to_dict(), "transformers_version": "5.0.0"}
    del earlier["dual_encoder"]
    assert not BMDetrConfig.from_dict(earlier).dual_encoder
    assert tiny_model(**PAPER).model.dual_encoder is None


def test_videos_and_queries_are_compared_all_with_all_as_pairs_are():
    model, batch = tiny_model(dual_encoder=True).model, tiny_batch()
    names = ("video_features", "video_mask", "text_features", "text_mask")
    video, video_mask, text, text_mask = (batch[name] for name in names)
    logits = model.match_videos(video, video_mask, text, text_mask)
    assert logits.shape == (len(video), len(text))
    for query in range(len(text)):
        rows = [part[query : query + 1].expand(len(video), *part.shape[1:]) for part in (text, text_mask)]
        with torch.no_grad():
            pairs = model(video, video_mask, *rows)["clip_logits"]
        torch.testing.assert_close(logits[:, query], video_logits(pairs, video_mask), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="has no dual encoder"):
        tiny_model(dual_encoder=False).model.match_videos(video, video_mask, text, text_mask)
