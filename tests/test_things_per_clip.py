"""Clips whose features are equal parts, one for each thing: `BMDetrConfig.things_per_clip`."""

import json

import pytest
import torch
from factories import TINY, tiny_batch, tiny_config, tiny_model
from huggingface_hub.errors import StrictDataclassError

from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval, FeatureContract
from modeling_bmdetr.dual_encoder_bmdetr import FACETS
from modeling_bmdetr.encoders_bmdetr import build_video_encoder
from modeling_bmdetr.layers_bmdetr import endpoint_features, split_things
from modeling_bmdetr.released.conversion import to_released_state_dict
from modeling_bmdetr.training.standardization import standardize_inputs

WORDS = {"name": "hashed-words", "dim": 8}


@pytest.mark.parametrize("endpoints", [True, False])
def test_each_thing_has_its_values_and_the_place_of_its_clip(endpoints):
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    clips = torch.arange(36.0).view(1, 2, 3, 6)
    things = split_things(clips, mask, 2, endpoints)
    assert things.shape == (1, 2, 3, 2, 5 if endpoints else 3)
    for row in range(2):
        for clip in range(3):
            for thing in range(2):
                expected = clips[0, row, clip, 3 * thing : 3 * thing + 3]
                if endpoints:
                    expected = torch.cat((expected, endpoint_features(mask)[row, clip]))
                assert torch.equal(things[0, row, clip, thing], expected)


def test_all_things_are_projected_by_the_same_weights():
    model, batch = tiny_model(things_per_clip=2).model, tiny_batch(labels=False)
    clips, mask = batch["video_features"], batch["video_mask"]
    things = model.project_clips(clips[None], mask)
    assert things.shape == (1, 4, 9, 2, 16)
    for thing in range(2):
        row = torch.cat((clips[1, 4, 3 * thing : 3 * thing + 3], torch.tensor([4 / 6, 5 / 6])))
        torch.testing.assert_close(things[0, 1, 4, thing], model.video_projection(row))


@pytest.mark.parametrize("things", [2, 3])
def test_which_thing_comes_first_does_not_matter(things):
    model, batch = tiny_model(things_per_clip=things), tiny_batch(labels=False)
    assert model(**batch).clip_embeds.shape[2] == things
    moved = dict(batch, video_features=batch["video_features"].unflatten(-1, (things, -1)).flip(-2).flatten(-2))
    before, after = model(**batch), model(**moved)
    for name in ("pred_spans", "logits", "scores", "clip_logits", "presence_logits", "saliency_scores"):
        torch.testing.assert_close(after[name], before[name])


def test_one_thing_is_the_clip_as_a_whole():
    model, batch = tiny_model().model, tiny_batch(shifted=False, labels=False, negatives=0)
    mask = batch["video_mask"]
    clips = model.video_projection(torch.cat((batch["video_features"], endpoint_features(mask)), dim=-1))
    real = clips * mask[..., None]
    encoder = model.dual_encoder
    near = encoder.neighbours(real.transpose(1, 2)).transpose(1, 2)
    facets = encoder.facets(clips + near.clamp(min=0)).view(4, 9, FACETS, -1)
    expected = torch.nn.functional.normalize(facets, dim=-1)
    torch.testing.assert_close(model(**batch).clip_embeds[..., :-1], expected, rtol=0, atol=0)


def test_a_checkpoint_from_before_answers_as_it_did(tmp_path):
    spec = {"name": "moving-things", "dim": 6, "things": 2}
    model, batch = tiny_model(video_encoders=[spec]), tiny_batch(shifted=False, labels=False, negatives=0)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["things_per_clip"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    loaded = BMDetrForMomentRetrieval.from_pretrained(tmp_path).eval()
    assert loaded.config.things_per_clip == 1
    torch.testing.assert_close(loaded(**batch).pred_spans, model(**batch).pred_spans, rtol=0, atol=0)


def test_a_checkpoint_keeps_its_things(tmp_path):
    model, batch = tiny_model(things_per_clip=2), tiny_batch(shifted=False, labels=False, negatives=0)
    model.save_pretrained(tmp_path)
    loaded = BMDetrForMomentRetrieval.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(**batch).pred_spans, model(**batch).pred_spans, rtol=0, atol=0)


def test_each_row_by_itself_answers_as_in_its_batch():
    model, batch = tiny_model(things_per_clip=2), tiny_batch(shifted=False, labels=False, negatives=0)
    together = model(**batch)
    for row in range(4):
        clips, words = (int(batch[name][row].sum()) for name in ("video_mask", "text_mask"))
        cut = {name: batch[name][row : row + 1, : clips if "video" in name else words] for name in batch}
        alone = model(**cut)
        torch.testing.assert_close(alone.pred_spans[0], together.pred_spans[row], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(alone.clip_logits[0], together.clip_logits[row, :clips], atol=1e-5, rtol=1e-4)


def test_every_weight_learns_with_negatives_and_a_shifted_view():
    model = tiny_model(things_per_clip=2).train()
    model(**tiny_batch()).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_the_released_code_has_no_things():
    config = BMDetrConfig.released(**{**TINY, "things_per_clip": 2})
    with pytest.raises(ValueError, match="things_per_clip=2 \\(released: 1\\)"):
        to_released_state_dict(BMDetrForMomentRetrieval(config))


def test_each_thing_is_embedded_by_itself():
    model, batch = tiny_model(things_per_clip=2).model, tiny_batch(shifted=False, labels=False, negatives=0)
    with torch.no_grad():
        model.dual_encoder.neighbours.weight.zero_()  # what is near is of all things
        model.dual_encoder.neighbours.bias.zero_()
        before = model(**batch).clip_embeds
        batch["video_features"][..., 3:] += torch.randn(3)
        after = model(**batch).clip_embeds
    changed = (after - before).abs().amax(dim=(0, 1, 3)) > 1e-6
    assert changed.tolist() == [False, True]


def test_the_same_values_are_standardised_alike_whichever_thing_has_them():
    model, batch = tiny_model(things_per_clip=2, endpoint_features=False).model, tiny_batch(labels=False)
    standardize_inputs(model, [batch])
    rows = batch["video_features"][batch["video_mask"].bool()].view(-1, 3)
    given = model.video_projection.norms[0](rows)
    torch.testing.assert_close(given.mean(dim=0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(given.std(dim=0, unbiased=False), torch.ones(3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("things", [1, 2, 3])
def test_it_follows_from_the_encoder(things):
    encoder = build_video_encoder("moving-things", things=things)
    contract = FeatureContract(video_encoders=(encoder.spec(),), text_encoder=WORDS)
    config = BMDetrConfig.from_contract(contract)
    assert (config.things_per_clip, config.video_dim) == (things, encoder.dim)
    assert BMDetrConfig.from_contract(contract, things_per_clip=1).things_per_clip == 1
    assert BMDetrConfig.from_dict(config.to_dict()).things_per_clip == things


@pytest.mark.parametrize(
    "encoders",
    [
        (),
        ({"name": "a", "dim": 6},),
        ({"name": "a", "dim": 6, "things": 4},),
        ({"name": "a", "dim": 6, "things": 0},),
        ({"name": "a", "dim": 6, "things": "2"},),
        ({"name": "a", "dim": 6, "things": True},),
        ({"name": "a", "dim": 6, "things": 2}, {"name": "b", "dim": 6, "things": 2}),
    ],
)
def test_other_encoders_describe_the_clip_as_a_whole(encoders, caplog):
    assert FeatureContract(video_encoders=encoders).things_per_clip == 1
    wrong = len(encoders) == 1 and "things" in encoders[0]
    assert ("each clip is read as a whole" in caplog.text) == wrong


def test_a_configuration_without_it_describes_the_clip_as_a_whole():
    values = {name: value for name, value in tiny_config().to_dict().items() if name != "things_per_clip"}
    assert BMDetrConfig.from_dict(values).things_per_clip == 1
    assert BMDetrConfig.released().things_per_clip == 1


@pytest.mark.parametrize(
    ("things", "message"), [(4, "must divide `video_dim` \\(6\\)"), (6, "must be less than"), (0, "at least 1")]
)
def test_things_of_unequal_width_are_refused(things, message):
    with pytest.raises(StrictDataclassError, match=f"`things_per_clip`.*{message}"):
        tiny_config(things_per_clip=things)
