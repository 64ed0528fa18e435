"""ActivityNet-Captions: 71,957 sentences about 14,926 videos of about two minutes."""

from modeling_bmdetr.data import CanonicalRow

from .builder import BenchmarkBuilder, SourceFile
from .grouped_json import grouped_rows

_ORIGIN = "github.com/microsoft/VideoX @ 1744b2159c3d11694f94dab4fcde8660c685e79a : 2D-TAN/data/ActivityNet/"
_ORIGIN_VAL = "github.com/r-cui/ViGA @ 31ed9056df55cad35440274bdb8445a31544e81a : data/activitynetcaptions/annotations/"


class ActivityNetCaptions(BenchmarkBuilder):
    """ActivityNet-Captions in its original format: `{vid: {duration, timestamps, sentences}}`, times in seconds.

    Video ids keep their prefix `v_`. `val_2` annotates 4,885 of the 4,917 videos of `val_1` a second time, so the two
    share videos; papers select on one and report on the other, and must say which.
    """

    TITLE = "ActivityNet-Captions"
    DESCRIPTION = "Paragraphs about videos of activities, each sentence with the moment it describes."
    FILES = (
        SourceFile("train.json", _ORIGIN + "train.json", "train", "704536b2779011c1"),
        SourceFile("val_1.json", _ORIGIN_VAL + "val_1.json", "val_1", "466aaccb9ebe45c6"),
        SourceFile("val_2.json", _ORIGIN_VAL + "val_2.json", "val_2", "08fe56568bc92dd0"),
    )
    LICENCE = (
        "the repositories that carry the files are MIT; the authors' own archive states no licence. Use for research"
    )
    HOMEPAGE = "https://cs.stanford.edu/people/ranjaykrishna/densevid/"
    CITATION = "Krishna, Hata, Ren, Fei-Fei, Niebles. Dense-Captioning Events in Videos. ICCV 2017."
    TOTALS = {"train + val_1": ("train", "val_1"), "all": ("train", "val_1", "val_2")}

    def stored_rows(self, split: str) -> list[CanonicalRow]:
        return grouped_rows(
            self.path(f"{split}.json"),
            qid=lambda position: self.qid(split, position),
            duration_s=lambda record: float(record["duration"]),
        )
