"""Answers of the pipeline as text, JSON, CSV and WebVTT."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..timeline import ABSENT_BELOW, as_csv
from .common import printable

FORMS = ("json", "csv", "vtt")


def form_of(args: argparse.Namespace) -> str:
    """`text`, `json`, `csv` or `vtt`, from the options and the name of the file to write.

    Raises:
        ValueError: the options or the name contradict each other.
    """
    asked = [form for form in FORMS if getattr(args, form)]
    suffix = Path(args.out).suffix.lower().removeprefix(".") if args.out else ""
    named = [suffix] if suffix in FORMS else []
    if len(asked) > 1:
        raise ValueError(f"--{asked[0]} and --{asked[1]} are two forms of one result: choose one")
    if asked and named and asked != named:
        raise ValueError(f"--{asked[0]} asks for another form than the name '{args.out}': change one of them")
    return (asked or named or ["text"])[0]


def write(
    results: Sequence[Mapping[str, Any]],
    form: str,
    out: str | None,
    *,
    single: bool,
    threshold: float,
    min_presence: float = 0.0,
) -> None:
    """Prints results in a form, or writes them whole to a file."""
    if form == "json":
        text = json.dumps(results[0] if single else {"results": list(results)}, indent=2)
    elif form == "text":
        text = "\n".join(as_text(result, threshold, min_presence, named=not single) for result in results)
    else:
        text = (as_csv if form == "csv" else as_vtt)(results)
    if out is None:
        print(text)
        return
    from ..files_bmdetr import replacing_file

    with replacing_file(out, binary=True) as file:
        file.write((text + "\n").encode("utf-8", errors="backslashreplace"))


def as_text(result: Mapping[str, Any], threshold: float, min_presence: float = 0.0, *, named: bool) -> str:
    """Sentences with their moments, for people; `named` puts the video above them.

    `threshold` and `min_presence` are those that were asked for, so that an answer without a moment says why.
    """
    lines = [printable(str(result["video"]))] if named else []
    for answer in result["answers"]:
        presence = answer.get("presence")
        is_absent = presence is not None and presence < ABSENT_BELOW
        shown = "" if presence is None else f"   ({'not in this video, ' if is_absent else ''}presence {presence:.2f})"
        lines.append(printable(answer["query"]) + shown)
        for moment in answer["moments"]:
            span = f"{moment['start']:8.2f} s - {moment['end']:8.2f} s"
            lines.append(f"  {span}   score {moment['score']:.3f}")
        if presence is not None and presence < min_presence:
            lines.append(f"  no moment is listed where presence is below {min_presence:g} (--min-presence)")
        elif not answer["moments"]:
            lines.append(f"  no moment scores {threshold:g} or more (--score-threshold 0 lists all)")
    if not all(answer.get("calibrated", True) for answer in result["answers"]):
        lines.append("Scores and presence only rank, since the checkpoint is not calibrated (see bmdetr calibrate).")
    return "\n".join(lines)


def as_vtt(results: Sequence[Mapping[str, Any]]) -> str:
    """WebVTT with one cue per moment in the order of time, which players show as chapters or subtitles.

    Raises:
        ValueError: several videos; a WebVTT file belongs to one.
    """
    require_one_video(len(results))
    moments = [
        (moment["start"], moment["end"], moment["score"], answer["query"])
        for answer in (results[0]["answers"] if results else ())
        for moment in answer["moments"]
    ]
    cues = ["WEBVTT"]
    for start, end, score, query in sorted(moments, key=lambda moment: moment[:2]):
        words = printable(query).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        cues.append(f"{_vtt_time(start)} --> {_vtt_time(max(end, start + 0.001))}\n{words} ({score:.2f})")
    return "\n\n".join(cues)


def require_one_video(videos: int) -> None:
    """Refuses WebVTT of several videos."""
    if videos > 1:
        raise ValueError("WebVTT belongs to one video: ask about one at a time, or use --csv or --json")


def _vtt_time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}.{rest % 1000:03}"
