"""How well moments are found in long videos: test videos joined end to end, searched by overlapping windows.

    python examples/joined_videos.py outputs/quickstart/model outputs/quickstart/videos/test.jsonl \
        --features outputs/quickstart/features --out joined.json

The videos of the rows are shuffled by the seed and their features joined until each long video has the length asked for
(`--minutes 0 1 2 5 17`; 0: every video alone). What is left over is left out. Nothing is decoded.

Every query is asked of the long video that its own video is a part of, if it fits one event of it only. For Moving
Shapes, whose scenes are drawn again from their seed, that is known of every event; elsewhere a query is left out if
its sentence is said of two parts. As many sentences of other videos, that fit nothing in the long video, are asked as
absent ones.

Windows are those of the pipeline, as long as the model reads at once. Printed are, by length, R1@0.5 and R1@0.7 of
the ways to rank the spans of all windows that `RANKINGS` lists, and for the ways to tell presence over windows that
`PRESENCES` lists the AUROC and the shares of present and absent sentences that it takes for present (presence of at
least 0.5).
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset_scripts.moving_shapes import MANIFEST, draw_videos
from dataset_scripts.shapes_sentences import fits
from modeling_bmdetr import BMDetrForMomentRetrieval, BMDetrProcessor, MomentRetrievalPipeline
from modeling_bmdetr.data import FeatureStore, read_rows
from modeling_bmdetr.data.rows.qids import text_qid
from modeling_bmdetr.encoder_interface_bmdetr import EncodedVideo
from modeling_bmdetr.evaluation import evaluate_submission
from modeling_bmdetr.evaluation.reliability import auroc
from modeling_bmdetr.files_bmdetr import write_json
from modeling_bmdetr.spans_bmdetr import mean_inside
from modeling_bmdetr.tables import markdown_table
from modeling_bmdetr.windows_bmdetr import merge_windows, presence_over_windows

Row = Mapping[str, Any]
Events = Callable[[str, Sequence[str]], int]  # how many events of some videos the query of a qid fits
RANKINGS = ("score", "score x presence", "score x p inside", "score x presence x p inside")
PRESENCES: dict[str, Callable[[Tensor, int], float]] = {
    "rule": lambda presence, _: float(presence_over_windows(presence)),
    "highest": lambda presence, _: float(presence.max()),
    "of the best span": lambda presence, best: float(presence[best]),
    "mean": lambda presence, _: float(presence.mean()),
    "root odds": lambda presence, _: float(1 - 1 / (1 + (presence / (1 - presence)).sqrt().mean() ** 2)),
    "mean odds": lambda presence, _: float(1 - 1 / (1 + (presence / (1 - presence)).mean())),
}
PAIRS_AT_ONCE = 64


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        report = measure(args)
    except (ValueError, OSError) as error:
        print(f"joined_videos.py: {error}", file=sys.stderr)
        return 2
    print(as_tables(report))
    if args.out:
        write_json(args.out, report)
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a folder, or a name on the Hub")
    parser.add_argument("rows", type=Path, help="JSONL file of labelled rows")
    parser.add_argument("--features", required=True, help="packed store of their features")
    parser.add_argument("--minutes", type=float, nargs="+", default=[0, 1, 2, 5, 17], help="lengths (0 1 2 5 17)")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which videos are joined (0)")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Figures by length."""
    model = BMDetrForMomentRetrieval.from_pretrained(args.checkpoint).eval()
    rows = [row for row in read_rows(args.rows) if row.get("relevant_windows")]
    store = FeatureStore.from_packed(args.features)
    store.require(rows)
    events = events_of_shapes(args.rows) if (args.rows.parent / MANIFEST).is_file() else events_by_sentence(rows)
    clip_s = model.config.feature_contract.clip_length
    clips = {row["vid"]: len(store.video(row["vid"])) for row in rows}
    report: dict[str, Any] = {"seed": args.seed, "calibrated": model.config.calibration is not None, "lengths": {}}
    for minutes in args.minutes:
        parts, asked = join(rows, clips, minutes, clip_s, args.seed, events)
        if not any(row["relevant_windows"] for row in asked):
            raise ValueError(f"no video of {minutes:g} minutes with a query of its own can be made of {len(clips)}")
        report["lengths"][f"{minutes:g}"] = {
            "videos": len(parts),
            "mean_seconds": round(float(np.mean([row["duration"] for row in asked])), 1),
            **figures(search(model, asked, parts, store), asked),
        }
    return report


def events_by_sentence(rows: Sequence[Row]) -> Events:
    """A query fits the events that are described in the same words."""
    said = {row["qid"]: row["query"].lower().strip(" .") for row in rows}
    by_video: dict[str, list[str]] = {}
    for row in rows:
        by_video.setdefault(row["vid"], []).append(said[row["qid"]])
    return lambda qid, vids: sum(by_video[vid].count(said[qid]) for vid in vids)


def events_of_shapes(rows: Path) -> Events:
    """A query fits the events of Moving Shapes of which it is true, described or not."""
    videos = {video.vid: video for video in draw_videos(rows.parent, rows.stem)}
    said = {
        f"{video.vid}_{number}": (told.colour, told.shape, told.action)
        for video in videos.values()
        for number, told in enumerate(video.told)
    }
    return lambda qid, vids: sum(
        fits(videos[vid].scene, event, *said[qid]) for vid in vids for event in videos[vid].scene.events
    )


def join(
    rows: Sequence[Row], clips: Mapping[str, int], minutes: float, clip_s: float, seed: int, events: Events
) -> tuple[dict[str, list[str]], list[dict[str, Any]]]:
    """Long videos of at least so many minutes, as lists of the videos they are made of, and what is asked of them.

    Args:
        rows: Labelled rows.
        clips: Clips of every video.
        minutes: The length asked for; a long video ends with the part that reaches it.
        clip_s: Seconds of a clip.
        seed: Of the order of the parts and of the absent sentences.
        events: How many events a query fits.

    Returns:
        The parts by long video, and rows whose times are those of the long video. Queries that fit more than one event
        of it are left out. At most as many rows follow, of sentences that fit none and have no `relevant_windows`.
    """
    rng = np.random.default_rng(seed)
    parts: dict[str, list[str]] = {}
    current: list[str] = []
    for vid in map(str, rng.permutation(sorted(clips))):
        current.append(vid)
        if sum(clips[part] for part in current) * clip_s >= minutes * 60:
            parts[f"joined_{len(parts)}"] = current
            current = []
    asked: list[dict[str, Any]] = []
    for name, members in parts.items():
        starts = np.cumsum([0, *(clips[part] for part in members)]) * clip_s
        start_of = dict(zip(members, starts.tolist(), strict=False))
        about = {"vid": name, "duration": float(starts[-1])}
        present = [row for row in rows if row["vid"] in start_of and events(row["qid"], members) == 1]
        for row in present:
            windows = [[time_s + start_of[row["vid"]] for time_s in window] for window in row["relevant_windows"]]
            asked.append({"qid": row["qid"], "query": row["query"], **about, "relevant_windows": windows})
        others = [rows[i] for i in rng.permutation(len(rows)) if rows[i]["vid"] not in start_of]
        absent = [row for row in others if not events(row["qid"], members)][: len(present)]
        asked += [{"qid": row["qid"], "query": row["query"], **about, "relevant_windows": []} for row in absent]
    return parts, asked


def search(
    model: BMDetrForMomentRetrieval, asked: Sequence[Row], parts: Mapping[str, list[str]], store: FeatureStore
) -> list[dict[str, Any]]:
    """For each row: the best moment by ranking, and what each of `PRESENCES` says."""
    pipe = MomentRetrievalPipeline(model, processor=BMDetrProcessor(model.config))
    found = []
    for name, members in parts.items():
        queries = [row for row in asked if row["vid"] == name]
        if not queries:
            continue
        video = EncodedVideo(np.concatenate([store.video(part) for part in members]), queries[0]["duration"], name)
        texts = [store.text(text_qid(row)) for row in queries]
        inputs = {"video": video, "queries": [row["query"] for row in queries], "text_features": texts}
        searched = pipe.preprocess(inputs, long_video="window")
        with torch.inference_mode():
            results = pipe._forward(searched, query_batch_size=PAIRS_AT_ONCE)["results"]
        clips, offsets_s = torch.tensor(searched["lengths"]), [i * searched["clip_s"] for i in searched["starts"]]
        lengths_s = clips * searched["clip_s"]
        for i, row in enumerate(queries):
            windows = results[i :: len(queries)]
            outputs = {key: torch.stack([window[key] for window in windows]) for key in windows[0]}
            best = {}
            for ranking, values in rankings(outputs).items():
                moments = pipe.processor.decode(values, outputs["pred_spans"], clips, lengths_s, lengths_s)
                best[ranking] = merge_windows(list(moments), offsets_s)[:1].tolist()
            answer: dict[str, Any] = {"row": row, "best": best}
            if "presence" in outputs:
                window = int(outputs["scores"].amax(dim=1).argmax())
                answer["presence"] = {rule: tell(outputs["presence"], window) for rule, tell in PRESENCES.items()}
            found.append(answer)
    return found


def rankings(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What each of `RANKINGS` that the model allows ranks spans by, `(windows, spans)`."""
    factors = {"score": outputs["scores"]}
    if "presence" in outputs:
        factors["presence"] = outputs["presence"][:, None]
    if "frame_probabilities" in outputs:
        p = outputs["frame_probabilities"]  # windows are equally long
        factors["p inside"] = mean_inside(p, outputs["pred_spans"], torch.ones_like(p))
    values = {}
    for name in RANKINGS:
        if set(names := name.split(" x ")) <= set(factors):
            values[name] = torch.stack([factors[one].expand_as(outputs["scores"]) for one in names]).prod(dim=0)
    return values


def figures(found: Iterable[Mapping[str, Any]], asked: Sequence[Row]) -> dict[str, Any]:
    """Accuracy by ranking over the present sentences, and presence by rule over all."""
    found = list(found)
    truth = [row for row in asked if row["relevant_windows"]]
    here = [answer for answer in found if answer["row"]["relevant_windows"]]
    result: dict[str, Any] = {"present": len(truth), "absent": len(asked) - len(truth), "rankings": {}, "presence": {}}
    # A long video may be asked the sentence of a qid that another one is asked as absent: one file of predictions each.
    for ranking in here[0]["best"]:
        predictions = [{"qid": one["row"]["qid"], "pred_relevant_windows": one["best"][ranking]} for one in here]
        metrics = evaluate_submission(predictions, truth)
        result["rankings"][ranking] = {name: metrics[f"MR-full-{name}"] for name in ("R1@0.5", "R1@0.7")}
    for rule in PRESENCES if "presence" in here[0] else ():
        present = np.array([one["presence"][rule] for one in here])
        absent = np.array([one["presence"][rule] for one in found if not one["row"]["relevant_windows"]])
        values = {"mean_present": present.mean(), "taken_for_present": (present >= 0.5).mean()}
        if len(absent):
            labels = np.repeat([True, False], [len(present), len(absent)])
            values |= {"mean_absent": absent.mean(), "false_alarms": (absent >= 0.5).mean()}
            values["auroc"] = auroc(np.concatenate((present, absent)), labels)
        result["presence"][rule] = {name: round(float(value), 3) for name, value in values.items()}
    return result


def as_tables(report: Mapping[str, Any]) -> str:
    """Rankings and presence by length, in Markdown."""
    lengths = report["lengths"]
    head = ["minutes", *(name if name != "0" else "one video" for name in lengths)]
    rows = [["sentences", *(f"{one['present']} / {one['absent']}" for one in lengths.values())]]
    for ranking in next(iter(lengths.values()))["rankings"]:
        cells = [one["rankings"][ranking] for one in lengths.values()]
        rows.append([ranking, *(f"{cell['R1@0.5']:.1f} / {cell['R1@0.7']:.1f}" for cell in cells)])
    tables = [("R1@0.5 / R1@0.7", rows)]
    if names := list(next(iter(lengths.values()))["presence"]):
        columns = ("auroc", "mean_absent", "false_alarms", "taken_for_present")
        found = {rule: [one["presence"][rule] for one in lengths.values()] for rule in names}
        rows = [
            [rule, *(" / ".join(f"{values.get(c, np.nan):.2f}" for c in columns) for values in several)]
            for rule, several in found.items()
        ]
        tables.append(("presence: AUROC / mean of absent / false alarms / hits", rows))
    return "\n\n".join(f"{title}\n\n{markdown_table(head, rows)}" for title, rows in tables)


if __name__ == "__main__":
    sys.exit(main())
