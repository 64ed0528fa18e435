"""Extracts the features of a data set: every video once, every query once, into a packed folder."""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm.auto import tqdm

from ...contract_bmdetr import FeatureContract
from ...encoder_interface_bmdetr import encode_video
from ...encoders_bmdetr import (
    TextEncoder,
    VideoEncoder,
    build_text_encoder,
    build_video_encoder,
)
from ...plugins_bmdetr import import_plugins, imported_plugins
from ...processes import end_with_parent, keep_freed_memory
from ..rows.qids import text_qid
from ..rows.validation import require_fields
from .ray_engine import encode_on_ray
from .video_files import VideoFiles
from .writer import FeatureWriter

logger = logging.getLogger(__name__)

VideoEncoderSpec = str | Mapping[str, Any] | VideoEncoder
TextEncoderSpec = str | Mapping[str, Any] | TextEncoder
_SENTENCES_PER_STEP = 256


@dataclass
class ExtractionReport:
    """What an extraction did.

    Attributes:
        out_dir: the packed folder.
        videos, queries: how many the rows name.
        videos_encoded, queries_encoded: how many were encoded in this run.
        videos_present, queries_present: how many were there from an earlier run.
        failed_videos: videos without a file or whose file does not decode, with the reason.
        failed_queries: queries whose sentence cannot be encoded, with the reason.
        seconds: time taken.
    """

    out_dir: str
    videos: int = 0
    queries: int = 0
    videos_encoded: int = 0
    queries_encoded: int = 0
    videos_present: int = 0
    queries_present: int = 0
    failed_videos: dict[str, str] = field(default_factory=dict)
    failed_queries: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every video and query of the rows has features now."""
        return not self.failed_videos and not self.failed_queries

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return {**asdict(self), "complete": self.complete}

    def __str__(self) -> str:
        lines = [
            f"features in '{self.out_dir}' ({self.seconds:.1f} s)",
            f"videos: {self.videos_encoded} encoded, {self.videos_present} were there, "
            f"{len(self.failed_videos)} failed",
            f"queries: {self.queries_encoded} encoded, {self.queries_present} were there, "
            f"{len(self.failed_queries)} failed",
        ]
        lines += [f"  video {vid}: {reason}" for vid, reason in sorted(self.failed_videos.items())]
        lines += [f"  query {qid}: {reason}" for qid, reason in sorted(self.failed_queries.items())]
        return "\n".join(lines)


def extract_features(
    rows: Iterable[Mapping[str, Any]],
    video_dir: str | os.PathLike,
    out_dir: str | os.PathLike,
    video_encoder: VideoEncoderSpec | Sequence[VideoEncoderSpec],
    text_encoder: TextEncoderSpec,
    clip_length: float,
    *,
    contract: FeatureContract | None = None,
    encoder_options: Mapping[str, Any] | None = None,
    dtype: Literal["float16", "float32"] = "float32",
    workers: int = 0,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    shard: tuple[int, int] | None = None,
    progress: bool = True,
) -> ExtractionReport:
    """Encodes the videos and sentences of rows into a packed folder that [`FeatureStore.from_packed`] opens.

    A video that is missing or does not decode is counted and listed, and the others are encoded. Killed and run
    again, the extraction goes on where it stopped and tries the failed videos again; more rows can be added in the
    same way. The videos are stored whole: cutting them to a number of clips comes later, by the feature contract.

    Args:
        rows: canonical rows; `qid`, `vid` and `query` are read, and `video` where a row has it.
        video_dir: folder of the videos: `video` of the row is a path in it, else `<vid>` with a known suffix.
        out_dir: the packed folder.
        video_encoder: name, spec or encoder (see `build_video_encoder`); or several, whose rows are concatenated.
        text_encoder: name, spec or encoder.
        clip_length: seconds per clip.
        contract: how the features are to be prepared later (its encoders and clip length are replaced by those in
            use). `max_tokens` is what is stored of a sentence, rows of padding included where `text_rows` is `all`.
        encoder_options: further options of encoders that are built here, such as `{"device": "cuda"}`. An option
            that changes the features belongs in the spec.
        dtype: number type of the store.
        workers: processes that decode and encode videos; 0 does it in this one. Each builds the encoders for itself
            from a name or spec; an encoder object is pickled.
        engine: `ray` encodes the videos on a Ray cluster, with `workers` actors; see [`encode_on_ray`].
        address: of a running Ray cluster; by default one is started on this machine.
        shard: `(i, n)` encodes the i-th of n parts of the videos, from 1, and the sentences about them: the same part
            in every run. Give each shard a folder of its own; `FeatureStore.from_packed([...])` joins them.
        progress: whether to show progress bars.

    Returns:
        The report. Whether missing videos are an error is the caller's decision (`report.complete`).

    Raises:
        FileNotFoundError: if `video_dir` does not exist.
        ValueError: if rows contradict each other or what is stored, if `out_dir` holds features of another contract,
            if an encoder is unknown, or the text encoder has no rows of padding and `text_rows` asks for them.
    """
    started = time.perf_counter()
    rows = require_fields(rows, ("qid", "vid", "query"))
    folder = Path(video_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"`video_dir` '{folder}' is not a folder")
    if workers < 0:
        raise ValueError(f"`workers` must not be negative, received {workers}")
    if engine == "ray" and workers < 1:
        raise ValueError(f"`workers` must be at least 1 on a cluster, received {workers}")
    if shard is not None:
        rows = _rows_of_shard(rows, *shard)
    first_rows, sentences = _videos_of(rows), _sentences_of(rows)
    options = dict(encoder_options or {})
    if isinstance(video_encoder, (str, Mapping, VideoEncoder)):
        video_encoder = [video_encoder]
    encode = _VideoEncoding(video_encoder, options, clip_length)
    text = text_encoder if isinstance(text_encoder, TextEncoder) else build_text_encoder(text_encoder, **options)
    contract = replace(
        contract or FeatureContract(),
        video_encoders=tuple(encoder.spec() for encoder in encode.encoders()),
        text_encoder=text.spec(),
        clip_length=clip_length,
    )
    if contract.text_rows == "all":  # not every encoder can, which is to be known before anything is written
        text.encode_text(["any sentence"], contract.max_tokens, padding=True)
    report = ExtractionReport(str(out_dir), videos=len(first_rows), queries=len(sentences))
    with FeatureWriter(out_dir, contract, dtype=dtype) as writer:
        _extract_text(writer, text, sentences, report, progress)
        on_ray = partial(encode_on_ray, address=address, accelerators=_uses_accelerator(options))
        in_parallel = on_ray if engine == "ray" else _in_processes
        _extract_videos(writer, encode, first_rows, folder, report, workers, in_parallel, progress)
        writer.finish()
    report.seconds = time.perf_counter() - started
    if report.failed_videos or report.failed_queries:
        failed = f"{len(report.failed_videos)} videos and {len(report.failed_queries)} queries"
        logger.warning(f"{failed} could not be encoded; the report lists them")
    return report


def _uses_accelerator(options: Mapping[str, Any]) -> bool:
    return str(options.get("device", "cpu")).startswith("cuda")


def _rows_of_shard(rows: Sequence[Mapping[str, Any]], index: int, count: int) -> list[Mapping[str, Any]]:
    """The rows about one part of the videos, told from their names alone."""
    if not 1 <= index <= count:
        raise ValueError(f"`shard` must be (i, n) with 1 <= i <= n, received {(index, count)}")
    parts = {row["vid"]: int(hashlib.sha256(row["vid"].encode()).hexdigest(), 16) % count for row in rows}
    return [row for row in rows if parts[row["vid"]] == index - 1]


def _videos_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The first row of each video; rows of one video must not name different files."""
    first_rows: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        first = first_rows.setdefault(row["vid"], row)
        if first.get("video") != row.get("video"):
            raise ValueError(
                f"rows of video '{row['vid']}' name different files: '{first.get('video')}' (qid {first['qid']}) and "
                f"'{row.get('video')}' (qid {row['qid']})"
            )
    return first_rows


def _sentences_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    sentences: dict[str, str] = {}
    for row in rows:
        first = sentences.setdefault(text_qid(row), row["query"])
        if first != row["query"]:
            raise ValueError(
                f"qid '{text_qid(row)}' has two sentences, {first!r} and {row['query']!r}: qids must be distinct"
            )
    return sentences


# ---------------------------------------------------------------------------------------------------------------- text


def _extract_text(
    writer: FeatureWriter, encoder: TextEncoder, sentences: Mapping[str, str], report: ExtractionReport, progress: bool
) -> None:
    """Encodes each different sentence once and stores it for every query that has it."""
    queries_of: dict[str, list[str]] = {}
    for qid, sentence in sentences.items():
        if qid not in writer.queries:
            queries_of.setdefault(sentence, []).append(qid)
        elif writer.queries[qid] not in (None, sentence):
            raise ValueError(
                f"'{writer.directory}' has features of qid '{qid}' for the sentence {writer.queries[qid]!r}, but the "
                f"row says {sentence!r}: write to another folder, or give the rows other qids"
            )
        else:
            report.queries_present += 1
    # Sentences of similar length are encoded together: little padding.
    todo = sorted(queries_of, key=lambda sentence: (len(sentence), sentence))
    with tqdm(total=len(todo), desc="sentences", unit="sentence", disable=not progress) as bar:
        for first in range(0, len(todo), _SENTENCES_PER_STEP):
            chunk = todo[first : first + _SENTENCES_PER_STEP]
            for sentence, features in zip(chunk, _encode_sentences(encoder, chunk, writer.contract), strict=True):
                for qid in queries_of[sentence]:
                    if isinstance(features, str):
                        report.failed_queries[qid] = features
                    else:
                        writer.add_text(qid, features, sentence)
                        report.queries_encoded += 1
            bar.update(len(chunk))
    writer.commit()


def _encode_sentences(encoder: TextEncoder, chunk: list[str], contract: FeatureContract) -> list[np.ndarray | str]:
    """Rows of each sentence, or why it has none: one bad sentence does not spoil its neighbours."""
    try:
        padding = {"padding": True} if contract.text_rows == "all" else {}
        return list(encoder.encode_text(chunk, contract.max_tokens, **padding))
    except (ValueError, TypeError) as error:
        if len(chunk) == 1:
            return [str(error)]
        return [result for sentence in chunk for result in _encode_sentences(encoder, [sentence], contract)]


# -------------------------------------------------------------------------------------------------------------- videos


class _VideoEncoding:
    """Encodes video files; goes to worker processes as specs and builds the encoders there."""

    def __init__(self, specs: Sequence[VideoEncoderSpec], options: Mapping[str, Any], clip_length: float) -> None:
        self.specs, self.options, self.clip_length = list(specs), dict(options), clip_length
        self.decode_threads = 0  # as many as there are cores
        self._built: list[VideoEncoder] | None = None

    def encoders(self) -> list[VideoEncoder]:
        if self._built is None:
            if not _uses_accelerator(self.options):
                keep_freed_memory()
            self._built = [
                spec if isinstance(spec, VideoEncoder) else build_video_encoder(spec, **self.options)
                for spec in self.specs
            ]
        return self._built

    def __call__(self, path: Path) -> np.ndarray | str:
        """Rows of a video, or why it has none."""
        encoders = self.encoders()  # an encoder that cannot be built is not the video's fault
        try:
            return encode_video(path, encoders, self.clip_length, decode_threads=self.decode_threads).features
        except (ValueError, OSError) as error:
            return str(error)

    def release(self) -> None:
        """Frees what was built from specs; it is built again when needed."""
        self._built = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_built": None, "_plugins": imported_plugins()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import_plugins(state.pop("_plugins"))
        self.__dict__.update(state)


def _extract_videos(
    writer: FeatureWriter,
    encode: _VideoEncoding,
    first_rows: Mapping[str, Mapping[str, Any]],
    folder: Path,
    report: ExtractionReport,
    workers: int,
    in_parallel: Callable[..., Iterator[tuple[str, np.ndarray | str]]],
    progress: bool,
) -> None:
    todo: list[tuple[str, Path]] = []
    files = VideoFiles([folder])
    for vid, row in first_rows.items():
        if vid in writer.videos:
            report.videos_present += 1
        elif (path := files.find(row)) is not None:
            todo.append((vid, path))
        else:
            report.failed_videos[vid] = files.missing(row)
    results: Iterator[tuple[str, np.ndarray | str]]
    if workers and todo:
        encode.release()
        results = in_parallel(encode, todo, workers)
    else:
        results = ((vid, encode(path)) for vid, path in todo)
    with tqdm(total=len(todo), desc="videos", unit="video", disable=not progress) as bar:
        for vid, features in results:
            if isinstance(features, str):
                report.failed_videos[vid] = features
            else:
                try:
                    writer.add_video(vid, features)
                    report.videos_encoded += 1
                except ValueError as error:  # not finite, or too large for float16
                    report.failed_videos[vid] = str(error)
            bar.set_postfix(failed=len(report.failed_videos), refresh=False)
            bar.update()
    for vid, reason in report.failed_videos.items():
        writer.add_failure(vid, reason)


_worker_encode: _VideoEncoding | None = None


def _start_worker(encode: _VideoEncoding, threads: int) -> None:
    end_with_parent()
    import torch

    global _worker_encode
    torch.set_num_threads(threads)
    encode.decode_threads = threads
    _worker_encode = encode


def _encode_in_worker(path: Path) -> np.ndarray | str:
    if _worker_encode is None:
        raise RuntimeError("the worker was not started by `_start_worker`")
    return _worker_encode(path)


def _in_processes(
    encode: _VideoEncoding, todo: Sequence[tuple[str, Path]], workers: int
) -> Iterator[tuple[str, np.ndarray | str]]:
    """Results as they come. A decoder that takes its process down costs one video, not the run: whatever was under way
    then is done again, one video per process, and the one that does it again is the culprit."""
    waiting = list(reversed(todo))
    while waiting:
        suspects: list[tuple[str, Path]] = []
        with _pool(encode, min(workers, len(waiting))) as pool:
            running: dict[Future, tuple[str, Path]] = {}
            while (waiting or running) and not suspects:
                try:
                    while waiting and len(running) < 2 * workers:
                        running[pool.submit(_encode_in_worker, waiting[-1][1])] = waiting[-1]
                        waiting.pop()
                except BrokenProcessPool:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    item = running.pop(future)
                    try:
                        yield item[0], future.result()
                    except BrokenProcessPool:
                        suspects.append(item)
            suspects += running.values()
        for vid, path in suspects:
            with _pool(encode, 1) as pool:
                try:
                    yield vid, pool.submit(_encode_in_worker, path).result()
                except BrokenProcessPool:
                    yield vid, f"decoding '{path}' ended its process: the file is damaged, or memory ran out"


def _pool(encode: _VideoEncoding, workers: int) -> ProcessPoolExecutor:
    """A pool whose processes have been started, all at once, and of which the first is known to run."""
    # A fresh interpreter in each: a process forked with threads or an accelerator in use may hang.
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (encode, threads))
    try:
        starts = [pool.submit(os.getpid) for _ in range(workers)]
        starts[0].result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "worker processes cannot start (their own message is above): a script must call `extract_features` under "
            '`if __name__ == "__main__":`; or pass `workers=0`'
        ) from error
    return pool
