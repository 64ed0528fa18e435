"""Memory of `predict` on long films: the peak of one process per length, on generated video.

    python examples/benchmarks/long_film_memory.py outputs/quickstart/model --minutes 10 60 120 --json memory.json

Each film shows small pictures that change all the time; it is written once and kept in `--folder` for the next run.
The peak is that of the whole process, libraries and model included, so differences between lengths are
what length costs.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from bench_clock import fresh_process, load_pipeline, peak_memory_mib, timed

from modeling_bmdetr.files_bmdetr import write_json

SIDE, FPS = 64, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a checkpoint")
    parser.add_argument("--minutes", type=int, nargs="+", default=[10, 60, 120])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="for the films")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--film", type=Path, help=argparse.SUPPRESS)  # one measurement per process
    args = parser.parse_args()
    if args.film:
        print(json.dumps(measure(args.model, args.film)))
        return
    results = []
    for minutes in args.minutes:
        film = write_film(args.folder / f"film_{minutes}_minutes.mp4", minutes)
        results.append({"minutes": minutes, **fresh_process([__file__, args.model, "--film", str(film)])})
        print(results[-1], flush=True)
    peaks = [result["peak_mb"] for result in results]
    print(f"the peaks lie within {max(peaks) - min(peaks)} MB")
    if args.json:
        write_json(args.json, results)


def measure(model_name: str, film: Path) -> dict[str, Any]:
    """Peak memory and seconds of one question about one film, searched by windows."""
    pipe = load_pipeline(model_name)
    question = partial(pipe, film, "a red star slides to the left", long_video="window", top_k=3)
    seconds, processor, answer = timed(question)
    return {
        "clips": len(answer["saliency"]),
        "moments": len(answer["moments"]),
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
        "peak_mb": round(peak_memory_mib()),
    }


def write_film(path: Path, minutes: int) -> Path:
    """A film of a bar that wanders over changing colours."""
    if path.is_file():
        return path
    aside = path.with_suffix(".writing.mp4")
    with av.open(str(aside), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "35"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for i in range(minutes * 60 * FPS):
            picture = np.full((SIDE, SIDE, 3), (i // 40 * 37 % 256, i // 90 * 53 % 256, 90), np.uint8)
            left = i * 3 % (SIDE - 12)
            picture[:, left : left + 12] = (220, 40, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return aside.rename(path)


if __name__ == "__main__":
    main()
