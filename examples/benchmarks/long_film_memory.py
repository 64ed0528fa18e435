"""Memory of `predict` on long films: the peak of one process per length, on generated video.

    python examples/benchmarks/long_film_memory.py outputs/quickstart/model --minutes 10 60 120 --json memory.json

Each film shows small pictures that change all the time; it is written once and kept in `--folder` for the next run.
The peak is that of the whole process (`ru_maxrss`), libraries and model included, so differences between lengths are
what length costs.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from modeling_bmdetr import BMDetrForMomentRetrieval, BMDetrProcessor, MomentRetrievalPipeline

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
        command = [sys.executable, __file__, args.model, "--film", str(film)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results.append({"minutes": minutes, **json.loads(done.stdout.splitlines()[-1])})
        print(results[-1], flush=True)
    peaks = [result["peak_mb"] for result in results]
    print(f"the peaks lie within {max(peaks) - min(peaks)} MB")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


def measure(model_name: str, film: Path) -> dict[str, Any]:
    """Peak memory and seconds of one question about one film, searched by windows."""
    model = BMDetrForMomentRetrieval.from_pretrained(model_name)
    processor = BMDetrProcessor.from_pretrained(model_name)
    pipe = MomentRetrievalPipeline(model, processor=processor, device=torch.device("cpu"))
    started = time.perf_counter()
    answer = pipe(film, "a red star slides to the left", long_video="window", top_k=3)
    seconds = time.perf_counter() - started
    clips = len(answer["saliency"])
    peak_mb = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return {"clips": clips, "moments": len(answer["moments"]), "seconds": round(seconds, 1), "peak_mb": peak_mb}


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
