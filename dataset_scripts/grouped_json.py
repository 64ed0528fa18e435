"""The format of ActivityNet-Captions, which Charades-CD and TACoS share: one JSON object, one record for each video.

A record holds `timestamps` and `sentences`, lists of the same length; the rest differs from data set to data set.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modeling_bmdetr.data import CanonicalRow


def grouped_rows(
    path: Path,
    *,
    qid: Callable[[int], str],
    duration_s: Callable[[dict[str, Any]], float],
    units_per_second: Callable[[dict[str, Any]], float] = lambda record: 1,  # noqa: ARG005
    vid: Callable[[str], str] = str,
) -> list[CanonicalRow]:
    """One row for each sentence, in the order of the file.

    Args:
        path: the JSON file.
        qid: qid of the query at a position, from 0, in the file.
        duration_s: duration in seconds of a record.
        units_per_second: units of the record's `timestamps` in a second.
        vid: video id of the name that the file gives a record.

    Raises:
        ValueError: the file is not such a JSON file, or a record is incomplete; the message names the video.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}' is not JSON: {error}.") from error
    if not isinstance(records, dict):
        raise ValueError(f"'{path}': expected an object with one record per video, received {type(records).__name__}.")
    rows: list[CanonicalRow] = []
    for name, record in records.items():
        try:
            timestamps, sentences = record["timestamps"], record["sentences"]
            length_s, rate = duration_s(record), units_per_second(record)
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"'{path}', video {name}: the record is incomplete ({error!r}).") from error
        if len(timestamps) != len(sentences):
            raise ValueError(f"'{path}', video {name}: {len(timestamps)} timestamps, but {len(sentences)} sentences.")
        for (start, end), sentence in zip(timestamps, sentences, strict=True):
            rows.append(
                {
                    "qid": qid(len(rows)),
                    "vid": vid(name),
                    "query": sentence,
                    "duration": length_s,
                    "relevant_windows": [[start / rate, end / rate]],
                }
            )
    return rows
