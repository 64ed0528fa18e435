"""TACoS: 18,227 sentences about 127 cooking videos of about five minutes."""

from modeling_bmdetr.data import CanonicalRow

from .builder import BenchmarkBuilder, SourceFile
from .grouped_json import grouped_rows

_ORIGIN = "github.com/microsoft/VideoX @ 1744b2159c3d11694f94dab4fcde8660c685e79a : 2D-TAN/data/TACoS/"
_VIDEO_SUFFIX = ".avi"


class TACoS(BenchmarkBuilder):
    """TACoS as prepared for 2D-TAN: `{video.avi: {timestamps, sentences, fps, num_frames}}`, times in FRAMES.

    Frames become seconds by the record's own `fps`; the duration is `num_frames / fps`. The suffix `.avi` is not part
    of the `vid`. Several annotators described the same activities: 2,284 rows repeat another one to the letter.
    """

    TITLE = "TACoS"
    DESCRIPTION = "Sentences about cooking videos at several levels of detail, each with the moment it describes."
    FILES = (
        SourceFile("train.json", _ORIGIN + "train.json", "train", "ee5e1527885122f0"),
        SourceFile("val.json", _ORIGIN + "val.json", "val", "f8f350e5727e8c0a"),
        SourceFile("test.json", _ORIGIN + "test.json", "test", "1c64c8a5ada2b812"),
    )
    LICENCE = "the repository that carries the files is MIT (2D-TAN); none is stated for TACoS itself. Use for research"
    HOMEPAGE = "https://www.coli.uni-saarland.de/projects/smile/tacos"
    CITATION = (
        "Regneri, Rohrbach, Wetzel, Thater, Schiele, Pinkal. Grounding Action Descriptions in Videos. TACL 1, 2013."
    )
    TOTALS = {"all": ("train", "val", "test")}

    def stored_rows(self, split: str) -> list[CanonicalRow]:
        return grouped_rows(
            self.path(f"{split}.json"),
            qid=lambda position: self.qid(split, position),
            duration_s=lambda record: record["num_frames"] / record["fps"],
            units_per_second=lambda record: record["fps"],
            vid=lambda name: name.removesuffix(_VIDEO_SUFFIX),
        )
