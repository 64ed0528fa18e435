"""Validation of rows against the schema: every problem in one report, never only the first."""

import difflib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from ...contract_bmdetr import clip_count, is_number
from .jsonl import RowFile
from .qids import canonical_qid, is_whole_number
from .schema import ROW_FIELDS, TIME_TOLERANCE_S, Problem, ValidationReport

Finding = tuple[Literal["error", "warning"], str, str]  # severity, field, message


def validate_rows(
    rows: Iterable[Mapping[str, Any]],
    *,
    require_windows: bool = True,
    clip_length_s: float | None = None,
    source: str | None = None,
) -> ValidationReport:
    """Check rows against the schema and report every problem, not only the first.

    Errors: a required field absent, of the wrong type or empty; a qid used twice; two durations for one video; a window
    that is not two times, that is reversed or begins before 0; saliency scores that do not fit the clips, or are of
    another number of annotators than in other rows; negative queries that are not in these rows. Warnings, for what
    training and evaluation handle by rule: a window of zero length or past the end of the video, a row or a window
    given twice, blanks at the ends of a query, unknown fields.

    Args:
        rows: the rows; a `RowFile` brings its line numbers and name, others are counted from 1.
        require_windows: whether a row without `relevant_windows` is an error. False for unlabelled queries. An empty
            list is a label: the video does not show what the query says.
        clip_length_s: seconds per clip; if given, `relevant_clip_ids` must lie inside the video.
        source: what to call the rows in the report.
    """

    def findings(row: Mapping[str, Any]) -> Iterator[Finding]:
        yield from _check_fields(row)
        yield from _check_windows(row, require_windows)
        yield from _check_saliency(row, clip_length_s)

    numbered, report = _check_each(rows, source, findings)
    if not numbered:
        report.problems.append(Problem("error", None, "", "there are no rows"))
    mappings = [(line, row) for line, row in numbered if isinstance(row, Mapping)]
    report.problems += _check_across_rows(mappings)
    report.problems += _check_unknown_fields(mappings)
    return report


def require_fields(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> list[Mapping[str, Any]]:
    """The rows as a list, if each has the fields that a task reads, `qid`, `vid` or `query`, and they can be read.

    Raises:
        ValueError: a row lacks one of them, or it is not what the schema says; the first few are listed.
    """

    def findings(row: Mapping[str, Any]) -> Iterator[Finding]:
        for severity, name, text in _check_fields(row):
            if severity == "error" and name in names and (name, text) != ("query", "is empty"):  # the encoder says so
                yield severity, name, text

    numbered, report = _check_each(rows, None, findings)
    report.raise_for_errors()
    return [row for _, row in numbered]


def _check_each(
    rows: Iterable[Any], source: str | None, findings: Callable[[Mapping[str, Any]], Iterable[Finding]]
) -> tuple[list[tuple[int, Any]], ValidationReport]:
    """Each row with its line, counted from 1 in rows of no file, and the report of what each shows by itself."""
    if isinstance(rows, RowFile):
        numbered, source = list(zip(rows.line_numbers, rows, strict=True)), source or rows.source
    else:
        numbered = list(enumerate(rows, start=1))
    report = ValidationReport(rows=len(numbered), source=source or "rows")
    for line, row in numbered:
        if isinstance(row, Mapping):
            qid = _qid_or_none(row)
            report.problems += [Problem(severity, line, name, text, qid) for severity, name, text in findings(row)]
        else:
            report.problems.append(Problem("error", line, "", f"expected an object, received {type(row).__name__}"))
    return numbered, report


def _qid_or_none(row: Mapping[str, Any]) -> str | None:
    try:
        return canonical_qid(row.get("qid"))
    except (TypeError, ValueError):
        return None


def _check_fields(row: Mapping[str, Any]) -> Iterator[Finding]:
    """`qid`, `vid`, `query`, `duration`, `video`, each by itself."""
    if "qid" not in row:
        yield "error", "qid", "is missing; give every query its own identifier"
    elif row["qid"] != "" and _qid_or_none(row) is None:
        yield "error", "qid", f"expected a string or an integer, received {row['qid']!r}"
    elif not str(row["qid"]).strip() or set(str(row["qid"])) & set("/\\\0"):
        yield "error", "qid", f"{row['qid']!r} cannot name a file; use letters, digits, '-' and '_'"
    borrowed = row.get("text_qid")
    if borrowed is not None and (borrowed == "" or _qid_or_none({"qid": borrowed}) is None):
        yield "error", "text_qid", f"expected the qid of another query, received {borrowed!r}"
    for name in ("vid", "query"):
        value = row.get(name)
        if value is None:
            yield "error", name, "is missing"
        elif not isinstance(value, str):
            yield "error", name, f"expected a string, received {value!r}"
        elif not value.strip():
            yield "error", name, "is empty"
    query = row.get("query")
    if isinstance(query, str) and query.strip() and query != " ".join(query.split()):
        yield "warning", "query", f"has extra white space: {query!r}"
    duration = row.get("duration")
    if duration is None:
        yield "error", "duration", "is missing; give the length of the video in seconds"
    elif not is_number(duration) or duration <= 0:
        yield "error", "duration", f"expected a number of seconds above 0, received {duration!r}"
    video = row.get("video")
    if video is not None and (not isinstance(video, str) or not video.strip()):
        yield "error", "video", f"expected a path, received {video!r}"


def _check_windows(row: Mapping[str, Any], require_windows: bool) -> Iterator[Finding]:
    windows = row.get("relevant_windows")
    kind = row.get("absent_kind")
    if kind is not None and (not isinstance(kind, str) or not kind.strip()):
        yield "error", "absent_kind", f"expected a name, received {kind!r}"
    elif kind is not None and windows is not None and len(windows):
        yield "error", "absent_kind", "is for queries with no moment, but relevant_windows has some"
    if windows is None:
        if require_windows:
            message = "is missing; expected [[start, end], ...] in seconds, or [] if the video does not show it"
            yield "error", "relevant_windows", message
        return
    if not isinstance(windows, (list, tuple)):
        yield "error", "relevant_windows", f"expected [[start, end], ...] in seconds, received {windows!r}"
        return
    if len(windows) == 2 and all(is_number(value) for value in windows):
        yield "error", "relevant_windows", f"expected a list of windows; write [{list(windows)}], not {list(windows)}"
        return
    duration = row["duration"] if is_number(row.get("duration")) and row["duration"] > 0 else math.inf
    seen: set[tuple[float, float]] = set()
    for index, window in enumerate(windows):
        name = f"relevant_windows[{index}]"
        if not isinstance(window, (list, tuple)) or len(window) != 2 or not all(map(is_number, window)):
            yield "error", name, f"expected [start, end] in seconds, received {window!r}"
            continue
        start_s, end_s = window
        if start_s < 0:
            yield "error", name, f"{window} begins before 0"
        if start_s > end_s:
            yield "error", name, f"{window} is reversed: the start comes after the end"
        elif start_s == end_s:
            yield "warning", name, f"{window} has no length; no prediction can overlap it"
        if min(start_s, end_s) >= duration:
            yield "warning", name, f"{window} lies wholly past the end of the video ({duration} s)"
        elif max(start_s, end_s) > duration + TIME_TOLERANCE_S:
            over_s = max(start_s, end_s) - duration
            yield "warning", name, f"{window} ends {over_s:.2f} s past the end of the video ({duration} s)"
        if (start_s, end_s) in seen:
            yield "warning", name, f"{window} is given twice"
        seen.add((start_s, end_s))


def _check_saliency(row: Mapping[str, Any], clip_length_s: float | None) -> Iterator[Finding]:
    clip_ids, scores = row.get("relevant_clip_ids"), row.get("saliency_scores")
    windows = row.get("relevant_windows")
    if clip_ids and isinstance(windows, (list, tuple)) and not windows:
        yield "error", "relevant_clip_ids", "names relevant clips, but relevant_windows is empty: nothing is relevant"
    if clip_ids is not None:
        if not isinstance(clip_ids, (list, tuple)) or not all(is_whole_number(i) and i >= 0 for i in clip_ids):
            yield "error", "relevant_clip_ids", f"expected integers from 0, received {clip_ids!r}"
            return
        if len(set(clip_ids)) != len(clip_ids):
            yield "error", "relevant_clip_ids", "names a clip twice"
        if clip_length_s is not None and clip_ids and is_number(row.get("duration")):
            try:
                clips = clip_count(row["duration"], clip_length_s) if row["duration"] > 0 else 0
            except ValueError as error:
                yield "error", "duration", str(error)
                return
            if clips and max(clip_ids) >= clips:
                message = f"clip {max(clip_ids)} is past the end: {row['duration']} s hold {clips} clips"
                yield "error", "relevant_clip_ids", f"{message} of {clip_length_s} s"
    if scores is None:
        return
    if clip_ids is None:
        yield "error", "saliency_scores", "needs relevant_clip_ids, which names the clips that the scores belong to"
    if not isinstance(scores, (list, tuple)) or not all(isinstance(clip, (list, tuple)) for clip in scores):
        yield "error", "saliency_scores", "expected one list of annotators' scores for each relevant clip"
        return
    if clip_ids is not None and len(scores) != len(clip_ids):
        yield "error", "saliency_scores", f"has {len(scores)} entries for {len(clip_ids)} relevant clips"
    if not all(is_number(score) for clip in scores for score in clip):
        yield "error", "saliency_scores", "expected finite numbers only"
    annotators = {len(clip) for clip in scores}
    if len(annotators) > 1 or 0 in annotators:
        yield "error", "saliency_scores", f"expected as many annotators for every clip, received {annotators}"


def _check_across_rows(rows: Sequence[tuple[int, Mapping[str, Any]]]) -> Iterator[Problem]:
    """What only several rows show: qids used twice, two durations of a video, repeated rows, unknown negatives."""
    line_of_qid: dict[str, int] = {}
    line_of_content: dict[str, int] = {}
    duration_of_vid: dict[str, tuple[int, float]] = {}
    annotators_of_first: tuple[int, int] | None = None
    for line, row in rows:
        qid, vid, duration = _qid_or_none(row), row.get("vid"), row.get("duration")
        if qid is not None and line_of_qid.setdefault(qid, line) != line:
            yield Problem("error", line, "qid", f"is already used on line {line_of_qid[qid]}", qid)
        if isinstance(vid, str) and is_number(duration):
            first_line, first_s = duration_of_vid.setdefault(vid, (line, float(duration)))
            if abs(float(duration) - first_s) > TIME_TOLERANCE_S:
                message = f"is {duration} s, but line {first_line} gives video {vid} {first_s} s"
                yield Problem("error", line, "duration", message, qid)
        content = json.dumps([vid, row.get("query"), row.get("relevant_windows")], default=repr)
        if line_of_content.setdefault(content, line) != line:
            message = f"repeats line {line_of_content[content]}: the same video, query and windows"
            yield Problem("warning", line, "", message, qid)
        if annotators := _annotators(row):
            first_line, expected = annotators_of_first or (line, annotators)
            annotators_of_first = first_line, expected
            if annotators != expected:
                message = (
                    f"has {annotators} annotators, but line {first_line} has {expected}; expected as many in all rows"
                )
                yield Problem("error", line, "saliency_scores", message, qid)
    for line, row in rows:
        negatives = row.get("neg_query_ids")
        if negatives is not None:
            check = _check_negatives(negatives, _qid_or_none(row), line_of_qid.__contains__)
            yield from (Problem("error", line, "neg_query_ids", text, _qid_or_none(row)) for text in check)
        weights, number = row.get("neg_query_weights"), len(negatives) if isinstance(negatives, (list, tuple)) else 0
        if weights is not None and not _are_weights(weights, number):
            text = f"expected a number in [0, 1] for each of {number} `neg_query_ids`, received {weights!r}"
            yield Problem("error", line, "neg_query_weights", text, _qid_or_none(row))


def _annotators(row: Mapping[str, Any]) -> int:
    """How many annotators rated the first clip of a row, 0 where none was rated."""
    scores = row.get("saliency_scores")
    first = scores[0] if isinstance(scores, (list, tuple)) and scores else None
    return len(first) if isinstance(first, (list, tuple)) else 0


def _are_weights(weights: Any, number: int) -> bool:
    if not isinstance(weights, (list, tuple)) or len(weights) != number:
        return False
    return all(is_number(weight) and 0 <= weight <= 1 for weight in weights)


def _check_negatives(negatives: Any, qid: str | None, exists: Callable[[str], bool]) -> Iterator[str]:
    if not isinstance(negatives, (list, tuple)) or not all(isinstance(n, str) or is_whole_number(n) for n in negatives):
        yield f"expected a list of qids, received {negatives!r}"
        return
    names = [negative if isinstance(negative, str) else canonical_qid(negative) for negative in negatives]
    if qid in names:
        yield "names the query itself"
    if len(set(names)) < len(names):
        yield "names a query more than once"
    unknown = [name for name in names if not exists(name)]
    if unknown:
        yield f"names {len(unknown)} qids that are not in these rows: {', '.join(unknown[:5])}"


def _check_unknown_fields(rows: Sequence[tuple[int, Mapping[str, Any]]]) -> Iterator[Problem]:
    """One warning for each unknown field, at its first line, with the known field it may be a misspelling of."""
    lines: defaultdict[str, list[int]] = defaultdict(list)
    for line, row in rows:
        for name in row:
            if name not in ROW_FIELDS:
                lines[str(name)].append(line)
    for name, used in lines.items():
        close = difflib.get_close_matches(name, ROW_FIELDS, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        yield Problem("warning", used[0], name, f"is not a field of the schema, ignored in {len(used)} rows{hint}")
