"""What the benchmark builders share: finding the original files, cleaning by rule, caching by content.

A builder reads a benchmark's original annotation files from a folder that the user names and yields canonical rows
(`modeling_bmdetr.data.CanonicalRow`). It is a `datasets.GeneratorBasedBuilder`, used directly:

    builder = CharadesSTA(data_dir="annotations/charades_sta")
    builder.download_and_prepare()
    rows = builder.as_dataset("train")

`qid`s are `<benchmark>_<split>_<position>`, where the position counts the queries of the split in the order of the
original file, from 0, before anything is dropped. So a qid never depends on options or on other splits, and can never
be mistaken for a number that names somebody's feature file. QVHighlights keeps its own qids.
"""

import hashlib
import logging
import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import datasets
from datasets import Features, List, Value

from modeling_bmdetr.data import CanonicalRow, CleaningReport, CleaningRules, add_absent_rows, clean_rows, validate_rows
from modeling_bmdetr.data.rows import absent, cleaning, schema

logger = logging.getLogger(__name__)

ROW_FEATURES: dict[str, Any] = {
    "qid": Value("string"),
    "vid": Value("string"),
    "query": Value("string"),
    "duration": Value("float64"),
    "relevant_windows": List(List(Value("float64"))),
}
SALIENCY_FEATURES: dict[str, Any] = {
    "relevant_clip_ids": List(Value("int64")),
    "saliency_scores": List(List(Value("int64"))),
}
TRAINING_SPLIT = "train"


@dataclass(frozen=True)
class SourceFile:
    """One original annotation file.

    - `name`: its name in the folder that the user gives.
    - `origin`: where it can be had: repository, commit, path.
    - `split`: the split it holds; None if every split needs it.
    - `sha256`: the first 16 hexadecimal digits of the copy on which the documented statistics were measured.
    """

    name: str
    origin: str
    split: str | None
    sha256: str


@dataclass
class BenchmarkConfig(datasets.BuilderConfig):
    """Options of a benchmark builder.

    - `splits`: the splits to read; None for all. Only their files need to be there.
    - `train_rules`: what to do with dirty rows of the training split. Every other split is left as published, whatever
      is chosen here, so that evaluation stays comparable.
    - `released_jsonl`: folder with the annotation files that published text features were made from; rows then carry
      the `qid`s of those files (Charades-STA and Charades-CD only, see `released_qids`).
    - `absent_share`: absent rows to add by rule to every labelled split, per row that has a moment, drawn with
      `absent_seed` (see `modeling_bmdetr.data.add_absent_rows`). 0, the default, leaves the benchmark as published.
    """

    splits: tuple[str, ...] | None = None
    train_rules: CleaningRules = field(default_factory=CleaningRules)
    released_jsonl: str | None = None
    absent_share: float = 0.0
    absent_seed: int = 0


class BenchmarkBuilder(datasets.GeneratorBasedBuilder):
    """Base of the benchmark builders. A subclass names its files and turns one split of them into rows as stored.

    Args:
        data_dir: the folder with the original files.
        cache_dir: where `datasets` keeps the prepared Arrow files. The cache key contains the content of the files and
            the code that reads them, so that an edited file is never answered from the cache.
        options: fields of `BenchmarkConfig`.

    Raises:
        FileNotFoundError: files are missing; the message lists them with their origin and licence.
        ValueError: an unknown split, an option that does not apply, or a malformed file (named with its line or video).
    """

    BUILDER_CONFIG_CLASS = BenchmarkConfig
    VERSION = datasets.Version("1.0.0")

    TITLE: ClassVar[str]
    DESCRIPTION: ClassVar[str]
    FILES: ClassVar[tuple[SourceFile, ...]]
    LICENCE: ClassVar[str]
    """The licence as it is stated where the files come from."""
    HUB_LICENCE: ClassVar[str] = "other"
    """The same as a licence identifier of the Hub."""
    HOMEPAGE: ClassVar[str]
    CITATION: ClassVar[str]
    FEATURES: ClassVar[dict[str, Any]] = ROW_FEATURES
    TOTALS: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Sums of splits worth reporting, by name."""
    INTEGER_QIDS: ClassVar[bool] = False
    """Whether the original files write qids as integers; exported JSONL then does so too."""
    READS_RELEASED_JSONL: ClassVar[bool] = False

    def __init__(self, data_dir: str | Path | None = None, cache_dir: str | Path | None = None, **options: Any) -> None:
        if data_dir is None:
            raise ValueError(
                f"data_dir is missing: the folder with the files of {self.TITLE}.\n{self.describe_files()}"
            )
        if options.get("splits") is not None:
            options["splits"] = tuple(options["splits"])
        if options.get("released_jsonl") is not None:
            if not self.READS_RELEASED_JSONL:
                raise ValueError(f"released_jsonl applies to Charades-STA and Charades-CD, not to {self.TITLE}.")
            options["released_jsonl"] = str(options["released_jsonl"])
        self.files = self._find_files(Path(data_dir), options.get("splits"))
        self._cleaned: dict[str, tuple[list[CanonicalRow], CleaningReport]] = {}
        options.setdefault("hash", self._content_hash(options.get("released_jsonl")))
        super().__init__(data_dir=str(data_dir), cache_dir=None if cache_dir is None else str(cache_dir), **options)

    # ------------------------------------------------------------------------------------------- for the subclasses

    @abstractmethod
    def stored_rows(self, split: str) -> list[CanonicalRow]:
        """The rows of a split as the original file has them: canonical fields, nothing cleaned, nothing dropped."""

    def features(self) -> dict[str, Any]:
        """The columns of the data set."""
        absent = ("absent_kind", "text_qid") if self.config.absent_share else ()
        return {**self.FEATURES, **dict.fromkeys(absent, Value("string"))}

    def path(self, name: str) -> Path:
        """Path of one of `FILES`."""
        return self.files[name]

    def qid(self, split: str, position: int) -> str:
        """The qid of the query at `position` (from 0) of a split's file."""
        return f"{self.benchmark_name()}_{split}_{position}"

    # ----------------------------------------------------------------------------------------------- for the users

    @classmethod
    def benchmark_name(cls) -> str:
        """The name in snake case, as on the command line; it is the name of the module."""
        return cls.__module__.rsplit(".", 1)[-1]

    @classmethod
    def all_splits(cls) -> tuple[str, ...]:
        """The names of all splits in the order of the documentation."""
        return tuple(file.split for file in cls.FILES if file.split is not None)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that this builder reads."""
        return self.config.splits or self.all_splits()

    @property
    def integer_qids(self) -> bool:
        """Whether the qids are integers where they come from."""
        return self.INTEGER_QIDS or self.config.released_jsonl is not None

    def rows(self, split: str) -> list[CanonicalRow]:
        """The cleaned rows of a split, as the data set yields them."""
        return self._clean(split)[0]

    def cleaning_report(self, split: str) -> CleaningReport:
        """How much dirt the split's file holds, and what was done about it."""
        return self._clean(split)[1]

    def _clean(self, split: str) -> tuple[list[CanonicalRow], CleaningReport]:
        if split not in self._cleaned:
            rules = self.config.train_rules if split == TRAINING_SPLIT else CleaningRules()
            rows, report = clean_rows(self.stored_rows(split), rules)
            if self.config.absent_share:
                rows, absent_report = add_absent_rows(rows, self.config.absent_share, self.config.absent_seed)
                logger.warning("%s %s: %s", self.TITLE, split, absent_report)
            validate_rows(rows, require_windows=False, source=f"{self.TITLE} {split}").raise_for_errors()
            self._cleaned[split] = rows, report
        return self._cleaned[split]

    # ---------------------------------------------------------------------------------------------- files and cache

    @classmethod
    def describe_files(cls, missing: Sequence[str] | None = None) -> str:
        """One line for each file (or each missing one) with its origin, then the licence."""
        listed = [file for file in cls.FILES if missing is None or file.name in missing]
        lines = [f"  {file.name}  from {file.origin}" for file in listed]
        return "\n".join([*lines, f"Licence: {cls.LICENCE}."])

    def _find_files(self, folder: Path, splits: tuple[str, ...] | None) -> dict[str, Path]:
        known = self.all_splits()
        unknown = [split for split in splits or () if split not in known]
        if unknown or splits == ():
            raise ValueError(f"{self.TITLE} has the splits {', '.join(known)}; received splits={splits!r}.")
        needed = [file for file in self.FILES if file.split is None or splits is None or file.split in splits]
        missing = [file.name for file in needed if not (folder / file.name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{self.TITLE}: {len(missing)} of {len(needed)} files are not in '{folder}'. They are not distributed "
                f"here; put them there under these names:\n{self.describe_files(missing)}"
            )
        return {file.name: folder / file.name for file in needed}

    def file_hashes(self) -> dict[str, dict[str, Any]]:
        """For every file its sha256 and whether it is the copy on which the documented statistics were measured."""
        known = {file.name: file.sha256 for file in self.FILES}
        hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in self.files.items()}
        return {name: {"sha256": sha, "as_documented": sha.startswith(known[name])} for name, sha in hashes.items()}

    def _content_hash(self, released_jsonl: str | None) -> str:
        """A hash of the annotation files and of the code that turns them into rows."""
        digest = hashlib.sha256()
        modules = {cls.__module__ for cls in type(self).__mro__ if issubclass(cls, BenchmarkBuilder)}
        modules |= {module.__name__ for module in (absent, cleaning, schema)}
        code = [sys.modules[module].__file__ for module in sorted(modules)]
        paths = [*self.files.values(), *(Path(file) for file in code if file is not None)]
        if released_jsonl is not None:
            paths += sorted(Path(released_jsonl).glob("*.jsonl"))
        for path in paths:
            digest.update(path.name.encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    # ---------------------------------------------------------------------------------------- interface of `datasets`

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description=self.DESCRIPTION,
            features=Features(self.features()),
            homepage=self.HOMEPAGE,
            license=self.LICENCE,
            citation=self.CITATION,
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:  # noqa: ARG002
        edited = [name for name, entry in self.file_hashes().items() if not entry["as_documented"]]
        if edited:
            logger.warning("%s: not the copies that the documentation describes: %s", self.TITLE, ", ".join(edited))
        return [datasets.SplitGenerator(name=split, gen_kwargs={"split": split}) for split in self.splits]

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        report = self.cleaning_report(split)
        logger.info("%s %s: %s", self.TITLE, split, report.format())
        if report.dropped_rows or report.clipped_windows or report.reversed:
            logger.warning(
                "%s %s: %d reversed windows swapped, %d windows clipped, %d rows dropped",
                self.TITLE, split, report.reversed, report.clipped_windows, report.dropped_rows,
            )  # fmt: skip
        for index, row in enumerate(self.rows(split)):
            yield index, {name: row.get(name) for name in self.features()}
