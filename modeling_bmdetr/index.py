"""A folder of videos, encoded once, to be searched by sentences.

An index is a folder that holds

- `index.json`: the model it belongs to, and which feature store is in use;
- `catalog.jsonl`: a line per event, the last one of a path being right: the file's size, time and content, its length
  in seconds, or why it could not be encoded. Lines are added while videos are encoded, so that a run that was killed
  loses nothing;
- `store-N/`: a packed feature store, whose arrays are named by the content of the files. A file that was moved,
  renamed or copied is not encoded again.
"""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers.utils import logging

from .contract_bmdetr import FeatureContract
from .data.features.packed import PackedArrays, read_manifest
from .data.features.writer import FeatureWriter
from .data.rows.jsonl import write_jsonl
from .files_bmdetr import remove_leftovers, write_json
from .index_files import (
    CATALOG,
    FORMAT,
    MANIFEST,
    VERSION,
    content_key,
    read_catalog,
    read_index,
    video_files,
    weights_key,
)
from .pipeline_bmdetr import EncodedVideo, MomentRetrievalPipeline
from .prefilter import best_similarities, dual_encoder_logits, most_similar, shared_columns
from .spans_bmdetr import mean_inside, spans_se_to_cxw

logger = logging.get_logger(__name__)

Progress = Callable[[str, int, int], None]  # what is under way, how much of it is done, of how much
# Features of removed videos stay in the store until they are more than those in use.
_MOST_UNUSED = 0.5
_WINDOWS_AT_ONCE = 256
_DOUBT = 1e-6  # that a video shows the sentence, at least, so that the odds of presence stay finite


@dataclass
class IndexReport:
    """What one run of `VideoIndex.update` did.

    Attributes:
        videos: Videos in the index now.
        encoded: Videos encoded in this run.
        kept: Videos whose content was there already, copies included.
        renamed: Videos whose content was there under a name that is gone.
        removed: Videos dropped since their file is gone.
        failed: Files that could not be encoded, with the reason.
        clips: Clips of all videos in the index.
        bytes: Size of the index on disk.
        seconds: Time taken.
    """

    videos: int = 0
    encoded: int = 0
    kept: int = 0
    renamed: int = 0
    removed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    clips: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.videos} videos, {self.clips} clips, {self.bytes / 1e6:.1f} MB: {self.encoded} encoded in "
            f"{self.seconds:.1f} s, {self.kept} kept, {self.renamed} renamed, {self.removed} removed, "
            f"{len(self.failed)} failed"
        ]
        return "\n".join([*lines, *(f"  {path}: {reason}" for path, reason in sorted(self.failed.items()))])


@dataclass(frozen=True)
class Hit:
    """A moment of one of the videos.

    Attributes:
        video: Path of the file, relative to the folder that was indexed.
        start, end: Seconds.
        score: As the pipeline gives it.
        presence: Probability that the video shows what the sentence says at all; None where the model has none.
        rank_score: What hits are ranked by: `score` times the odds of presence where they are calibrated, since
            presence tells videos apart better than the fit of a span; else `score` times the mean p (Eq. 6) inside
            the span, which tells them apart better than an uncalibrated score.
    """

    video: str
    start: float
    end: float
    score: float
    presence: float | None
    rank_score: float


class VideoIndex:
    """Videos of a folder, to be searched.

    ```python
    index = VideoIndex("holidays.index", pipe)
    print(index.update("holidays/"))                       # encodes what is new or changed
    for hit in index.search("a dog jumps into the sea"):
        print(hit.video, hit.start, hit.end, hit.score)
    ```

    Args:
        directory: The index; made by the first `update`.
        pipe: Pipeline of the model.
        model_name: What messages call the model; its own name when left out.

    Raises:
        ValueError: the index was made with another model (unless `update` is to replace it) or another feature
            contract, or is damaged.
    """

    def __init__(
        self, directory: str | os.PathLike, pipe: MomentRetrievalPipeline, model_name: str | None = None
    ) -> None:
        self.directory, self.pipe = Path(directory), pipe
        self._warned = False
        self._source: PackedArrays | None = None
        self._entries: dict[str, dict[str, Any]] | None = None
        self.model_name = model_name or str(getattr(pipe.model, "name_or_path", "") or "the model")
        contract = pipe.processor.contract
        # What the features depend on; how the model cuts and normalises them is applied when they are searched.
        self.contract = replace(
            FeatureContract(),
            video_encoders=contract.video_encoders,
            text_encoder=contract.text_encoder,
            clip_length=contract.clip_length,
        )
        exists = (self.directory / MANIFEST).is_file()
        self._manifest: dict[str, Any] = read_index(self.directory) if exists else {}
        if exists:
            indexed = FeatureContract.from_dict(self._manifest["contract"])
            indexed_name = f"the index '{self.directory}' (made with {self._manifest['model']})"
            self.contract.require_match(indexed, self.model_name, indexed_name)

    # Building

    def update(
        self,
        folder: str | os.PathLike,
        *,
        dtype: Literal["float16", "float32"] | None = None,
        progress: Progress | None = None,
    ) -> IndexReport:
        """Makes the index agree with a folder: encodes new and changed videos and drops those that are gone.

        A file with the size and time it had is taken for the same; others are known by their content. Files that
        cannot be decoded are listed, the others go on, and they are tried again in the next run. Interrupted and run
        again, it goes on where it stopped.

        Args:
            folder: Searched with its subfolders for video files, by suffix; hidden files are left alone.
            dtype: Number type of a new index; `float16`, half the size, when left out.
            progress: Called with the file under way, the number of files done and of all to be done.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: another process writes to the index, or it holds another folder's videos.
        """
        started, root = time.perf_counter(), Path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder '{root}'")
        self._prepare(root, dtype)
        self._warn_of_no_calibration()
        report = IndexReport()
        with FeatureWriter(self._store, self.contract, dtype=self._manifest["dtype"]) as writer:
            self._remove_other_stores()
            catalog = read_catalog(self.directory / CATALOG)
            self._write_catalog(catalog)  # without a last line that a killed run left half written
            found = {path.relative_to(root).as_posix(): path.stat() for path in video_files(root)}
            fresh: dict[str, dict[str, Any]] = {}
            todo: list[str] = []
            for name, stat in found.items():
                entry = catalog.get(name, {})
                same = (entry.get("size"), entry.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns)
                if same and entry.get("key") in writer.videos:
                    fresh[name] = entry
                else:
                    todo.append(name)
            report.kept = len(fresh)
            gone = Counter(entry["key"] for name, entry in catalog.items() if "key" in entry and name not in found)
            durations = {entry["key"]: entry["duration_s"] for entry in catalog.values() if "key" in entry}
            with open(self.directory / CATALOG, "a", encoding="utf-8") as journal:
                for done, name in enumerate(todo):
                    if progress is not None:
                        progress(name, done, len(todo))
                    entry, encoded = self._encode(root / name, found[name], writer, durations)
                    journal.write(json.dumps({"path": name, **entry}) + "\n")
                    journal.flush()
                    if "error" in entry:
                        report.failed[name] = entry["error"]
                        continue
                    fresh[name] = entry
                    renamed = not encoded and name not in catalog and gone[entry["key"]] > 0
                    gone[entry["key"]] -= renamed
                    report.encoded += encoded
                    report.renamed += renamed
                    report.kept += not (encoded or renamed)
            report.removed = gone.total()
            if progress is not None and todo:
                progress("", len(todo), len(todo))
            writer.finish()
        self._write_catalog(fresh)
        self._compact({entry["key"] for entry in fresh.values()})
        self._write_manifest(complete=True)
        entries = self.entries
        report.videos, report.clips = (
            len(entries),
            sum(self.source.num_rows(entry["key"]) for entry in entries.values()),
        )
        report.bytes = sum(path.stat().st_size for path in self.directory.rglob("*") if path.is_file())
        report.seconds = time.perf_counter() - started
        return report

    def _prepare(self, root: Path, dtype: Literal["float16", "float32"] | None) -> None:
        """Starts an index, or checks that this one is of the same folder, and takes note of the model."""
        held = self._manifest
        if not held:
            remove_leftovers(self.directory)
            if self.directory.is_dir() and any(self.directory.iterdir()):
                raise ValueError(f"'{self.directory}' is neither an index nor empty: name another folder for the index")
            self.directory.mkdir(parents=True, exist_ok=True)
            held = {"store": "store-0", "dtype": dtype or "float16"}
        elif held["folder"] != str(root.resolve()):
            raise ValueError(
                f"'{self.directory}' is the index of '{held['folder']}': make another one for '{root.resolve()}'"
            )
        elif dtype is not None and dtype != held["dtype"]:
            raise ValueError(f"'{self.directory}' holds {held['dtype']} numbers, not {dtype}: make another index")
        self._manifest = {
            **held,
            "folder": str(root.resolve()),
            "model": self.model_name,
            "weights": weights_key(self.pipe.model),
            "contract": self.contract.to_dict(),
        }
        self._write_manifest(complete=False)

    def _encode(
        self, path: Path, stat: os.stat_result, writer: FeatureWriter, durations: dict[str, float]
    ) -> tuple[dict[str, Any], bool]:
        """The catalogue's entry of a file, whose features are in the store afterwards, or why there are none; and
        whether it was encoded, since its content was not known."""
        entry: dict[str, Any] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        video = None
        try:
            key = content_key(path)
            if key not in writer.videos or key not in durations:
                video = self.pipe.encode_video(path)
        except (ValueError, OSError) as error:
            return {**entry, "error": " ".join(str(error).split())}, False
        if video is not None:
            if key not in writer.videos:
                try:
                    writer.add_video(key, video.features)
                except ValueError as error:  # not OSError: a full disk is no fault of the video
                    return {**entry, "error": " ".join(str(error).split())}, False
            durations[key] = video.duration_s
        return {**entry, "key": key, "duration_s": durations[key]}, video is not None

    def _compact(self, used: set[str]) -> None:
        """Copies the features in use to a new store when most of the old one is of no use."""
        rows = {key: self.source.num_rows(key) for key in self.source.names}
        unused = sum(count for key, count in rows.items() if key not in used)
        if unused <= _MOST_UNUSED * sum(rows.values()):
            return
        number = int(self._manifest["store"].partition("-")[2]) + 1
        with FeatureWriter(self.directory / f"store-{number}", self.contract, dtype=self._manifest["dtype"]) as writer:
            for key in sorted(used):  # in the same order again after a kill
                if key not in writer.videos:
                    writer.add_video(key, self.source.read(key))
            writer.finish()
        self._manifest["store"] = f"store-{number}"
        self._write_manifest(complete=False)
        self._remove_other_stores()

    def _remove_other_stores(self) -> None:
        for path in self.directory.glob("store-*"):
            if path.name != self._manifest["store"]:
                shutil.rmtree(path)

    def _write_manifest(self, complete: bool) -> None:
        self._manifest["complete"] = complete
        self._source = self._entries = None
        write_json(self.directory / MANIFEST, {"format": FORMAT, "version": VERSION, **self._manifest})

    def _write_catalog(self, entries: dict[str, dict[str, Any]]) -> None:
        write_jsonl(({"path": name, **entry} for name, entry in sorted(entries.items())), self.directory / CATALOG)

    @property
    def _store(self) -> Path:
        return self.directory / self._manifest["store"]

    # Reading

    @property
    def source(self) -> PackedArrays:
        """The features, by content."""
        if self._source is None:
            self._source = PackedArrays(self._store, "video", read_manifest(self._store))
        return self._source

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """The catalogue: path to `key` and `duration_s` of each video."""
        if self._entries is None:
            catalog = read_catalog(self.directory / CATALOG)
            self._entries = {name: entry for name, entry in catalog.items() if "key" in entry}
        return self._entries

    @property
    def videos(self) -> list[str]:
        """Paths of the videos, relative to the folder that was indexed."""
        return sorted(self.entries)

    def video(self, name: str) -> EncodedVideo:
        """An encoded video, as the pipeline takes it."""
        entry = self.entries[name]
        return EncodedVideo(self.source.read(entry["key"]), float(entry["duration_s"]), name)

    def search(
        self,
        query: str | Sequence[str],
        top: int = 10,
        *,
        per_video: int = 1,
        batch_size: int = 64,
        prefilter: int | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """The best moments of all videos for a sentence, best first; a list of lists for several sentences.

        Args:
            query: A sentence, or several.
            top: Moments returned per sentence.
            per_video: Moments at most of one video.
            batch_size: Pairs of a window and a sentence that the model sees at once.
            prefilter: Ask the whole model about so many videos only: those with clips most similar to the sentence, by
                its dual encoder or, where it has none, by the towers of a model such as CLIP. All of them when left
                out.
            progress: Called with the number of videos done and of all.

        Returns:
            [`Hit`]s.

        Raises:
            ValueError: the index is unfinished or was made with other weights, a sentence is empty, a number is less
                than 1, or `prefilter` is given, the model has no dual encoder and its encoders share no space.
        """
        self._require_searchable()
        numbers = {"top": top, "per_video": per_video, "batch_size": batch_size, "prefilter": prefilter}
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, received {value}")
        queries = [query] if isinstance(query, str) else list(query)
        if not queries:
            raise ValueError("`query` is an empty list: pass at least one sentence")
        self._warn_of_no_calibration()
        hits: list[list[Hit]] = [[] for _ in queries]
        for asked, answers, name in self._asked(queries, prefilter, per_video, batch_size, progress):
            for i, answer in zip(asked, answers, strict=True):
                hits[i] += _hits(name, answer)
                if len(hits[i]) > 50 * top:  # no more than can be in the end
                    hits[i] = _ranked(hits[i], top)
        ranked = [_ranked(some, top) for some in hits]
        return ranked[0] if isinstance(query, str) else ranked

    def _warn_of_no_calibration(self) -> None:
        if self._warned or self.pipe.is_calibrated:
            return
        self._warned = True
        logger.warning(
            f"{self.model_name} is not calibrated: its scores of different videos are not comparable, so that moments "
            "are ranked by score times p, the probability of their frames (`bmdetr calibrate` calibrates it)"
        )

    def _require_searchable(self) -> None:
        if not self._manifest:
            raise ValueError(f"'{self.directory}' is no index: make one with `bmdetr index`")
        if not self._manifest["complete"]:
            raise ValueError(f"the index '{self.directory}' is unfinished: run `bmdetr index` again, it goes on")
        if self._manifest["weights"] != weights_key(self.pipe.model):
            raise ValueError(
                f"the index '{self.directory}' was made with {self._manifest['model']}, and {self.model_name} has "
                "other weights: run `bmdetr index` with it, which keeps the features, or search with the former"
            )

    def _asked(
        self, queries: list[str], prefilter: int | None, *how: Any
    ) -> Iterator[tuple[list[int], list[dict[str, Any]], str]]:
        """The indices of sentences that are asked of a video, its answers to them, and its name."""
        groups = [(list(range(len(queries))), self.videos)]
        if prefilter is not None and self.videos:
            kept = most_similar(self.videos, self._similarities(queries), prefilter)
            groups = [([i], names) for i, names in enumerate(kept)]
        for asked, names in groups:
            for answers, name in self._answers([queries[i] for i in asked], names, *how):
                yield asked, answers, name

    def _similarities(self, queries: list[str]) -> np.ndarray:
        """How alike each sentence and each video are at a glance, `(queries, videos)`."""
        if self.pipe.model.model.dual_encoder is not None:
            return dual_encoder_logits(self.pipe, map(self.video, self.videos), queries)
        columns = shared_columns(self.contract)
        sentences = self.pipe.processor.text_encoder.project(queries)
        rows = (self.source.read(self.entries[name]["key"])[:, columns] for name in self.videos)
        return best_similarities(rows, sentences)

    def _answers(
        self, queries: list[str], names: Sequence[str], per_video: int, batch_size: int, progress: Progress | None
    ) -> Iterator[tuple[list[dict[str, Any]], str]]:
        """Answers of these videos to all sentences; windows of several videos share batches."""
        pipe, names = self.pipe, sorted(names, key=lambda name: self.source.num_rows(self.entries[name]["key"]))
        texts: list[np.ndarray] = []
        done = 0
        for group in self._groups(names):
            prepared = []
            for name in group:
                # The sentences are encoded with the first video only.
                part = pipe.preprocess({"video": self.video(name), "queries": [] if texts else queries})
                texts = texts or part["texts"]
                prepared.append({**part, "texts": texts, "queries": queries})
            with torch.inference_mode():
                outputs = pipe.forward_together(prepared, query_batch_size=batch_size)
            for name, output in zip(group, outputs, strict=True):
                yield pipe.postprocess(output, top_k=per_video), name
            done += len(group)
            if progress is not None:
                progress("videos", done, len(names))

    def _groups(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Videos of about the same length, about `_WINDOWS_AT_ONCE` windows together."""
        group: list[str] = []
        windows, longest = 0, self.pipe.processor.contract.max_clips
        for name in names:
            group.append(name)
            windows += 1 + 2 * self.source.num_rows(self.entries[name]["key"]) // longest
            if windows >= _WINDOWS_AT_ONCE:
                yield group
                group, windows = [], 0
        if group:
            yield group


def _hits(name: str, answer: dict[str, Any]) -> list[Hit]:
    moments, p, presence = answer["moments"], answer.get("frame_probabilities"), answer.get("presence")
    weights = [1.0] * len(moments)
    if answer.get("calibrated"):
        if presence is not None:
            weights = [presence / max(1 - presence, _DOUBT)] * len(moments)
    elif moments and p is not None:
        times_s = torch.tensor([[moment["start"], moment["end"]] for moment in moments])
        spans_cxw = spans_se_to_cxw(times_s / (len(p) * answer["clip_length"]))
        weights = mean_inside(torch.tensor([p]), spans_cxw[None], torch.ones(1, len(p)))[0].tolist()
    return [
        Hit(name, **moment, presence=presence, rank_score=moment["score"] * weight)
        for moment, weight in zip(moments, weights, strict=True)
    ]


def _ranked(hits: list[Hit], top: int) -> list[Hit]:
    return sorted(hits, key=lambda hit: (-hit.rank_score, hit.video, hit.start))[:top]
