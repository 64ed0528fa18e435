"""How fast videos become rows: decoding alone, encoding alone, both together, and a plain loop over frames.

    python examples/benchmarks/encoding_speed.py kitchen.mp4 --video-encoder pixel-grid
    python examples/benchmarks/encoding_speed.py kitchen.mp4 --import examples.efficientnet_encoder \\
        --video-encoder efficientnet-lite0 --clip-length 1

The plain loop decodes every frame with PyAV, turns each into an array, resizes those it wants and encodes one clip at a
time with the same encoder. Both keep freed memory, as extraction does. The loop chooses the frames by their times, as
the package does, and the program ends with an error if the two choose different ones. Each figure is the best of
`--repeats` runs: clips per second of the clock, and of processor time, which says the same on a busy machine.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from bench_clock import timed

from modeling_bmdetr.encoder_interface_bmdetr import VideoEncoder
from modeling_bmdetr.encoders_bmdetr import build_video_encoder
from modeling_bmdetr.frames_bmdetr import FrameConverter, FramePlan
from modeling_bmdetr.plugins_bmdetr import import_plugins
from modeling_bmdetr.processes import keep_freed_memory
from modeling_bmdetr.video_bmdetr import VideoFile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path, help="video file")
    parser.add_argument("--video-encoder", default="pixel-grid", help="name of the encoder (pixel-grid)")
    parser.add_argument("--import", dest="imports", nargs="+", default=[], metavar="MODULE", help="plug-ins")
    parser.add_argument("--clip-length", type=float, default=1.0, help="seconds per clip (1)")
    parser.add_argument("--device", default="cpu", help="where the encoder runs (cpu)")
    parser.add_argument("--threads", type=int, help="of PyTorch and of the decoder (one per core)")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the best counts (3)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    import_plugins(args.imports)
    encoder = build_video_encoder(args.video_encoder, device=args.device)
    result = measure(args.video, encoder, args.clip_length, args.threads or 0, args.repeats)
    print(json.dumps(result, indent=2))
    if not result["same frames"]:
        sys.exit("the plain loop chose other frames")


def measure(
    path: Path, encoder: VideoEncoder, clip_length_s: float, threads: int = 0, repeats: int = 3
) -> dict[str, Any]:
    """Clips per second for each way, and whether the plain loop chose the same frames."""
    with VideoFile(path, threads) as video:
        times_s = encoder.clip_times(video.duration_s, clip_length_s, video.fps)
        duration_s, fps = video.duration_s, video.fps
    frames = decode(path, times_s, encoder, threads)
    whole = plain_frames(path, times_s, encoder)
    ways: dict[str, Callable[[], Any]] = {
        "decoding alone": lambda: decode(path, times_s, encoder, threads),
        "encoding alone": lambda: encode(encoder, frames),
        "together": lambda: encoder.encode_video(path, clip_length_s),
        "plain loop": lambda: plain_rows(path, times_s, encoder),
    }
    seconds = {name: [timed(way)[:2] for _ in range(repeats)] for name, way in ways.items()}

    def rates(place: int) -> dict[str, float]:
        return {name: round(len(times_s) / min(run[place] for run in runs), 1) for name, runs in seconds.items()}

    return {
        "video": f"{path.name}: {duration_s:.1f} s, {fps:.2f} frames per second",
        "clips": len(times_s),
        "frames per clip": encoder.frames_per_clip,
        "clips per second": rates(0),
        "clips per second of processor time": rates(1),
        "same frames": all(np.array_equal(one, other) for one, other in zip(frames, whole, strict=True)),
    }


def decode(path: Path, times_s: np.ndarray, encoder: VideoEncoder, threads: int) -> list[np.ndarray]:
    """The frames at these times in the encoder's size, as the package decodes them."""
    with VideoFile(path, threads) as video:
        plan = FramePlan(times_s.ravel(), encoder.frame_size, encoder.interpolation)
        return [frame for _, _, frame in video.frames([plan])]


def encode(encoder: VideoEncoder, frames: list[np.ndarray]) -> np.ndarray:
    """Rows of decoded frames, in the encoder's batches."""
    step = encoder.clips_per_batch * encoder.frames_per_clip
    return np.concatenate([encoder._encode_clips(frames[i : i + step]) for i in range(0, len(frames), step)])


def plain_frames(path: Path, times_s: np.ndarray, encoder: VideoEncoder) -> Iterator[np.ndarray]:
    """The same frames by a loop over all of them, each turned into an array."""
    wanted = iter(times_s.ravel().tolist())
    time_s = next(wanted, None)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        convert = FrameConverter(encoder.frame_size, encoder.interpolation)
        origin, shown = None, None
        for frame in container.decode(stream):
            frame.to_ndarray(format="rgb24")
            if frame.pts is None or stream.time_base is None:
                raise ValueError(f"{path} must carry time stamps: the plain loop chooses frames by them")
            origin = frame.pts if origin is None else origin
            start_s = float((frame.pts - origin) * stream.time_base)
            while shown is not None and time_s is not None and time_s < start_s:
                yield convert(shown)
                time_s = next(wanted, None)
            shown = frame
        while time_s is not None:
            yield convert(shown)
            time_s = next(wanted, None)


def plain_rows(path: Path, times_s: np.ndarray, encoder: VideoEncoder) -> np.ndarray:
    """Rows by the plain loop, one clip at a time."""
    rows, waiting = [], []
    for frame in plain_frames(path, times_s, encoder):
        waiting.append(frame)
        if len(waiting) == encoder.frames_per_clip:
            rows.append(encoder._encode_clips(waiting))
            waiting = []
    return np.concatenate(rows)


if __name__ == "__main__":
    main()
