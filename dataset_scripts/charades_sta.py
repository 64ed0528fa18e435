"""Charades-STA: 16,128 sentences about 6,672 indoor videos of about 30 s."""

import csv
from pathlib import Path

from modeling_bmdetr.data import CanonicalRow

from .builder import BenchmarkBuilder, SourceFile
from .released_qids import adopt_released_qids

_ORIGIN = "github.com/microsoft/VideoX @ 1744b2159c3d11694f94dab4fcde8660c685e79a : 2D-TAN/data/Charades-STA/"
_LENGTH_FILES = ("Charades_v1_train.csv", "Charades_v1_test.csv")


class CharadesSTA(BenchmarkBuilder):
    """Charades-STA in its original text format: `VID start end##sentence`, times in seconds.

    Durations are the column `length` of the Charades csv files. With `released_jsonl` the rows carry the qids that name
    the text features released with BM-DETR; durations stay those of the csv (the released ones differ by up to 0.26 s).
    """

    TITLE = "Charades-STA"
    DESCRIPTION = "Sentences about short indoor videos, each with the moment it describes (one window in a query)."
    FILES = (
        SourceFile("charades_sta_train.txt", _ORIGIN + "charades_sta_train.txt", "train", "47ec9b6b488fca75"),
        SourceFile("charades_sta_test.txt", _ORIGIN + "charades_sta_test.txt", "test", "fab341679c20b091"),
        SourceFile("Charades_v1_train.csv", _ORIGIN + "Charades_v1_train.csv", None, "59273c6dc2139ec7"),
        SourceFile("Charades_v1_test.csv", _ORIGIN + "Charades_v1_test.csv", None, "8b8b207b55fb95b9"),
    )
    LICENCE = (
        "the repository that carries the files is MIT (2D-TAN); the Charades videos and csv files have a licence of "
        "their own from the Allen Institute for AI, see the homepage. Use for research"
    )
    HOMEPAGE = "https://prior.allenai.org/projects/charades"
    CITATION = (
        "Gao, Sun, Yang, Nevatia. TALL: Temporal Activity Localization via Language Query. ICCV 2017. "
        "Sigurdsson, Varol, Wang, Farhadi, Laptev, Gupta. Hollywood in Homes: Crowdsourcing Data Collection for "
        "Activity Understanding. ECCV 2016."
    )
    TOTALS = {"all": ("train", "test")}
    READS_RELEASED_JSONL = True

    def stored_rows(self, split: str) -> list[CanonicalRow]:
        lengths_s = self._lengths_s()
        path = self.path(f"charades_sta_{split}.txt")
        rows: list[CanonicalRow] = []
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                place = f"'{path}' line {number}"
                vid, window, sentence = _parse_line(line.rstrip("\n"), place)
                if vid not in lengths_s:
                    raise ValueError(f"{place}: video {vid} is in neither of {' and '.join(_LENGTH_FILES)}.")
                rows.append(
                    {
                        "qid": self.qid(split, len(rows)),
                        "vid": vid,
                        "query": sentence,
                        "duration": lengths_s[vid],
                        "relevant_windows": [window],
                    }
                )
        if self.config.released_jsonl is not None:
            rows, _ = adopt_released_qids(rows, self.config.released_jsonl)
        return rows

    def _lengths_s(self) -> dict[str, float]:
        """Length in seconds of every video in the two csv files."""
        lengths_s: dict[str, float] = {}
        for name in _LENGTH_FILES:
            path = self.path(name)
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                if not {"id", "length"} <= set(reader.fieldnames or ()):
                    raise ValueError(f"'{path}': expected the columns id and length, received {reader.fieldnames}.")
                lengths_s.update(_video_length(record, path) for record in reader)
        return lengths_s


def _parse_line(line: str, place: str) -> tuple[str, list[float], str]:
    """(video, [start, end] in seconds, sentence) of a line `VID start end##sentence`."""
    head, marks, sentence = line.partition("##")
    try:
        vid, start_s, end_s = head.split()
        window = [float(start_s), float(end_s)]
    except ValueError:
        marks = ""
    if not marks:
        raise ValueError(f"{place}: expected 'VID start end##sentence', received {line!r}.")
    return vid, window, sentence


def _video_length(record: dict[str, str], path: Path) -> tuple[str, float]:
    """(video, length in seconds) of a record of a csv file."""
    try:
        return record["id"], float(record["length"])
    except (TypeError, ValueError):
        message = f"video {record['id']}: expected a length in seconds, received {record['length']!r}"
        raise ValueError(f"'{path}', {message}.") from None
