"""Answers as a piece of a web page: for each sentence its moments on a time line, to be clicked, and p over time.

An element with `data-seek` stands for a time in seconds; the page that shows it moves its player there.
"""

import base64
import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .visualization import clock, tick_step_s

TICKS = 6
ABSENT_BELOW = 0.5  # presence below which an answer says that the video does not show it

# The margin undoes the padding of Gradio, so that answers end where the rest of the page does.
CSS = """
.bm { margin: 0 -12px; font-size: 14px; line-height: 1.4; color: var(--body-text-color, #1f2937); }
.bm-answer { margin: 0 0 14px; padding: 10px 12px; border: 1px solid var(--border-color-primary, #d8dde6);
  border-radius: 10px; background: var(--background-fill-primary, #fff); }
.bm-head { display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: baseline; justify-content: space-between; }
.bm-query { font-weight: 600; overflow-wrap: anywhere; min-width: 0; }
.bm-note { font-size: 12px; padding: 1px 8px; border-radius: 9px; background: #e3f3e6; color: #14532d; }
.bm-note.bm-absent { background: #fdeaea; color: #8a1c1c; }
.bm-track { position: relative; margin: 8px 0 2px; border-radius: 6px; overflow: hidden; cursor: pointer;
  background: var(--background-fill-secondary, #f3f5f9); }
.bm-lane { position: relative; height: 20px; }
.bm-bar { position: absolute; top: 2px; bottom: 2px; min-width: 7px; padding: 0; border: 0; border-radius: 4px;
  background: rgba(47, 111, 219, var(--strength)); color: #fff; font-size: 12px; font-weight: 600; line-height: 16px;
  text-align: left; text-indent: 5px; overflow: hidden; white-space: nowrap; cursor: pointer; }
.bm-bar.bm-weak { color: #10294f; }
.bm-bar:hover, .bm-bar:focus-visible { outline: 2px solid #17418f; outline-offset: -2px; }
.bm-curve { display: block; width: 100%; height: 38px; pointer-events: none; }
.bm-now { position: absolute; top: 0; bottom: 0; width: 2px; background: #c2410c; pointer-events: none; left: 0; }
.bm-axis { position: relative; height: 18px; font-size: 12px; color: var(--body-text-color-subdued, #6b7280); }
.bm-axis span { position: absolute; transform: translateX(-50%); }
.bm-axis span:first-child { transform: none; }
.bm-list { display: flex; flex-wrap: wrap; gap: 6px; margin: 8px 0 0; padding: 0; list-style: none; }
.bm-moment { border: 1px solid var(--border-color-primary, #c9d0dc); border-radius: 8px; padding: 3px 9px;
  background: var(--background-fill-primary, #fff); color: inherit; font: inherit; font-variant-numeric: tabular-nums;
  cursor: pointer; }
.bm-moment:hover, .bm-moment:focus-visible { border-color: #2f6fdb; }
.bm-moment small { opacity: 0.8; }
.bm-foot { display: flex; flex-wrap: wrap; gap: 6px 16px; font-size: 13px;
  color: var(--body-text-color-subdued, #6b7280); }
.bm-foot a { color: #2f6fdb; }
.bm-line { color: #b3262f; font-weight: 600; }
.bm-error { padding: 10px 12px; border: 1px solid #e3a3a3; border-radius: 10px; background: #fdeaea; color: #8a1c1c;
  overflow-wrap: anywhere; }
"""


def answers_html(answers: Sequence[Mapping[str, Any]], name: str) -> str:
    """The whole piece for answers of [`MomentRetrievalPipeline`] about one video called `name`."""
    parts = [_answer(answer) for answer in answers]
    legend = ["bars: moments, the darker the higher their score; click one to go there"]
    if any("frame_probabilities" in answer for answer in answers):
        legend.append('<span class="bm-line">line</span>: p, the probability of each clip (0 to 1)')
    if not all(answer.get("calibrated") for answer in answers):
        legend.append("scores are not calibrated: compare them within one answer only")
    result = {"video": name, "answers": [dict(answer) for answer in answers]}
    links = [
        _download("answers.json", "application/json", json.dumps(result, indent=2) + "\n", "JSON"),
        _download("answers.csv", "text/csv", as_csv([result]) + "\n", "CSV"),
    ]
    foot = " ".join(f"<span>{part}</span>" for part in [*legend, "download: " + " · ".join(links)])
    return f'<div class="bm">{"".join(parts)}<div class="bm-foot">{foot}</div></div>'


def error_html(message: str) -> str:
    """A piece of page that says what went wrong."""
    return f'<div class="bm"><div class="bm-error" role="alert">{html.escape(message)}</div></div>'


def as_csv(results: Sequence[Mapping[str, Any]]) -> str:
    """A table with one line per moment, best first, or one for an answer without moments; times in seconds.

    Names and sentences that a spreadsheet would compute have an apostrophe before them.

    Args:
        results: For each video `{"video": name, "answers": answers of the pipeline}`.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["video", "query", "rank", "start", "end", "score", "presence"])
    for result in results:
        for answer in result["answers"]:
            rows = [
                [rank, f"{moment['start']:.3f}", f"{moment['end']:.3f}", f"{moment['score']:.4f}"]
                for rank, moment in enumerate(answer["moments"], start=1)
            ]
            for row in rows or [[""] * 4]:
                writer.writerow([_cell(result["video"]), _cell(answer["query"]), *row, answer.get("presence", "")])
    return buffer.getvalue().rstrip("\n")


def _cell(text: Any) -> str:
    """A text that stays one in a spreadsheet, which takes one that begins like a formula for a formula."""
    return f"'{text}" if str(text).startswith(("=", "+", "-", "@", "\t", "\r")) else str(text)


def is_absent(answer: Mapping[str, Any]) -> bool:
    """Whether the model says that the video does not show what the sentence describes."""
    presence = answer.get("presence")
    return not answer["moments"] or (presence is not None and presence < ABSENT_BELOW)


def _answer(answer: Mapping[str, Any]) -> str:
    duration_s = max(float(answer["duration"]), 1e-6)
    bars, chips = [], []
    for rank, moment in enumerate(answer["moments"], start=1):
        start, end, score = moment["start"], moment["end"], moment["score"]
        left, width = 100 * start / duration_s, 100 * max(end - start, 0) / duration_s
        said = f"{clock(start, 1)} to {clock(end, 1)}, score {score:.2f}"
        place = f"left:{left:.3f}%;width:{min(width, 100 - left):.3f}%;--strength:{0.2 + 0.65 * score:.2f}"
        kind = "bm-bar" if score >= 0.5 else "bm-bar bm-weak"
        bars.append(
            f'<div class="bm-lane"><button class="{kind}" data-seek="{start:.3f}" title="{said}" '
            f'aria-label="moment {rank}: {said}" style="{place}">{rank}</button></div>'
        )
        chips.append(
            f'<li><button class="bm-moment" data-seek="{start:.3f}">{rank}. {clock(start, 1)} – {clock(end, 1)} '
            f"<small>score {score:.2f}</small></button></li>"
        )
    presence = answer.get("presence")
    certain = "" if presence is None else f" (presence {presence:.2f})"
    if is_absent(answer):
        note = f'<span class="bm-note bm-absent">probably not in this video{certain}</span>'
    elif presence is not None:
        note = f'<span class="bm-note">in this video{certain}</span>'
    else:
        note = ""
    return (
        f'<section class="bm-answer"><div class="bm-head"><span class="bm-query" dir="auto">'
        f"{html.escape(answer['query'])}</span>{note}</div>"
        f'<div class="bm-track" data-duration="{duration_s:.3f}">{"".join(bars)}{_curve(answer)}'
        f'<div class="bm-now"></div></div>{_axis(duration_s)}'
        f'<ul class="bm-list">{"".join(chips)}</ul></section>'
    )


def _curve(answer: Mapping[str, Any]) -> str:
    """p of every clip as a stepped line over the track."""
    values = answer.get("frame_probabilities")
    if not values:
        return ""
    duration_s, clip_s = float(answer["duration"]), float(answer["clip_length"])
    points = []
    for i, p in enumerate(values):
        left, right = (min(100.0, 100 * t * clip_s / duration_s) for t in (i, i + 1))
        height = 97 - 94 * min(max(p, 0.0), 1.0)
        points += [f"{left:.2f},{height:.1f}", f"{right:.2f},{height:.1f}"]
    return (
        '<svg class="bm-curve" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
        '<polyline fill="none" '
        f'stroke="#b3262f" stroke-width="2" vector-effect="non-scaling-stroke" points="{" ".join(points)}"/></svg>'
    )


def _axis(duration_s: float) -> str:
    step = tick_step_s(duration_s, TICKS)
    marks = []
    for i in range(int(duration_s // step) + 1):
        place = 100 * i * step / duration_s
        if place <= 96:  # a label at the very end would leave the page
            marks.append(f'<span style="left:{place:.2f}%">{clock(i * step)}</span>')
    return f'<div class="bm-axis">{"".join(marks)}</div>'


def _download(name: str, kind: str, text: str, label: str) -> str:
    # Letters that no encoding holds, as file systems give them, are shown as question marks.
    data = base64.b64encode(text.encode("utf-8", "replace")).decode()
    return f'<a download="{name}" href="data:{kind};charset=utf-8;base64,{data}">{label}</a>'
