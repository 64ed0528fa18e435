"""How often the right video is among those that the prefilter of a search keeps, on features made for the purpose.

    python examples/benchmarks/prefilter_recall.py --videos 1000

Small models with random weights align nothing, so the features are drawn: every video has some topics, every clip is
one of them and noise, and a sentence is the topic of one clip and noise of its own. `alignment` is the cosine expected
of a sentence and the clip that it describes; a video is as like another as `--common` makes it. What is measured is the
mechanism (the best clip of a video, the N best videos), not how well a certain CLIP aligns videos with sentences.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from modeling_bmdetr.files_bmdetr import write_json
from modeling_bmdetr.prefilter import best_similarities, most_similar


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--clips", type=int, default=30, help="of each video (30)")
    parser.add_argument("--dim", type=int, default=512, help="of the shared space (512)")
    parser.add_argument("--sentences", type=int, default=500)
    parser.add_argument("--common", type=float, default=0.5, help="cosine that any two clips have in common (0.5)")
    parser.add_argument("--alignment", type=float, nargs="+", default=[0.1, 0.15, 0.2, 0.3])
    parser.add_argument("--keep", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    figures = {}
    for alignment in args.alignment:
        figures[f"alignment {alignment}"] = recall(args, alignment)
        print(f"alignment {alignment}", figures[f"alignment {alignment}"], flush=True)
    if args.json:
        write_json(args.json, figures)


def recall(args: argparse.Namespace, alignment: float) -> dict[str, float]:
    """Percent of sentences whose video is kept, and seconds per sentence."""
    rng = np.random.default_rng(0)

    def directions(*shape: int) -> np.ndarray:
        drawn = rng.standard_normal((*shape, args.dim)).astype(np.float32)
        return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)

    common, topics = directions(), directions(args.videos, args.clips // 5 or 1)
    clips = np.repeat(topics, 5, axis=1)[:, : args.clips]
    clips = 0.9 * clips + np.sqrt(1 - 0.9**2) * directions(*clips.shape[:2])
    clips = np.sqrt(args.common) * common + np.sqrt(1 - args.common) * clips
    asked = rng.integers(args.videos, size=args.sentences)
    told = topics[asked, rng.integers(topics.shape[1], size=args.sentences)]
    share = min(1.0, alignment / 0.9 / np.sqrt(1 - args.common))  # of the sentence that is its topic
    sentences = share * told + np.sqrt(1 - share**2) * directions(args.sentences)
    names = [str(number) for number in range(args.videos)]
    started = time.perf_counter()
    likeness = best_similarities(clips.astype(np.float16), sentences)
    seconds = (time.perf_counter() - started) / args.sentences
    figures = {"seconds per sentence, all at once": round(seconds, 4)}
    for number in args.keep:
        kept = most_similar(names, likeness, number)
        hits = sum(str(video) in some for video, some in zip(asked, kept, strict=True))
        figures[f"kept {number}: recall in percent"] = round(100 * hits / args.sentences, 1)
    return figures


if __name__ == "__main__":
    main()
