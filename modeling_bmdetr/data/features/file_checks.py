"""Checks of an annotation file against the files it names: videos, and features, packed or as published.

`validate_file` is what `bmdetr validate` runs. `check_text_features` detects text features that belong to other
sentences than the rows do, which a join by qid alone cannot see.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..rows.jsonl import RowFile, parse_rows, read_rows
from ..rows.qids import canonical_qid
from ..rows.schema import Problem, ValidationReport
from ..rows.validation import validate_rows
from .array_files import SUFFIXES
from .hdf5_files import HDF5_SUFFIXES, FeatureFile
from .packed import is_packed
from .published import TEXT_KEY, VIDEO_KEY, open_features
from .sentences import compare_repeated, same_sentence
from .sources import examples, nearest
from .store import FeatureStore
from .video_files import check_video_files, lines_of

MOST_COMPARED = 500  # repeated sentences whose features are read


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
        feature_dir: packed store, folder of features one file each, HDF5 file, or folder of such (see
            `check_feature_files`).
        reference: JSONL file that the text features were made from (see `check_text_features`).
        require_windows: whether unlabelled rows are an error.
        clip_length_s: seconds per clip, to check clip indices with.
        progress: whether to show progress bars while files are opened.

    Raises:
        FileNotFoundError: the annotation file, or what else is named here, does not exist.
        ImportError: the features are an HDF5 file, and h5py is not installed.
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


# ------------------------------------------------------------------------------------------------------------ features


def check_feature_files(
    rows: Sequence[Mapping[str, Any]],
    feature_dir: str | Path,
    *,
    reference: str | Path | None = None,
    progress: bool = True,
) -> tuple[list[Problem], list[str]]:
    """Check that features are there, and that text features belong to the sentences of the rows.

    `feature_dir` is a packed store, features as they are published (a folder with one file for each video or query, or
    an HDF5 file), or a folder of those. Where names begin with `qid` (`qid<qid>.npz`) they are text features and are
    checked by `check_text_features`; others must be there for every video. A packed store is checked by
    `FeatureStore.require`.

    Returns:
        The problems, and notes that say what was checked.
    """
    root = Path(feature_dir)
    if not root.exists():
        raise FileNotFoundError(f"feature_dir '{root}' does not exist: name a folder or an HDF5 file of features")
    inside = sorted(root.iterdir()) if root.is_dir() else []
    places = [place for place in (root, *inside) if _holds_features(place)]
    if not places:
        kinds = ", ".join((*SUFFIXES, *HDF5_SUFFIXES))
        message = f"'{root}' is no packed store, and it and its folders hold no {kinds} feature files"
        return [Problem("error", None, "", message)], []
    problems: list[Problem] = []
    notes: list[str] = []
    for place in places:
        if is_packed(place):
            found, note = _check_packed(rows, place)
        elif _holds_text(place):
            reference_rows = None if reference is None else read_rows(reference)
            found, note = check_text_features(rows, place, reference_rows=reference_rows, progress=progress)
        else:
            found, note = _check_video_features(rows, place)
        problems += found
        notes.append(note)
    return problems, notes


def _check_packed(rows: Sequence[Mapping[str, Any]], folder: Path) -> tuple[list[Problem], str]:
    try:
        FeatureStore.from_packed(folder).require(rows)
    except (FileNotFoundError, ValueError) as error:
        return [Problem("error", None, "", str(error))], f"'{folder}': packed features that do not fit"
    return [], f"'{folder}': packed features of every video and query"


def _check_video_features(rows: Sequence[Mapping[str, Any]], place: Path) -> tuple[list[Problem], str]:
    features = open_features(place, VIDEO_KEY)
    vids = list(dict.fromkeys(row["vid"] for row in rows))
    missing = [vid for vid in vids if vid not in features]
    problems = []
    if missing:
        hint = nearest(missing[0], features.names)
        message = f"'{place}' lacks {len(missing)} of {len(vids)} videos: {examples(missing)}{hint}"
        problems.append(Problem("error", None, "vid", message))
    return problems, f"'{place}': features of {len(vids) - len(missing)} of {len(vids)} videos"


def _holds_features(place: Path) -> bool:
    if not place.is_dir():
        return place.suffix.lower() in HDF5_SUFFIXES and not place.name.startswith("._")
    return is_packed(place) or any(next(place.glob(f"*{suffix}"), None) is not None for suffix in SUFFIXES)


def _holds_text(place: Path) -> bool:
    if place.is_dir():
        return next(place.glob("qid*"), None) is not None
    return any(name.startswith("qid") for name in FeatureFile(place, TEXT_KEY).names)


def check_text_features(
    rows: Sequence[Mapping[str, Any]],
    feature_dir: str | Path,
    *,
    reference_rows: Sequence[Mapping[str, Any]] | None = None,
    progress: bool = True,
) -> tuple[list[Problem], str]:
    """Detect text features (files `qid<qid>.npz`, or an HDF5 file) made from other sentences than the rows hold.

    A feature file does not hold its sentence, so three things are checked, from sure to likely:

    1. every row has a file;
    2. with `reference_rows` (the annotation file that the features were made from): the same qid has the same sentence
       in both. This finds every mismatch;
    3. without them, by the features alone, as `sentences.py` describes. Where no sentence repeats it shows nothing,
       and the note says so. A wrong join among sentences that do not repeat is not seen.

    Returns:
        The problems, and a note that says what was checked.
    """
    folder = open_features(feature_dir, TEXT_KEY, prefix="qid")
    present = [(row, line) for row, line in zip(rows, lines_of(rows), strict=True) if row["qid"] in folder]
    problems: list[Problem] = []
    if len(present) < len(rows):
        absent = [row["qid"] for row in rows if row["qid"] not in folder]
        message = f"{folder.where} lacks {len(absent)} of {len(rows)} queries: {examples(absent)}"
        problems.append(Problem("error", None, "qid", message))
    note = f"{folder.where}: text features of {len(present)} of {len(rows)} queries"
    if reference_rows is not None:
        found = _compare_with_reference(present, reference_rows)
        return problems + found, f"{note}; sentences compared with {len(reference_rows)} reference rows"
    line_of = {row["qid"]: line for row, line in present}
    disagreements, compared = compare_repeated(
        {row["qid"]: row["query"] for row, _ in present}, folder.read, MOST_COMPARED, progress=progress
    )
    for found_in in disagreements:
        message = (
            f"repeats the sentence of qid {found_in.other}, but the two text features differ: the features in "
            f"{folder.where} were made from other sentences"
            if found_in.repeats
            else f"has the same text feature as qid {found_in.other}, which is another sentence"
        )
        problems.append(Problem("error", line_of[found_in.qid], "qid", message, found_in.qid))
    if compared:
        return problems, f"{note}; {compared} repeated sentences compared by their features"
    return problems, f"{note}; no sentence repeats, so that they belong to these sentences was not checked"


def _compare_with_reference(
    rows: Sequence[tuple[Mapping[str, Any], int | None]], reference_rows: Sequence[Mapping[str, Any]]
) -> list[Problem]:
    """One problem for each row whose qid has another sentence, or none, in the reference."""
    sentences = {canonical_qid(row["qid"]): row["query"] for row in reference_rows}
    problems = []
    for row, line in rows:
        expected = sentences.get(row["qid"])
        if expected is None:
            message = "is not in the reference that the text features were made from"
        elif not same_sentence(expected, row["query"]):
            message = f"the text feature was made from {expected!r}, the row says {row['query']!r}"
        else:
            continue
        problems.append(Problem("error", line, "qid", message, row["qid"]))
    return problems
