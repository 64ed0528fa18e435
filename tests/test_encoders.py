"""Encoders: shapes, determinism, what the rows show, the registry, and tiny CLIP and SigLIP models made here."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from factories import write_pictures
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from modeling_bmdetr import encoders_bmdetr
from modeling_bmdetr.containers_bmdetr import Container
from modeling_bmdetr.contract_bmdetr import clip_times
from modeling_bmdetr.encoders_bmdetr import (
    WEIGHTLESS_VIDEO_ENCODERS,
    HashedWordTextEncoder,
    ImageEncoder,
    MovingThingsVideoEncoder,
    PixelGridVideoEncoder,
    TokenEncoder,
    build_text_encoder,
    build_video_encoder,
    encode_video,
    register_text_encoder,
    register_video_encoder,
)
from modeling_bmdetr.moving_things_bmdetr import THING_DIM
from modeling_bmdetr.video_bmdetr import iter_frames

needs_shared = pytest.mark.skipif("BMDETR_SHARED" not in os.environ, reason="BMDETR_SHARED is not set")
SENTENCES = ["A red circle slides.", "blue", "the green square grows and then it slides"]


def moving_square(num_frames: int, step: int, size: int = 48, colour: tuple = (250, 250, 250)) -> np.ndarray:
    """Frames of a square on grey that moves `step` pixels a frame to the right (to the left if negative)."""
    frames = np.full((num_frames, size, size, 3), 60, np.uint8)
    for index in range(num_frames):
        left = (step * index) % (size - 12)
        frames[index, 16:28, left : left + 12] = colour
    return frames


@pytest.fixture
def video_file(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "square.mp4", moving_square(36, 1, colour=(250, 220, 60)), 8, "libx264", crf="10")


def write_tokenizer(folder: Path) -> None:
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for letter in "abcdefghijklmnopqrstuvwxyz.":
        vocab[letter] = len(vocab)
        vocab[letter + "</w>"] = len(vocab)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder, model_max_length=40).save_pretrained(folder)


TEXT_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 60,
    "max_position_embeddings": 40,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
VISION_SIZES = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_clip")
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=TEXT_SIZES, vision_config=VISION_SIZES, projection_dim=12)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_siglip")
    torch.manual_seed(0)
    SiglipModel(SiglipConfig(text_config=TEXT_SIZES, vision_config=VISION_SIZES)).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(params=["pixel-grid", "moving-things", "clip", "siglip"])
def video_encoder(request: pytest.FixtureRequest):
    if request.param in WEIGHTLESS_VIDEO_ENCODERS:
        return build_video_encoder(request.param)
    return build_video_encoder(f"clip:{request.getfixturevalue(request.param + '_folder')}", batch_size=5)


@pytest.fixture(params=["hashed-words", "words:hashed-words", "clip", "siglip"])
def text_encoder(request: pytest.FixtureRequest):
    if request.param.endswith("hashed-words"):
        return build_text_encoder(request.param)
    return build_text_encoder(f"clip:{request.getfixturevalue(request.param + '_folder')}", batch_size=2)


# What holds for every video encoder


def test_video_rows(video_encoder, video_file: Path) -> None:
    calls: list[tuple[int, int]] = []
    encoded = video_encoder.encode_video(video_file, 1.0, progress=lambda done, total: calls.append((done, total)))
    assert encoded.duration_s == pytest.approx(4.5)
    rows = encoded.features
    assert rows.shape == (5, video_encoder.dim)  # 4.5 s: four clips and a half
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert calls[-1] == (5, 5)
    np.testing.assert_array_equal(rows, video_encoder.encode_video(str(video_file), 1.0).features)
    assert video_encoder.encode_video(video_file, 2.0).features.shape == (3, video_encoder.dim)
    assert video_encoder.encode_video(video_file, 60.0).features.shape == (1, video_encoder.dim)


def test_file_and_its_decoded_frames_agree(video_encoder, video_file: Path) -> None:
    frames = np.stack([frame for _, frame in iter_frames(video_file, np.arange(0.0, 4.5, 0.125))])
    from_file = video_encoder.encode_video(video_file, 1.0).features
    from_frames = video_encoder.encode_video(frames, 1.0, fps=8.0).features
    assert from_file.shape == from_frames.shape
    # The file is resized by libswscale while decoding, the array by the encoder.
    cosine = torch.cosine_similarity(torch.from_numpy(from_file), torch.from_numpy(from_frames), dim=-1)
    assert (cosine > 0.99).all()


def test_several_encoders_share_one_opening_and_one_pass(video_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, decoded = [], []
    original_open, original_demux = av.open, Container.demux
    monkeypatch.setattr(av, "open", lambda *args, **options: opened.append(args) or original_open(*args, **options))

    def demux(container):
        for packet in original_demux(container):
            decoded.append(packet.pts)
            yield packet

    encoders = [PixelGridVideoEncoder(grid=8), PixelGridVideoEncoder(grid=12, frames_per_clip=3)]
    parts = [encoder.encode_video(video_file, 1.0).features for encoder in encoders]
    assert len(opened) == 2
    monkeypatch.setattr(Container, "demux", demux)
    encoders[0].encode_video(video_file, 1.0)
    for_one = len(decoded)
    opened.clear()
    decoded.clear()
    together = encode_video(video_file, encoders, 1.0)
    assert len(opened) == 1
    assert len(decoded) == for_one
    np.testing.assert_array_equal(together.features, np.concatenate(parts, axis=1))
    assert together.duration_s == pytest.approx(4.5)


def test_an_encoder_with_an_encode_video_of_its_own_is_asked(video_file: Path) -> None:
    class Whole(PixelGridVideoEncoder):
        def encode_video(self, video, clip_length_s, **options):
            encoded = super().encode_video(video, clip_length_s, **options)
            return replace(encoded, features=encoded.features[:-1] + 1)

    plain, whole = PixelGridVideoEncoder(grid=8), Whole(grid=8)
    rows = encode_video(video_file, [plain, whole], 1.0).features
    assert rows.shape == (4, 2 * plain.dim)
    np.testing.assert_array_equal(rows[:, plain.dim :], rows[:, : plain.dim] + 1)


def test_batches_do_not_change_video_rows(video_encoder, video_file: Path) -> None:
    together = video_encoder.encode_video(video_file, 0.5).features
    video_encoder.clips_per_batch = 1
    np.testing.assert_allclose(video_encoder.encode_video(video_file, 0.5).features, together, atol=1e-5)


def test_video_spec_builds_the_same_encoder(video_encoder, video_file: Path) -> None:
    spec = json.loads(json.dumps(video_encoder.spec()))
    assert spec["name"] == video_encoder.name
    assert spec["dim"] == video_encoder.dim
    again = build_video_encoder(spec)
    np.testing.assert_allclose(
        again.encode_video(video_file, 1.0).features, video_encoder.encode_video(video_file, 1.0).features, atol=1e-5
    )
    with pytest.raises(ValueError, match=f"must be 7 wide, received {video_encoder.dim}"):
        build_video_encoder({**spec, "dim": 7})


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        (np.zeros((4, 8, 8), np.uint8), 1.0, r"\(frames, height, width, 3\)"),
        (np.zeros((4, 3, 8, 8), np.uint8), 1.0, "channels last"),
        (np.zeros((4, 8, 8, 3), np.float32), 1.0, "uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), 1.0, "at least one frame"),
        (np.zeros((4, 8, 8, 3), np.uint8), None, "fps must be the frame rate"),
        (np.zeros((4, 8, 8, 3), np.uint8), 0.0, "fps must be the frame rate"),
        (np.zeros((4, 8, 8, 3), np.uint8), 10**400, "fps must be the frame rate"),
        (np.zeros((4, 8, 8, 3), np.uint8), True, "fps must be the frame rate"),
        (np.zeros((4, 8, 8, 3), np.uint8), "25", "fps must be the frame rate"),
    ],
)
def test_bad_frames_are_refused(frames: np.ndarray, fps: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelGridVideoEncoder().encode_video(frames, 1.0, fps=fps)


def test_bad_files_and_lengths_are_refused(video_file: Path, tmp_path: Path) -> None:
    encoder = PixelGridVideoEncoder()
    with pytest.raises(ValueError, match="fps belongs to decoded frames"):
        encoder.encode_video(video_file, 1.0, fps=8.0)
    with pytest.raises(ValueError, match="clip_length_s"):
        encoder.encode_video(video_file, 0.0)
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        encoder.encode_video(tmp_path / "gone.mp4", 1.0)


# What holds for every text encoder


def test_text_rows(text_encoder) -> None:
    rows = text_encoder.encode_text(SENTENCES)
    assert [row.shape[1] for row in rows] == [text_encoder.dim] * 3
    assert all(row.dtype == np.float32 and np.isfinite(row).all() for row in rows)
    assert len(rows[1]) < len(rows[0]) < len(rows[2])
    cut = text_encoder.encode_text(SENTENCES, max_tokens=3)
    assert [len(row) for row in cut] == [3, min(3, len(rows[1])), 3]
    for short, long in zip(cut, rows, strict=True):
        np.testing.assert_array_equal(short, long[: len(short)])
    assert text_encoder.encode_text([]) == []


def test_batches_do_not_change_text_rows(text_encoder) -> None:
    for together, sentence in zip(text_encoder.encode_text(SENTENCES), SENTENCES, strict=True):
        np.testing.assert_allclose(text_encoder.encode_text([sentence])[0], together, atol=1e-5)


def test_a_long_sentence_is_cut(text_encoder) -> None:
    assert len(text_encoder.encode_text(["red " * 200])[0]) == 32


def test_text_spec_builds_the_same_encoder(text_encoder) -> None:
    again = build_text_encoder(json.loads(json.dumps(text_encoder.spec())))
    for a, b in zip(again.encode_text(SENTENCES), text_encoder.encode_text(SENTENCES), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("blank", ["", "   ", "\n\t"])
def test_empty_sentences_are_refused(text_encoder, blank: str) -> None:
    with pytest.raises(ValueError, match=r"sentences\[1\] is empty"):
        text_encoder.encode_text(["red", blank])


def test_other_bad_sentences_are_refused(text_encoder) -> None:
    with pytest.raises(TypeError, match="list of strings"):
        text_encoder.encode_text("red")
    with pytest.raises(TypeError, match=r"sentences\[0\] must be a string, received int"):
        text_encoder.encode_text([3])
    with pytest.raises(ValueError, match="max_tokens"):
        text_encoder.encode_text(["red"], max_tokens=0)


# The weightless pair


PLANES, MOMENTS = 7, 6
RIGHT = 17  # the column of a thing that says how far it slides to the right


def test_moving_things_are_described_and_what_stands_still_is_not() -> None:
    """A red square slides, a red disc stands still: the row tells the direction, and is that of the square alone."""
    frames = np.full((16, 64, 64, 3), 20, np.uint8)
    for index, picture in enumerate(frames):
        picture[40:52, 4 + 2 * index : 16 + 2 * index, 0] = 230
    alone = frames.copy()
    frames[:, 8:20, 44:56, 0] = 230
    encoder = MovingThingsVideoEncoder(things=1)
    there, back, without = (
        encoder.encode_video(video, 1.0, fps=8.0).features for video in (frames, frames[::-1].copy(), alone)
    )
    assert encoder.dim == there.shape[1] == THING_DIM
    assert (there[:, RIGHT] > 0.1).all()
    assert (back[:, RIGHT] < -0.1).all()
    np.testing.assert_allclose(there, without, atol=1e-5)


def test_rows_of_clips_in_which_nothing_moves_have_a_direction() -> None:
    rows = MovingThingsVideoEncoder().encode_video(np.full((16, 48, 48, 3), 90, np.uint8), 1.0, fps=8.0).features
    assert np.abs(rows).max() < 1e-9
    assert (rows[0] @ rows[1]) / np.linalg.norm(rows[0]) / np.linalg.norm(rows[1]) == pytest.approx(1)


def test_as_many_things_are_described_as_asked_for() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (8, 48, 48, 3), np.uint8)
    first = MovingThingsVideoEncoder().encode_video(frames, 1.0, fps=8.0).features
    more = MovingThingsVideoEncoder(things=3).encode_video(frames, 1.0, fps=8.0).features
    assert more.shape == (1, 3 * THING_DIM)
    np.testing.assert_allclose(more[:, : 2 * THING_DIM], first, atol=1e-6)
    with pytest.raises(ValueError, match="things must be from 1 to 16, received 0"):
        MovingThingsVideoEncoder(things=0)


def parts_of(row: np.ndarray, encoder: PixelGridVideoEncoder) -> dict[str, np.ndarray]:
    """The parts of a row by name; planes first, then what is measured on them."""
    edges = (PLANES, 5)
    shapes = {
        "raster": (3, encoder.raster, encoder.raster),
        "moments": (PLANES, MOMENTS),
        "displacement": (PLANES, MOMENTS),
        "steps": (PLANES, MOMENTS),
        "unsteadiness": (PLANES, MOMENTS),
        "change": (PLANES,),
        "edges": edges,
        "edge_steps": edges,
        "moving_edges": edges,
    }
    ends = np.cumsum([np.prod(shape) for shape in shapes.values()])
    assert ends[-1] == encoder.dim == len(row)
    return {
        name: part.reshape(shape)
        for (name, shape), part in zip(shapes.items(), np.split(row, ends[:-1].astype(int)), strict=True)
    }


def encoded(frames: np.ndarray) -> dict[str, np.ndarray]:
    encoder = PixelGridVideoEncoder()
    return parts_of(encoder.encode_video(frames, 1.0, fps=4.0).features[0], encoder)


def test_pixel_grid_of_a_still_clip_holds_no_change() -> None:
    still = encoded(moving_square(4, 0))
    for name in ("displacement", "steps", "unsteadiness", "change", "edge_steps", "moving_edges"):
        np.testing.assert_allclose(still[name], 0.0, atol=1e-6)
    for name in ("raster", "moments", "edges"):
        assert np.abs(still[name]).max() > 0.1


def test_pixel_grid_tells_directions_apart() -> None:
    right, left = encoded(moving_square(4, 6)), encoded(moving_square(4, 6)[::-1].copy())
    brightness, x, y = 6, 1, 2
    assert right["displacement"][brightness, x] > 0.5
    np.testing.assert_allclose(right["displacement"], -left["displacement"], atol=1e-3)
    np.testing.assert_allclose(right["displacement"][brightness, y], 0.0, atol=1e-2)
    for name in ("raster", "moments", "steps", "change"):
        np.testing.assert_allclose(right[name], left[name], atol=1e-3)


def test_pixel_grid_sees_a_blink_that_ends_as_it_began() -> None:
    frames = moving_square(4, 0)
    frames[1:3] = 60
    blink = encoded(frames)
    brightness, mass = 6, 0
    np.testing.assert_allclose(blink["displacement"], 0.0, atol=1e-3)
    assert blink["steps"][brightness, mass] > 0.5
    assert blink["unsteadiness"][brightness, mass] > 0.5  # it goes and comes back
    assert blink["change"][brightness] > 0.3


def test_pixel_grid_tells_the_colours_apart() -> None:
    hues = {"red": (250, 0, 0), "yellow": (250, 250, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}
    strongest = {}
    for name, colour in hues.items():
        frames = np.zeros((4, 48, 48, 3), np.uint8)
        frames[:, 10:30, 10:30] = colour
        strongest[name] = int(encoded(frames)["moments"][:, 0].argmax())
    assert strongest == {"red": 0, "yellow": 1, "green": 2, "blue": 4}


def test_pixel_grid_is_the_same_at_any_resolution() -> None:
    frames = moving_square(4, 6)
    finer = frames.repeat(4, axis=1).repeat(4, axis=2)
    for small, large in zip(encoded(frames).values(), encoded(finer).values(), strict=True):
        np.testing.assert_allclose(small, large, atol=2e-3)


@pytest.mark.parametrize(("option", "value"), [("grid", 7), ("frames_per_clip", 2), ("raster", 0)])
def test_pixel_grid_refuses_bad_options(option: str, value: int) -> None:
    with pytest.raises(ValueError, match=option):
        PixelGridVideoEncoder(**{option: value})


def test_hashed_words_share_what_the_words_share() -> None:
    encoder = HashedWordTextEncoder()
    slides, sliding, square, again = encoder.encode_text(["slides sliding square SLIDES"])[0]
    np.testing.assert_array_equal(slides, again)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    assert cosine(slides, sliding) > cosine(slides, square) + 0.1
    assert cosine(slides, sliding) < 0.9
    assert len(encoder.encode_text(["It's a well-known, red ball!"])[0]) == 7
    with pytest.raises(ValueError, match=r"sentences\[0\] holds no word"):
        encoder.encode_text(["?!"])
    with pytest.raises(ValueError, match="even number"):
        HashedWordTextEncoder(dim=33)


def test_a_word_without_end_takes_no_time() -> None:
    rng = np.random.default_rng(0)
    word = "".join(rng.choice(list("abcdefghijklmnop"), 200_000))
    started = time.perf_counter()
    (row,) = HashedWordTextEncoder(16).encode_text([f"the {word}"])
    assert time.perf_counter() - started < 1.0
    (other,) = HashedWordTextEncoder(16).encode_text([f"the {word}b"])
    assert (row[1] != other[1]).any()


def test_sentences_that_are_cut_are_named(text_encoder, caplog: pytest.LogCaptureFixture) -> None:
    short, long = text_encoder.encode_text(["a", "a b c d e f g h"], max_tokens=4)
    assert len(long) == 4
    assert len(short) <= 4
    assert "1 of 2 sentences have more than 4 tokens" in caplog.text
    assert "a b c d e f g h" in caplog.text
    caplog.clear()
    text_encoder.encode_text(["a"], max_tokens=4)
    assert not caplog.text


@pytest.mark.parametrize("build", [build_video_encoder, build_text_encoder])
def test_a_device_is_for_encoders_with_weights(build) -> None:
    assert build({build_video_encoder: "pixel-grid", build_text_encoder: "hashed-words"}[build], device="cpu").dim


def test_an_encoder_folder_that_moved_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=rf"encoder's model '{tmp_path}/gone': .*if the folder has moved"):
        build_text_encoder(f"clip:{tmp_path}/gone")


def test_words_by_themselves_are_the_same_in_every_sentence(siglip_folder: Path) -> None:
    encoder = build_text_encoder(f"words:clip:{siglip_folder}", batch_size=2)
    (one, red, ball), (ball_there, two, red_there) = encoder.encode_text(["A red ball.", "Ball two RED!"])
    np.testing.assert_array_equal(red, red_there)
    np.testing.assert_array_equal(ball, ball_there)
    assert not np.allclose(one, two)
    np.testing.assert_allclose(np.linalg.norm([one, two, red, ball], axis=1), 1.0, atol=1e-5)
    alone = encoder.encoder.encode_text(["red"])[0].mean(axis=0)
    np.testing.assert_allclose(red, alone / np.linalg.norm(alone), atol=1e-5)
    assert build_text_encoder(encoder.spec()).spec() == encoder.spec()


def test_words_by_themselves_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="unknown text encoder 'no-such'"):
        build_text_encoder("words:no-such")
    with pytest.raises(ValueError, match=r"sentences\[1\] holds no word, received '\?!'"):
        build_text_encoder("words:hashed-words").encode_text(["A ball.", "?!"])


def test_hashed_words_are_the_same_everywhere() -> None:
    """Rows written down once: they depend on no process, platform or version, as stored features must not."""
    red = HashedWordTextEncoder(16).encode_text(["Red"])[0][0]
    word = np.array([-1, -1, 1, 1, -1, -1, -1, -1]) / 8**0.5
    trigrams = np.array([1, -1, 1, 1, -3, 1, -1, -1]) / 3 / 8**0.5  # of ^red$: ^re, red, ed$
    np.testing.assert_allclose(red, np.concatenate([word, trigrams]), atol=1e-6)


# CLIP-like models


def test_clip_rows_are_the_models_own_features(clip_folder: Path, video_file: Path) -> None:
    encoder = ImageEncoder(str(clip_folder), frames_per_clip=2)
    assert encoder.dim == 12
    frames = [frame for _, frame in iter_frames(video_file, clip_times(4.5, 1.0, 2).ravel())]
    model = CLIPModel.from_pretrained(clip_folder).eval()
    pixels = encoder.image_processor(frames, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    with torch.no_grad():
        features = model.visual_projection(model.vision_model(pixels).pooler_output)
    expected = features.reshape(5, 2, 12).mean(1)
    cosine = torch.cosine_similarity(torch.from_numpy(encoder.encode_video(video_file, 1.0).features), expected, dim=-1)
    assert (cosine > 0.999).all()


def test_clip_text_rows_run_from_start_to_end_of_text(clip_folder: Path) -> None:
    encoder = TokenEncoder(str(clip_folder))
    assert encoder.dim == 16
    rows = encoder.encode_text(["red ball", "a"])
    assert [len(row) for row in rows] == [9, 3]  # letters, and the two ends
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(["red ball"], return_tensors="pt")
    with torch.no_grad():
        expected = model.text_model(**tokens).last_hidden_state[0]
    np.testing.assert_allclose(rows[0], expected.numpy(), atol=1e-5)


def test_padded_clip_rows_are_those_of_the_whole_input(clip_folder: Path) -> None:
    """Every position, padded with token 0 and unmasked, as in published features of sentences."""
    encoder = TokenEncoder(str(clip_folder), batch_size=1)
    rows = encoder.encode_text(["red ball", "a"], max_tokens=40, padding=True)
    assert [row.shape for row in rows] == [(40, 16), (40, 16)]
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokens = torch.zeros(1, 40, dtype=torch.long)
    tokens[0, :9] = CLIPTokenizer.from_pretrained(clip_folder)(["red ball"], return_tensors="pt")["input_ids"][0]
    with torch.no_grad():
        expected = model.text_model(input_ids=tokens).last_hidden_state[0]
    np.testing.assert_allclose(rows[0], expected.numpy(), atol=1e-5)
    # Attention is causal, so that padding changes nothing before it.
    np.testing.assert_allclose(rows[0][:9], encoder.encode_text(["red ball"])[0], atol=1e-5)
    assert len(encoder.encode_text(["red ball"], max_tokens=32, padding=True)[0]) == 32


def test_only_towers_have_rows_of_padding() -> None:
    with pytest.raises(ValueError, match=r"'hashed-words' has no rows of padding, which text_rows='all' asks for"):
        HashedWordTextEncoder().encode_text(["a"], padding=True)


@pytest.mark.parametrize(
    ("duration_s", "clip_length_s", "clips"),
    [(23023 / 750, 2, 15), (23023 / 750, 1, 31), (150.0, 2, 75), (31.0, 2, 16), (0.3, 1, 1), (30.49, 1, 30)],
)
def test_published_clip_rows_are_the_middles_of_rounded_clips(clip_folder, duration_s, clip_length_s, clips) -> None:
    encoder = build_video_encoder(f"clip:{clip_folder}", frames_per_clip=1, clips="nearest")
    times_s = encoder.clip_times(duration_s, clip_length_s, 30.0)
    expected = np.minimum((np.arange(clips) + 0.5) * clip_length_s, duration_s)
    np.testing.assert_allclose(times_s, expected[:, None])
    assert encoder.spec() == {"name": encoder.name, "dim": 12, "frames_per_clip": 1, "clips": "nearest"}


def test_other_rules_for_clips_are_refused(clip_folder) -> None:
    with pytest.raises(ValueError, match="clips must be 'started' or 'nearest', received 'all'"):
        build_video_encoder(f"clip:{clip_folder}", clips="all")


def test_siglip_sentences_are_padded_as_in_training(siglip_folder: Path) -> None:
    encoder = TokenEncoder(str(siglip_folder))
    rows = encoder.encode_text(["red ball"])[0]
    assert rows.shape == (9, 16)
    tokenizer = CLIPTokenizer.from_pretrained(siglip_folder)
    model = SiglipModel.from_pretrained(siglip_folder).eval()
    padded = tokenizer(["red ball"], padding="max_length", max_length=40, return_tensors="pt")
    with torch.no_grad():
        expected = model.text_model(**padded).last_hidden_state[0, :9]
    np.testing.assert_allclose(rows, expected.numpy(), atol=1e-5)


def test_clip_in_bfloat16_gives_float32_rows(clip_folder: Path, video_file: Path) -> None:
    name = f"clip:{clip_folder}"
    video = build_video_encoder(name, dtype=torch.bfloat16)
    assert video.model.dtype == torch.bfloat16
    exact = build_video_encoder(name).encode_video(video_file, 1.0).features
    rows = video.encode_video(video_file, 1.0).features
    assert rows.dtype == np.float32
    assert (torch.cosine_similarity(torch.from_numpy(rows), torch.from_numpy(exact), dim=-1) > 0.98).all()
    assert build_text_encoder(name, dtype="bfloat16").encode_text(["red"])[0].dtype == np.float32


def test_a_model_without_image_features_is_refused(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must see images, received .*\(bert\), which reads text only"):
        build_video_encoder(f"clip:{tmp_path}")


@pytest.mark.parametrize("options", [{"frames_per_clip": 0}, {"batch_size": 0}])
def test_clip_refuses_bad_options(clip_folder: Path, options: dict) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        ImageEncoder(str(clip_folder), **options)


# The registry


@pytest.mark.parametrize("build", [build_video_encoder, build_text_encoder])
def test_unknown_encoders_are_named_with_the_known_ones(build) -> None:
    for name in ("slow", "clip", "clip:", "slow:r50"):
        with pytest.raises(ValueError, match=r"unknown (video|text) encoder .*clip:NAME_OR_PATH.*--import"):
            build(name)
    with pytest.raises(ValueError, match="unknown"):
        build({"dim": 3})


def test_an_encoder_that_has_moved_is_called_that() -> None:
    spec = {"name": "clip:/home/somebody/clip", "dim": 12, "frames_per_clip": 2}
    with pytest.raises(OSError, match=r"the video encoder 'clip:/home/somebody/clip' cannot be built.*has moved"):
        build_video_encoder(spec)


def test_where_nothing_can_be_downloaded_the_encoders_that_need_no_download_are_named(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match=r"'clip:nobody/clip' cannot be built.*`pixel-grid` for videos and `hash"):
        build_video_encoder("clip:nobody/clip")


def test_a_device_does_not_stop_encoders_without_weights() -> None:
    assert build_text_encoder("hashed-words", device="cpu").dim == build_text_encoder("hashed-words").dim
    assert build_video_encoder("pixel-grid", device="cpu").dim == build_video_encoder("pixel-grid").dim


def test_unknown_options_are_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'pixel-grid'.*'colour'.*its options are grid, frames_per_clip"):
        build_video_encoder("pixel-grid", colour=True)


@pytest.mark.parametrize(
    ("modality", "options"),
    [
        *(("video", {"grid": value}) for value in ("48", 48.5, True, None, 10**6, [48])),
        *(("video", {"frames_per_clip": value}) for value in ("4", 10**9, float("nan"))),
        *(("video", {"raster": value}) for value in (49, {})),
        *(("text", {"dim": value}) for value in ("256", True, 256.0)),
    ],
)
def test_options_of_a_strange_contract_are_refused_by_name(modality: str, options: dict) -> None:
    """They come from the configuration of a checkpoint, which anybody may have written."""
    build, name = (build_video_encoder, "pixel-grid") if modality == "video" else (build_text_encoder, "hashed-words")
    with pytest.raises(ValueError, match=next(iter(options))):
        build({"name": name, **options})


def test_registered_encoders_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders_bmdetr, "_VIDEO_ENCODERS", dict(encoders_bmdetr._VIDEO_ENCODERS))
    monkeypatch.setattr(encoders_bmdetr, "_TEXT_ENCODERS", dict(encoders_bmdetr._TEXT_ENCODERS))
    register_video_encoder("tiny-grid", lambda: PixelGridVideoEncoder(grid=12))
    register_text_encoder("hashed:", lambda dim: HashedWordTextEncoder(int(dim)))
    assert build_video_encoder("tiny-grid").spec()["grid"] == 12
    assert build_text_encoder("hashed:64").dim == 64


@needs_shared
def test_real_video_keeps_still_rows_near_each_other() -> None:
    path = Path(os.environ["BMDETR_SHARED"]) / "videos" / "charades_example.mp4"
    rows = PixelGridVideoEncoder().encode_video(path, 1.0).features
    assert rows.shape == (31, PixelGridVideoEncoder().dim)
    near = np.linalg.norm(np.diff(rows, axis=0), axis=1).mean()
    far = np.linalg.norm(rows[:10] - rows[-10:], axis=1).mean()
    assert near < far
