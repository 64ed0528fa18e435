"""Answers from an exported model with NumPy and ONNX Runtime alone: neither torch nor transformers, nor this package.

    bmdetr export outputs/quickstart/model --out exported
    python examples/onnx_answer.py exported film.mp4 "the red star slides to the left"
    python examples/onnx_answer.py exported features.npz "..." --text-features tokens.npz

A video file needs PyAV and a model of the weightless encoders, which are exported with it. For other encoders give
features: `.npy` or `.npz` files of raw rows, one per clip and one per token. Longer videos than the model reads at once
are cut; the package searches them by windows. Settings of the processor, such as `nms_threshold`, are not exported.
"""

import argparse
import hashlib
import itertools
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

SHORTEST_LAST_CLIP = 0.1  # shares of a clip below this are no clip of their own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exported", type=Path, help="folder that `bmdetr export` wrote")
    parser.add_argument("video", help="a video file, or its features (.npy, .npz)")
    parser.add_argument("sentence")
    parser.add_argument("--text-features", help="features of the sentence (.npy, .npz), for encoders with weights")
    parser.add_argument("--int8", action="store_true", help="the file with 8-bit matrices")
    parser.add_argument("--top", type=int, default=3)
    args = parser.parse_args()
    try:
        print(json.dumps(answer(**vars(args)), indent=2))
    except (ValueError, OSError) as error:
        sys.exit(f"onnx_answer: {error}")


def answer(
    exported: Path, video: str, sentence: str, text_features: str | None = None, int8: bool = False, top: int = 3
) -> dict[str, Any]:
    """The best moments, and presence where the model tells it."""
    about = json.loads((exported / "export.json").read_text())
    contract = about["feature_contract"]
    if Path(video).suffix in (".npy", ".npz"):
        rows = load(video)
        duration_s = len(rows) * contract["clip_length"]
    else:
        rows, duration_s = encode_video(exported, about, video)
    tokens = load(text_features) if text_features else hashed_words(sentence, contract["text_encoder"])
    if len(rows) > contract["max_clips"]:
        if contract["long_video"] == "resample":
            most = contract["max_clips"]
            raise ValueError(f"the video has {len(rows)} clips; more than {most} are resampled by the package only")
        print(f"only the first {contract['max_clips']} of {len(rows)} clips are searched", file=sys.stderr)
    rows = rows[: contract["max_clips"]].astype(np.float32)
    tokens = tokens[: contract["max_tokens"]].astype(np.float32)
    if contract["normalize_video"]:
        edges = np.cumsum([0, *(encoder["dim"] for encoder in contract["video_encoders"])])
        parts = [rows[:, a:b] for a, b in itertools.pairwise(edges)] or [rows]
        rows = np.concatenate([normalized(part) for part in parts], axis=1)
    if contract["normalize_text"]:
        tokens = normalized(tokens)

    session = onnxruntime.InferenceSession(str(exported / Path(about["int8_file" if int8 else "file"]).name))
    inputs = (rows[None], np.ones((1, len(rows)), np.float32), tokens[None], np.ones((1, len(tokens)), np.float32))
    values = session.run(about["outputs"], dict(zip(about["inputs"], inputs, strict=True)))
    outputs = {name: value[0] for name, value in zip(about["outputs"], values, strict=True)}
    scores = outputs.get("scores")
    if scores is None:  # class 0 of the softmax
        scores = 1 / (1 + np.exp(outputs["logits"][:, 1] - outputs["logits"][:, 0]))
    centres, widths = outputs["pred_spans"].T * (len(rows) * contract["clip_length"])
    starts, ends = (np.clip(times, 0, duration_s) for times in (centres - widths / 2, centres + widths / 2))
    best = np.argsort(-scores, kind="stable")[:top]
    moments = [{"start": float(starts[i]), "end": float(ends[i]), "score": float(scores[i])} for i in best]
    presence = {"presence": float(outputs["presence"])} if "presence" in outputs else {}
    return {"query": sentence, "moments": moments, **presence, "duration": duration_s}


def load(name: str) -> np.ndarray:
    """Rows of a `.npy` file, or the only array of a `.npz` file."""
    loaded = np.load(name)
    return loaded if isinstance(loaded, np.ndarray) else loaded[loaded.files[0]]


def normalized(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-5)


def encode_video(exported: Path, about: dict[str, Any], video: str) -> tuple[np.ndarray, float]:
    """Rows of a video file by the exported encoder, and the seconds it lasts."""
    import av

    encoder, clip_s = about.get("video_encoder"), about["feature_contract"]["clip_length"]
    if encoder is None:
        raise ValueError("the encoders of this model were not exported: give features in place of the video")
    with av.open(video) as container:
        stream = container.streams.video[0]
        first, length_s = None, 1 / float(stream.average_rate or 25)
        end_s, starts_s, pictures = 0.0, [], []
        width, height = encoder["frame_size"]
        for frame in container.decode(stream):
            first = frame.time if first is None else first
            starts_s.append(frame.time - first)
            end_s = starts_s[-1] + length_s
            picture = np.rot90(frame.reformat(format="rgb24").to_ndarray(), round(frame.rotation / 90) % 4)
            pictures.append(area_resized(picture, width, height))  # colours first, then the size, as in training
    clips = max(1, math.ceil(round(end_s / clip_s - SHORTEST_LAST_CLIP, 4)))
    clip_starts_s = np.arange(clips) * clip_s
    lengths_s = np.minimum(clip_s, end_s - clip_starts_s)
    parts = (np.arange(encoder["frames_per_clip"]) + 0.5) / encoder["frames_per_clip"]
    times_s = (clip_starts_s[:, None] + lengths_s[:, None] * parts).ravel()
    shown = np.searchsorted(starts_s, times_s + 1e-6, side="right") - 1  # the last that starts at or before
    frames = np.stack([pictures[max(i, 0)] for i in shown])
    session = onnxruntime.InferenceSession(str(exported / Path(encoder["file"]).name))
    return session.run(["rows"], {"frames": frames})[0], end_s


def area_resized(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """A smaller picture whose pixels are the means of the pixels that they touch."""
    rows, columns = (
        np.array([np.mean(np.eye(n, dtype=np.float32)[i * n // m : -(-(i + 1) * n // m)], axis=0) for i in range(m)])
        for n, m in ((picture.shape[0], height), (picture.shape[1], width))
    )
    means = rows @ picture.transpose(2, 0, 1).astype(np.float32) @ columns.T
    return means.round().transpose(1, 2, 0).astype(np.uint8)


def hashed_words(sentence: str, encoder: dict[str, Any]) -> np.ndarray:
    """A row per word, drawn from hashes of the word and of its letter trigrams."""
    if encoder["name"] != "hashed-words":
        raise ValueError(f"the encoder {encoder['name']} is not in this file: give --text-features")
    half = encoder["dim"] // 2
    rows = []
    for word in re.findall(r"\w+", sentence.lower()):
        padded = f"^{word}$"
        trigrams = [padded[i : i + 3] for i in range(max(1, len(padded) - 2))]
        spelling = np.mean([direction("trigram " + trigram, half) for trigram in trigrams], axis=0)
        rows.append(np.concatenate([direction("word " + word, half), spelling]))
    if not rows:
        raise ValueError(f"the sentence holds no word: {sentence!r}")
    return np.stack(rows).astype(np.float32)


def direction(key: str, dim: int) -> np.ndarray:
    """A vector of length one that depends on `key` alone."""
    bits = hashlib.shake_128(key.encode()).digest(math.ceil(dim / 8))
    return (np.unpackbits(np.frombuffer(bits, np.uint8))[:dim] * 2.0 - 1.0) / math.sqrt(dim)


if __name__ == "__main__":
    main()
