"""What an encoder sees in real videos: are clips that follow each other nearer than clips of another scene?

    python examples/compare_clips.py kitchen.mp4 dance.mp4 --import examples.efficientnet_encoder \\
        --video-encoder efficientnet-lite0

Prints the mean cosine of clips next to each other, of clips ten seconds or more apart in one video, and of clips of
different videos, and how often the clip nearest to a clip is its neighbour, after taking the mean row away.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np

from modeling_bmdetr.encoders_bmdetr import build_video_encoder
from modeling_bmdetr.plugins_bmdetr import import_plugins

FAR_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", type=Path, nargs="+", help="video files of different scenes")
    parser.add_argument("--video-encoder", default="pixel-grid", help="name of the encoder (pixel-grid)")
    parser.add_argument("--import", dest="imports", nargs="+", default=[], metavar="MODULE", help="plug-ins")
    parser.add_argument("--clip-length", type=float, default=1.0, help="seconds per clip (1)")
    args = parser.parse_args()
    import_plugins(args.imports)
    encoder = build_video_encoder(args.video_encoder)
    encoded = [encoder.encode_video(video, args.clip_length).features for video in args.videos]
    print(json.dumps(compare(encoded, args.clip_length), indent=2))


def compare(videos: list[np.ndarray], clip_length_s: float) -> dict[str, float]:
    """Mean cosines between rows of one and of different videos; the share of clips whose nearest is a neighbour."""
    mean = np.concatenate(videos).mean(axis=0)
    rows = [(video - mean) / np.linalg.norm(video - mean, axis=1, keepdims=True) for video in videos]
    near = [row @ after for video in rows for row, after in itertools.pairwise(video)]
    far = [video[i] @ video[j] for video in rows for i, j in _pairs(len(video), FAR_S / clip_length_s)]
    across = [(one @ other.T).ravel() for one, other in itertools.combinations(rows, 2)]
    every = np.concatenate(rows)
    places = np.concatenate([np.arange(len(video)) + 10_000 * number for number, video in enumerate(rows)])
    cosines = every @ every.T - 2 * np.eye(len(every))
    found = np.abs(places - places[cosines.argmax(axis=1)]) == 1
    return {
        "clips": len(every),
        "cosine of neighbours": round(float(np.mean(near)), 3),
        f"cosine at {FAR_S:g} s or more": round(float(np.mean(far)), 3),
        "cosine across videos": round(float(np.mean(np.concatenate(across))), 3) if across else float("nan"),
        "nearest clip is a neighbour, %": round(100 * float(found.mean()), 1),
    }


def _pairs(count: int, apart: float) -> list[tuple[int, int]]:
    return [(i, j) for i, j in itertools.combinations(range(count), 2) if j - i >= apart]


if __name__ == "__main__":
    main()
