"""Checks of an annotation file against the files it names: videos, and features, packed or as published.

`validate_file` is what `bmdetr validate` runs. `check_text_features` detects text features that belong to other
sentences than the rows do, which a join by qid alone cannot see.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ...video_bmdetr import probe_video
from ..rows.jsonl import RowFile, parse_rows, read_rows
from ..rows.schema import Problem, ValidationReport
from ..rows.validation import validate_rows
from .fit import SAME_FEATURE_TOLERANCE
from .packed import is_packed
from .published import TEXT_KEY, VIDEO_KEY, FeatureFolder
from .store import FeatureStore

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v")
DURATION_TOLERANCE_S = 1.0
"""A video file may be this much shorter or longer than its row says before a warning is due."""


def validate_file(
    path: str | Path,
    video_dir: str | Path | None = None,
    feature_dir: str | Path | None = None,
    *,
    reference: str | Path | None = None,
    require_windows: bool = True,
    clip_length_s: float | None = None,
    progress: bool = True,
) -> ValidationReport:
    """Check a JSONL file against the schema, and its rows against the videos and features that they name.

    Args:
        path: the annotation file.
        video_dir: folder of video files named after `vid` (a row's `video` is looked up here, then beside the file).
        feature_dir: packed store, folder of features one file each, or folder of such (see `check_feature_files`).
        reference: JSONL file that the text features were made from (see `check_text_features`).
        require_windows: whether unlabelled rows are an error.
        clip_length_s: seconds per clip, to check clip indices with.
        progress: whether to show progress bars while files are opened.

    Raises:
        FileNotFoundError: the annotation file, or a folder named here, does not exist.
    """
    rows, unreadable = parse_rows(path)
    report = validate_rows(rows, require_windows=require_windows, clip_length_s=clip_length_s)
    report.problems = unreadable + report.problems
    usable = _rows_with_names(rows)
    if video_dir is not None:
        report.problems += check_video_files(usable, video_dir, beside=Path(path).parent, progress=progress)
    if feature_dir is not None:
        problems, notes = check_feature_files(usable, feature_dir, reference=reference, progress=progress)
        report.problems += problems
        report.notes += notes
    return report


def _rows_with_names(rows: RowFile) -> RowFile:
    """The rows whose qid, vid and query are strings: only those can be looked up."""
    named = [
        (row, line)
        for row, line in zip(rows.rows, rows.line_numbers, strict=True)
        if all(isinstance(row.get(name), str) for name in ("qid", "vid", "query"))
    ]
    return RowFile([row for row, _ in named], [line for _, line in named], rows.integer_qids, rows.source)


def _existing_folder(folder: str | Path, argument: str) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{argument} '{folder}' is not a folder.")
    return folder


def _lines(rows: Sequence[Mapping[str, Any]]) -> Sequence[int | None]:
    return rows.line_numbers if isinstance(rows, RowFile) else [None] * len(rows)


def _listed(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


# -------------------------------------------------------------------------------------------------------------- videos


def find_video(row: Mapping[str, Any], folders: Iterable[Path]) -> Path | None:
    """The video file of a row: its `video` path, or `<vid>` with a known suffix, in the first folder that has it."""
    for folder in folders:
        names = [row["video"]] if row.get("video") else [row["vid"], *(row["vid"] + end for end in VIDEO_SUFFIXES)]
        for name in names:
            if (folder / name).is_file():
                return folder / name
    return None


def check_video_files(
    rows: Sequence[Mapping[str, Any]], video_dir: str | Path, *, beside: Path | None = None, progress: bool = True
) -> list[Problem]:
    """One problem for each video that is missing, cannot be read, or is not as long as its row says.

    Reads the first frame of every video, which needs PyAV (`pip install "modeling-bmdetr[video]"`).
    """
    folders = [_existing_folder(video_dir, "video_dir"), *([beside] if beside is not None else [])]
    first_rows: dict[str, tuple[Mapping[str, Any], int | None]] = {}
    for row, line in zip(rows, _lines(rows), strict=True):
        first_rows.setdefault(row["vid"], (row, line))
    problems = []
    for row, line in tqdm(first_rows.values(), desc="videos", unit="video", disable=not progress):
        path = find_video(row, folders)
        if path is None:
            sought = row.get("video") or f"{row['vid']}{{{','.join(VIDEO_SUFFIXES)}}}"
            problems.append(Problem("error", line, "vid", f"there is no video '{sought}' in '{video_dir}'", row["qid"]))
            continue
        message = _compare_duration(path, row.get("duration"))
        if message:
            severity, text = message
            problems.append(Problem(severity, line, "duration", text, row["qid"]))  # type: ignore[arg-type]
    return problems


def _compare_duration(path: Path, duration: Any) -> tuple[str, str] | None:
    """(severity, message) if the file cannot be read or its length is not `duration`; None if all is well."""
    try:
        length_s = probe_video(path).duration_s
    except ValueError as error:
        return "error", str(error)
    if not isinstance(duration, (int, float)) or abs(length_s - duration) <= DURATION_TOLERANCE_S:
        return None
    return "warning", f"is {duration} s, but '{path}' is {length_s:.2f} s long"


# ------------------------------------------------------------------------------------------------------------ features


def check_feature_files(
    rows: Sequence[Mapping[str, Any]],
    feature_dir: str | Path,
    *,
    reference: str | Path | None = None,
    progress: bool = True,
) -> tuple[list[Problem], list[str]]:
    """Check that features are there, and that text features belong to the sentences of the rows.

    `feature_dir` is a packed store, a folder of features as they are published (one file for each video or query), or a
    folder of those. A folder with files `qid<qid>.npz` is one of text features and is checked by `check_text_features`;
    any other must have a file for every video. A packed store is checked by `FeatureStore.require`.

    Returns:
        The problems, and notes that say what was checked.
    """
    root = _existing_folder(feature_dir, "feature_dir")
    folders = [folder for folder in (root, *sorted(root.iterdir())) if folder.is_dir() and _holds_features(folder)]
    if not folders:
        message = f"'{root}' is no packed store, and it and its folders hold no .npz or .npy feature files"
        return [Problem("error", None, "", message)], []
    problems: list[Problem] = []
    notes: list[str] = []
    for folder in folders:
        if is_packed(folder):
            found, note = _check_packed(rows, folder)
        elif next(folder.glob("qid*"), None) is not None:
            reference_rows = None if reference is None else read_rows(reference)
            found, note = check_text_features(rows, folder, reference_rows=reference_rows, progress=progress)
        else:
            found, note = _check_video_features(rows, folder)
        problems += found
        notes.append(note)
    return problems, notes


def _check_packed(rows: Sequence[Mapping[str, Any]], folder: Path) -> tuple[list[Problem], str]:
    try:
        FeatureStore.from_packed(folder).require(rows)
    except (FileNotFoundError, ValueError) as error:
        return [Problem("error", None, "", str(error))], f"'{folder}': packed features that do not fit"
    return [], f"'{folder}': packed features of every video and query"


def _check_video_features(rows: Sequence[Mapping[str, Any]], folder: Path) -> tuple[list[Problem], str]:
    features = FeatureFolder(folder, VIDEO_KEY)
    vids = list(dict.fromkeys(row["vid"] for row in rows))
    missing = [vid for vid in vids if vid not in features]
    problems = []
    if missing:
        message = f"'{folder}' lacks {len(missing)} of {len(vids)} videos: {_listed(missing)}"
        problems.append(Problem("error", None, "vid", message))
    return problems, f"'{folder}': features of {len(vids) - len(missing)} of {len(vids)} videos"


def _holds_features(folder: Path) -> bool:
    return is_packed(folder) or any(next(folder.glob(pattern), None) is not None for pattern in ("*.npz", "*.npy"))


def check_text_features(
    rows: Sequence[Mapping[str, Any]],
    feature_dir: str | Path,
    *,
    reference_rows: Sequence[Mapping[str, Any]] | None = None,
    max_comparisons: int = 500,
    progress: bool = True,
) -> tuple[list[Problem], str]:
    """Detect text features (`qid<qid>.npz`) that were made from other sentences than the rows hold.

    A feature file does not hold its sentence, so three things are checked, from sure to likely:

    1. every row has a file;
    2. with `reference_rows` (the annotation file that the features were made from): the same qid has the same sentence
       in both. This finds every mismatch;
    3. without them, by the features alone: rows with one sentence must have one feature, and rows with different
       sentences different features. A shuffled or shifted join fails this wherever sentences repeat (1,152 sentences
       do in Charades-STA's training split, 31 in QVHighlights'). Where none repeats it shows nothing, and the note
       says so. A wrong join among sentences that do not repeat is not seen.

    Returns:
        The problems, and a note that says what was checked.
    """
    folder = FeatureFolder(_existing_folder(feature_dir, "feature_dir"), TEXT_KEY, prefix="qid")
    present = [(row, line) for row, line in zip(rows, _lines(rows), strict=True) if row["qid"] in folder]
    problems: list[Problem] = []
    if len(present) < len(rows):
        absent = [row["qid"] for row in rows if row["qid"] not in folder]
        message = f"{folder.where} lacks {len(absent)} of {len(rows)} queries: {_listed(absent)}"
        problems.append(Problem("error", None, "qid", message))
    note = f"{folder.where}: text features of {len(present)} of {len(rows)} queries"
    if reference_rows is not None:
        found = _compare_with_reference(present, reference_rows)
        return problems + found, f"{note}; sentences compared with {len(reference_rows)} reference rows"
    found, compared = _compare_features(present, folder, max_comparisons, progress)
    if compared:
        return problems + found, f"{note}; {compared} repeated sentences compared by their features"
    return problems + found, f"{note}; no sentence repeats, so that they belong to these sentences was not checked"


def _reduced(query: str) -> str:
    return " ".join(query.split())


def _compare_with_reference(
    rows: Sequence[tuple[Mapping[str, Any], int | None]], reference_rows: Sequence[Mapping[str, Any]]
) -> list[Problem]:
    """One problem for each row whose qid has another sentence, or none, in the reference."""
    sentences = {str(row["qid"]): row["query"] for row in reference_rows}
    problems = []
    for row, line in rows:
        expected = sentences.get(row["qid"])
        if expected is None:
            message = "is not in the reference that the text features were made from"
        elif _reduced(expected) != _reduced(row["query"]):
            message = f"the text feature was made from {expected!r}, the row says {row['query']!r}"
        else:
            continue
        problems.append(Problem("error", line, "qid", message, row["qid"]))
    return problems


def _compare_features(
    rows: Sequence[tuple[Mapping[str, Any], int | None]], folder: FeatureFolder, max_comparisons: int, progress: bool
) -> tuple[list[Problem], int]:
    """Problems found by comparing the features of repeated and of different sentences, and how many were repeated."""
    by_sentence: defaultdict[str, list[tuple[Mapping[str, Any], int | None]]] = defaultdict(list)
    for entry in rows:
        by_sentence[_reduced(entry[0]["query"])].append(entry)
    repeated = [group for group in by_sentence.values() if len(group) > 1][:max_comparisons]
    problems = []
    previous: tuple[np.ndarray, str] | None = None
    for group in tqdm(repeated, desc="text features", unit="sentence", disable=not progress):
        (first, _), (second, line) = group[0], group[-1]
        feature, other = folder.read(first["qid"]), folder.read(second["qid"])
        if not _same_feature(feature, other):
            message = f"repeats the sentence of qid {first['qid']}, but the two text features differ: the features in"
            text = f"{message} {folder.where} were made from other sentences"
            problems.append(Problem("error", line, "qid", text, second["qid"]))
        if previous is not None and _same_feature(feature, previous[0]):
            text = f"has the same text feature as qid {previous[1]}, which is another sentence"
            problems.append(Problem("error", group[0][1], "qid", text, first["qid"]))
        previous = feature, first["qid"]
    return problems, len(repeated)


def _same_feature(left: np.ndarray, right: np.ndarray) -> bool:
    if left.shape != right.shape:
        return False
    return bool(np.abs(left - right).max(initial=0.0) <= SAME_FEATURE_TOLERANCE * np.abs(left).max(initial=1e-6))
