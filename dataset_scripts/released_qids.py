"""Joins rows to the annotation files that published text features were made from.

Published text features are named `qid<N>.npz`, where N numbers the rows of the publisher's own JSONL files, in another
order than the original annotations. A row is given that number only if the publisher's file holds the same video,
sentence and window.
"""

from collections.abc import Sequence
from pathlib import Path

from modeling_bmdetr.data import CanonicalRow, read_rows

Key = tuple[str, str, float, float]


def adopt_released_qids(rows: Sequence[CanonicalRow], folder: str | Path) -> tuple[list[CanonicalRow], list[str]]:
    """Copies of the rows with the qids of the released JSONL files in `folder` (every `*.jsonl` there).

    Rows are joined on video, sentence (white space reduced) and window (a reversed one swapped, as the released files
    do). A row that has no such partner is joined on the sentence without full stops: Charades-CD is Charades-STA with
    the full stops removed, so a text feature made from Charades-STA's sentence is close to, but not the same as, one
    made from Charades-CD's.

    Returns:
        The rows, and the qids of those that were joined in the second way.

    Raises:
        FileNotFoundError: there is no JSONL file in `folder`.
        ValueError: a row has no partner, or two released rows cannot be told apart. Nothing is joined then.
    """
    paths = sorted(Path(folder).glob("*.jsonl"))
    if not paths:
        raise FileNotFoundError(
            f"released_jsonl '{folder}' holds no .jsonl file. Expected the annotation files of the released code "
            "(github.com/minjoong507/BM-DETR : data/charades/ or data/charades-CD/), which name the text features."
        )
    released = [row for path in paths for row in read_rows(path)]
    exact, loose = _index(released, stops=True), _index(released, stops=False)
    joined: list[CanonicalRow] = []
    without_stops: list[str] = []
    orphans: list[CanonicalRow] = []
    for row in rows:
        qid = exact.get(_key(row, stops=True))
        if qid is None:
            qid = loose.get(_key(row, stops=False))
            if qid is None:
                orphans.append(row)
                continue
            without_stops.append(qid)
        joined.append({**row, "qid": qid})
    if orphans:
        shown = "; ".join(f"{row['vid']} {row.get('relevant_windows')} {row['query']!r}" for row in orphans[:3])
        raise ValueError(
            f"{len(orphans)} of {len(rows)} rows are not in the released files of '{folder}': {shown}. "
            "These released files belong to other annotations; text features named after their qids would be wrong."
        )
    return joined, without_stops


def _key(row: CanonicalRow, stops: bool) -> Key:
    windows = row.get("relevant_windows") or []
    if len(windows) != 1:
        raise ValueError(f"qid {row['qid']}: expected one window in a row to join on, received {windows}.")
    query = row["query"] if stops else row["query"].replace(".", "")
    start_s, end_s = sorted(float(time_s) for time_s in windows[0])
    return row["vid"], " ".join(query.split()), start_s, end_s


def _index(released: Sequence[CanonicalRow], stops: bool) -> dict[Key, str]:
    index: dict[Key, str] = {}
    for row in released:
        other = index.setdefault(_key(row, stops), row["qid"])
        if other != row["qid"]:
            raise ValueError(f"Released rows {other} and {row['qid']} have the same video, sentence and window.")
    return index
