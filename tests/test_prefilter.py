"""Search that asks the model only about the videos with clips like the sentence."""

import numpy as np
import pytest
import torch
from app_world import make_checkpoint, make_pipeline, make_video
from tiny_pretrained import IMAGE_MODELS, TEXT_MODELS, write_model

from modeling_bmdetr.cli import main
from modeling_bmdetr.contract_bmdetr import FeatureContract
from modeling_bmdetr.dual_encoder_bmdetr import video_logits
from modeling_bmdetr.encoders_bmdetr import build_text_encoder
from modeling_bmdetr.index import VideoIndex
from modeling_bmdetr.prefilter import best_similarities, dual_encoder_logits, most_similar, shared_columns

QUERIES = ["the red ball slides", "a blue square grows and then it slides"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A checkpoint that reads a grid of pixels beside a CLIP, with its text tower, and an index of six films."""
    folder = tmp_path_factory.mktemp("prefilter")
    clip = write_model(folder / "clip", *IMAGE_MODELS["clip"])
    encoders = {"video_encoders": ("pixel-grid", f"clip:{clip}"), "text_encoder": f"hf:{clip}"}
    make_checkpoint(folder / "model", long_video="window", dual_encoder=False, **encoders)
    for number in range(6):
        make_video(folder / "films" / f"film {number}.mp4", 3.0 + number % 2, seed=number)
    index = VideoIndex(folder / "index", make_pipeline(folder / "model"))
    index.update(folder / "films", dtype="float32")
    return folder, index


def test_the_most_similar_videos_are_asked_and_give_the_moments_they_give_among_all(world):
    folder, index = world
    encoder = build_text_encoder(f"clip:{folder / 'clip'}")
    sentences = encoder.project(QUERIES)
    assert sentences.shape == (2, 12)
    columns = shared_columns(index.contract)
    assert columns == slice(index.contract.video_dim - 12, index.contract.video_dim)
    everything = index.search(QUERIES, top=100)
    for query, sentence, all_hits in zip(QUERIES, sentences, everything, strict=True):
        likeness = {}
        for name in index.videos:
            clips = index.video(name).features[:, columns]
            cosines = [clip @ sentence / np.linalg.norm(clip) / np.linalg.norm(sentence) for clip in clips]
            likeness[name] = max(cosines)
        kept = set(sorted(likeness, key=lambda name: -likeness[name])[:2])
        hits = index.search(query, top=100, prefilter=2)
        assert {hit.video for hit in hits} == kept
        wanted = [hit for hit in all_hits if hit.video in kept]
        assert [(hit.video, hit.start, hit.end) for hit in hits] == [(hit.video, hit.start, hit.end) for hit in wanted]
        torch.testing.assert_close([hit.score for hit in hits], [hit.score for hit in wanted], atol=1e-4, rtol=1e-4)
    several = index.search(QUERIES, top=100, prefilter=2)
    assert [len(hits) for hits in several] == [2, 2]
    all_of_them = index.search(QUERIES, top=100, prefilter=100)
    assert [[hit.video for hit in hits] for hits in all_of_them] == [[hit.video for hit in hits] for hits in everything]


@pytest.fixture(scope="module")
def dual(tmp_path_factory):
    """An index of six films, one of them longer than its model reads at once, of a model with a dual encoder."""
    folder = tmp_path_factory.mktemp("dual")
    make_checkpoint(folder / "model", long_video="window")
    for number in range(6):
        make_video(folder / "films" / f"film {number}.mp4", 17.0 if number == 3 else 3.0 + number, seed=number)
    index = VideoIndex(folder / "index", make_pipeline(folder / "model"))
    index.update(folder / "films", dtype="float32")
    return index


def test_the_dual_encoder_of_a_model_says_which_videos_are_similar(dual):
    """Its logits are those that the whole model has of each window."""
    logits = dual_encoder_logits(dual.pipe, map(dual.video, dual.videos), QUERIES)
    assert logits.shape == (2, 6)
    for row, name in zip(logits.T, dual.videos, strict=True):
        part = dual.pipe.preprocess({"video": dual.video(name), "queries": QUERIES})
        assert len(part["windows"]) == (2 if name == "film 3.mp4" else 1)
        wanted = []
        for window in part["windows"]:
            inputs = dual.pipe.processor(QUERIES, video_features=window)
            with torch.no_grad():
                outputs = dual.pipe.model(**inputs)
            wanted.append(video_logits(outputs["clip_logits"], inputs["video_mask"]).numpy())
        np.testing.assert_allclose(row, np.max(wanted, axis=0), atol=1e-4)


def test_the_videos_that_the_dual_encoder_finds_similar_are_asked(dual):
    everything = dual.search(QUERIES, top=100)
    logits = dual_encoder_logits(dual.pipe, map(dual.video, dual.videos), QUERIES)
    for row, hits, all_hits in zip(logits, dual.search(QUERIES, prefilter=2), everything, strict=True):
        kept = {dual.videos[i] for i in np.argsort(-row)[:2]}
        assert [hit.video for hit in hits] == [hit.video for hit in all_hits if hit.video in kept]
    assert dual.search(QUERIES, top=100, prefilter=6) == everything


def test_the_command_has_it(world, capsys):
    folder, index = world
    command = ["search", str(folder / "index"), QUERIES[0], "--model", str(folder / "model"), "--prefilter", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out.strip().splitlines()
    assert len(printed) == 1
    assert index.search(QUERIES[0], prefilter=1)[0].video in printed[0]


def test_encoders_that_share_no_space_are_refused(tmp_path, capsys):
    checkpoint = make_checkpoint(tmp_path / "model", long_video="window", dual_encoder=False)
    make_video(tmp_path / "films" / "film.mp4", 3.0)
    index = VideoIndex(tmp_path / "index", make_pipeline(checkpoint))
    index.update(tmp_path / "films")
    with pytest.raises(ValueError, match=r"received 'pixel-grid' and 'hashed-words', which share no space"):
        index.search(QUERIES, prefilter=3)
    with pytest.raises(ValueError, match="`prefilter` must be at least 1, received 0"):
        index.search(QUERIES, prefilter=0)
    command = ["search", str(tmp_path / "index"), QUERIES[0], "--model", str(checkpoint), "--prefilter", "3"]
    assert main(command) == 2
    assert "share no space: search without it" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "video",
    [
        {"name": "clip:other", "dim": 4},
        {"name": "hf:clip", "dim": 4, "revision": "1"},
        {"name": "hf:clip", "dim": 4, "pooling": "mean"},
        {"name": "clip:", "dim": 4},
    ],
)
def test_only_the_towers_of_the_same_weights_share_a_space(video):
    text = {"name": "clip:clip", "dim": 4}
    assert shared_columns(FeatureContract(video_encoders=({"name": "hf:clip", "dim": 4},), text_encoder=text))
    with pytest.raises(ValueError, match="share no space"):
        shared_columns(FeatureContract(video_encoders=(video,), text_encoder=text))


@pytest.mark.parametrize("kind", ["bert", "hashed-words"])
def test_encoders_that_are_no_towers_have_no_space_of_images(kind, tmp_path):
    name = kind if kind == "hashed-words" else f"hf:{write_model(tmp_path, TEXT_MODELS[kind])}"
    with pytest.raises(ValueError, match="has no space that sentences share with images"):
        build_text_encoder(name).project(QUERIES)


def test_likeness_is_that_of_the_best_clip():
    rows = [np.eye(3)[:2], np.array([[0.6, 0.8, 0.0], [0.0, 0.0, 5.0]])]
    likeness = best_similarities(rows, np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    np.testing.assert_allclose(likeness, [[1.0, 0.6], [0.0, 1.0]], atol=1e-6)
    assert most_similar(["a", "b"], likeness, 1) == [["a"], ["b"]]
    assert most_similar(["a", "b"], likeness, 9) == [["a", "b"], ["b", "a"]]
