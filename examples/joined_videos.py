"""How well moments are found in long videos: test videos joined end to end, searched by overlapping windows.

    python examples/joined_videos.py outputs/quickstart/model outputs/quickstart/videos/test.jsonl \
        --features outputs/quickstart/features

The videos of the rows are shuffled by the seed and their features joined until each long video has the length asked for
(`--minutes 1 2 5 17`). Every query is asked of the long video that its own video is a part of: one window shows what it
says, all others are distractors. Long videos overlap nowhere; what is left over is left out. A query whose sentence is
said of another part of the long video as well is left out too, since its answer would not be one.

Windows are those of the pipeline (`window_starts`), as long as the model reads at once. The spans of all windows are
ranked together, in the ways that `RANKINGS` lists, and those that two windows found are joined as in the pipeline. The
figures are R1@0.5 and R1@0.7 over the queries.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeling_bmdetr import BMDetrForMomentRetrieval, BMDetrProcessor
from modeling_bmdetr.contract_bmdetr import pad_rows, prepare_text_features, prepare_video_features
from modeling_bmdetr.data import FeatureStore, read_rows, write_rows
from modeling_bmdetr.evaluation import evaluate_submission
from modeling_bmdetr.spans_bmdetr import temporal_nms
from modeling_bmdetr.windows_bmdetr import WINDOW_NMS_IOU, window_starts

Row = Mapping[str, Any]
RANKINGS = ("score", "score x presence", "score x p inside")


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        report = measure(args)
    except (ValueError, OSError) as error:
        print(f"joined_videos.py: {error}", file=sys.stderr)
        return 2
    print(as_table(report))
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a folder, or a name on the Hub")
    parser.add_argument("rows", type=Path, help="JSONL file of labelled rows")
    parser.add_argument("--features", required=True, help="packed store of their features")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 2, 5, 17], help="lengths (1 2 5 17)")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which videos are joined (0)")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--save-rows", type=Path, help="folder for the rows of the long videos, one file per length")
    return parser


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Figures by length: parts as they are, then the lengths asked for."""
    model = BMDetrForMomentRetrieval.from_pretrained(args.checkpoint).eval()
    rows = [row for row in read_rows(args.rows) if row.get("relevant_windows")]
    store = FeatureStore.from_packed(args.features)
    store.require(rows)
    clip_s = model.config.feature_contract.clip_length
    report: dict[str, Any] = {"seed": args.seed, "calibrated": model.config.calibration is not None, "lengths": {}}
    for minutes in args.minutes:
        parts, joined = join(
            rows, {row["vid"]: len(store.video(row["vid"])) for row in rows}, minutes, clip_s, args.seed
        )
        if not joined:
            raise ValueError(f"the {len(rows)} rows have too few videos for one of {minutes:g} minutes: ask for less")
        if args.save_rows:
            args.save_rows.mkdir(parents=True, exist_ok=True)
            write_rows(args.save_rows / f"joined_{minutes:g}min.jsonl", joined)
        predictions = search(model, joined, parts, store)
        figures = {}
        for ranking, found in predictions.items():
            metrics = evaluate_submission(found, joined)
            figures[ranking] = {name: metrics[f"MR-full-{name}"] for name in ("R1@0.5", "R1@0.7", "R5@0.5")}
        length_s = np.mean([row["duration"] for row in joined])
        report["lengths"][f"{minutes:g}"] = {
            "videos": len(parts),
            "queries": len(joined),
            "mean_seconds": round(float(length_s), 1),
            "figures": figures,
        }
    return report


def join(
    rows: Sequence[Row], clips: Mapping[str, int], minutes: float, clip_s: float, seed: int
) -> tuple[dict[str, list[str]], list[dict[str, Any]]]:
    """Long videos of at least so many minutes, as lists of the videos they are made of, and the rows about them.

    Args:
        rows: Labelled rows.
        clips: Clips of every video.
        minutes: The length asked for; a long video ends with the part that reaches it.
        clip_s: Seconds of a clip.
        seed: Of the order of the parts.

    Returns:
        The parts by long video, and rows whose times are those of the long video.
    """
    order = np.random.default_rng(seed).permutation(sorted(clips))
    parts: dict[str, list[str]] = {}
    current: list[str] = []
    for vid in map(str, order):
        current.append(vid)
        if sum(clips[part] for part in current) * clip_s >= minutes * 60:
            parts[f"joined_{len(parts)}"] = current
            current = []
    joined = []
    for name, members in parts.items():
        starts = np.cumsum([0, *(clips[part] for part in members)]) * clip_s
        inside = [row for row in rows if row["vid"] in members]
        said = [row["query"].lower().strip(" .") for row in inside]
        for row, sentence in zip(inside, said, strict=True):
            if said.count(sentence) == 1:
                offset = float(starts[members.index(row["vid"])])
                windows = [[start + offset, end + offset] for start, end in row["relevant_windows"]]
                joined.append({**row, "vid": name, "duration": float(starts[-1]), "relevant_windows": windows})
                joined[-1].pop("video", None)
    return parts, joined


def search(
    model: BMDetrForMomentRetrieval, rows: Sequence[Row], parts: Mapping[str, list[str]], store: FeatureStore
) -> dict[str, list[dict[str, Any]]]:
    """Predictions for rows about long videos, by ranking."""
    contract = model.config.feature_contract
    processor = BMDetrProcessor(contract)
    cut = replace(contract, long_video="truncate")
    found: dict[str, list[dict[str, Any]]] = {}
    for name, members in parts.items():
        video = np.concatenate([store.video(part) for part in members])
        starts = window_starts(len(video), contract.max_clips)
        windows = [prepare_video_features(video[start : start + contract.max_clips], cut) for start in starts]
        features, mask = pad_rows(windows)
        offsets_s = torch.tensor(starts) * contract.clip_length
        lengths_s = mask.sum(dim=1) * contract.clip_length
        for row in (row for row in rows if row["vid"] == name):
            text, text_mask = pad_rows([prepare_text_features(store.text(str(row["qid"])), contract)])
            with torch.no_grad():
                outputs = model(features, mask, text.expand(len(windows), -1, -1), text_mask.expand(len(windows), -1))
            ranked = rankings(processor, outputs, mask, lengths_s)
            for ranking, moments in ranked.items():
                moments[..., :2] += offsets_s[:, None, None]
                flat = moments.flatten(0, 1)
                flat = temporal_nms(flat[flat[:, 2].argsort(descending=True, stable=True)], WINDOW_NMS_IOU)[:5]
                prediction = {"qid": row["qid"], "pred_relevant_windows": flat.double().tolist()}
                found.setdefault(ranking, []).append(prediction)
    return found


def rankings(processor: BMDetrProcessor, outputs: Any, mask: Tensor, lengths_s: Tensor) -> dict[str, Tensor]:
    """Moments `(windows, spans, 3)` of all windows with what each of `RANKINGS` that the model allows ranks them by."""
    scores = {"score": outputs["scores"]}
    if outputs.get("presence") is not None:
        scores["score x presence"] = outputs["scores"] * outputs["presence"][:, None]
    if outputs.get("frame_probabilities") is not None:
        scores["score x p inside"] = outputs["scores"] * mean_inside(
            outputs["pred_spans"], outputs["frame_probabilities"], mask
        )
    spans = outputs["pred_spans"]
    return {
        name: processor.decode(value, spans, mask.sum(dim=1), lengths_s, lengths_s) for name, value in scores.items()
    }


def mean_inside(spans_cxw: Tensor, probabilities: Tensor, mask: Tensor) -> Tensor:
    """Mean of p (Eq. 6) over the clips whose centre lies in each span: `(windows, spans)`; 0 where none does."""
    centres = (torch.arange(mask.shape[1]) + 0.5) / mask.sum(dim=1, keepdim=True)  # (windows, clips)
    distance = (centres[:, None] - spans_cxw[..., :1]).abs()
    inside = (distance <= spans_cxw[..., 1:] / 2) & mask[:, None].bool()
    return (inside * probabilities[:, None]).sum(dim=-1) / inside.sum(dim=-1).clamp(min=1)


def as_table(report: Mapping[str, Any]) -> str:
    """R1@0.5 / R1@0.7 by length and ranking, in Markdown."""
    names = list(next(iter(report["lengths"].values()))["figures"])
    lines = [f"| minutes | videos | queries | {' | '.join(names)} |", "|---:" * (3 + len(names)) + "|"]
    for minutes, entry in report["lengths"].items():
        cells = [f"{entry['figures'][name]['R1@0.5']:.1f} / {entry['figures'][name]['R1@0.7']:.1f}" for name in names]
        lines.append(f"| {minutes} | {entry['videos']} | {entry['queries']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
