"""Simulate frame features over real annotations, and make real text features, for experiments without videos.

    python examples/simulated_features.py --benchmark charades_sta --data-dir annotations/charades_sta \
        --splits train test --limit 1400 600 --out features/charades_simulated
    python examples/simulated_features.py --rows my_train.jsonl my_test.jsonl --out features/mine_simulated

THE FRAMES ARE SIMULATED: no video is read. Figures measured on them compare variants of a model with each other; they
say nothing about a benchmark, and must never stand beside published ones. The store says so wherever it goes: its video
encoder is called `simulated-frames`, which every checkpoint trained on it carries in its feature contract.

The annotations (sentences, moments, durations) and the text features are real: one row per token, the last hidden layer
of a sentence encoder. A clip's feature is the sum of

- the content of each query that is active in it: the sentence's embedding by a fixed random projection, of length about
  `content`; boundaries are jittered by `jitter_s`; inside the moment a clip shows something irrelevant instead with the
  chance `irrelevant_inside`, and outside it a clip shows the content with the chance `leak_outside`: the weak alignment
  that the paper is about;
- a scene of length about `scene`, one for the whole video;
- noise of length about `noise`.

A video's features follow from its own rows, the options and the seed alone. Killed and run again, it goes on.

Written to `--out`: a packed feature store, `<split>.jsonl` with the rows used (negative queries mined into
`neg_query_ids`), and `simulation.json`.
"""

import argparse
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from dataset_scripts.registry import BENCHMARKS, load_benchmark
from modeling_bmdetr.contract_bmdetr import FeatureContract, clip_count, l2_normalize
from modeling_bmdetr.data import CanonicalRow, read_rows, validate_rows, write_rows
from modeling_bmdetr.data.batches.negatives import mine_negative_queries
from modeling_bmdetr.data.features.store import FeatureStore
from modeling_bmdetr.data.features.writer import FeatureWriter
from modeling_bmdetr.encoders_bmdetr import TextEncoder, build_text_encoder
from modeling_bmdetr.files_bmdetr import write_json
from modeling_bmdetr.text_encoders_bmdetr import MINILM, MINILM_ON_HUB

NOTICE = "Simulated frame features over real annotations. No video was read. Not comparable with published figures."
_SENTENCES_PER_STEP = 256
MOST_TOKENS = 256  # of a sentence


@dataclass(frozen=True)
class SimulationOptions:
    """How frames are simulated; lengths are relative to each other, as features are L2-normalised later.

    Attributes:
        video_dim: Values per clip.
        clip_length_s: Seconds per clip.
        content: Length of the content of an active query.
        scene: Length of the scene vector that all clips of a video share.
        noise: Length of the noise of a clip.
        jitter_s: Standard deviation (s) of each boundary of what is shown around the annotated one.
        irrelevant_inside: Chance that a clip inside a moment shows something else.
        leak_outside: Chance that a clip outside a moment shows its content.
        seed: Seed of everything.
    """

    video_dim: int = 256
    clip_length_s: float = 1.0
    content: float = 1.0
    scene: float = 1.0
    noise: float = 1.0
    jitter_s: float = 1.0
    irrelevant_inside: float = 0.25
    leak_outside: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.video_dim < 1 or not self.clip_length_s > 0:
            raise ValueError(
                "`video_dim` must be at least 1 and `clip_length_s` positive, received "
                f"{self.video_dim} and {self.clip_length_s}"
            )
        for name in ("content", "scene", "noise", "jitter_s"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"`{name}` must be finite and not negative, received {getattr(self, name)}")
        for name in ("irrelevant_inside", "leak_outside"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is a chance and must lie in [0, 1], received {getattr(self, name)}")


def simulate_video(
    rows: Sequence[Mapping[str, Any]], contents: Sequence[np.ndarray], options: SimulationOptions
) -> np.ndarray:
    """Simulated features of one video, `(clips, video_dim)` float32.

    Args:
        rows: The canonical rows of the video.
        contents: What each query looks like, `(video_dim,)`, of length about one; see `project_content`.
    """
    vid, duration_s = rows[0]["vid"], rows[0]["duration"]
    rng = np.random.default_rng((options.seed, zlib.crc32(vid.encode())))
    clips = clip_count(duration_s, options.clip_length_s)
    centres_s = (np.arange(clips) + 0.5) * options.clip_length_s
    frames = options.scene * _random_vectors(rng, 1, options.video_dim)
    frames = frames + options.noise * _random_vectors(rng, clips, options.video_dim)
    for row, content in zip(rows, contents, strict=True):
        inside = np.zeros(clips, dtype=bool)
        for start_s, end_s in row["relevant_windows"]:
            start_s, end_s = np.sort(rng.normal((start_s, end_s), options.jitter_s))
            inside |= (centres_s >= start_s) & (centres_s <= end_s)
            inside[np.abs(centres_s - (start_s + end_s) / 2).argmin()] = True  # a moment shows in one clip at least
        drawn = rng.random(clips)
        something_else = inside & (drawn < options.irrelevant_inside)
        shown = (inside & ~something_else) | (~inside & (drawn < options.leak_outside))
        frames[shown] += options.content * content
        frames[something_else] += options.content * _random_vectors(rng, int(something_else.sum()), options.video_dim)
    return frames.astype(np.float32)


def project_content(embeddings: np.ndarray, options: SimulationOptions) -> np.ndarray:
    """Sentence embeddings `(sentences, dim)` of length one to contents `(sentences, video_dim)` of about length one."""
    rng = np.random.default_rng((options.seed, 0))
    projection = rng.standard_normal((embeddings.shape[1], options.video_dim)) / np.sqrt(options.video_dim)
    return embeddings @ projection


def _random_vectors(rng: np.random.Generator, number: int, dim: int) -> np.ndarray:
    """`(number, dim)`, each of length about one."""
    return rng.standard_normal((number, dim)) / np.sqrt(dim)


def encode_sentences(encoder: TextEncoder, sentences: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
    """Rows of each sentence, `(tokens, dim)`, and the embeddings `(sentences, dim)`: their means, of length one."""
    tokens = encoder.encode_text(sentences, MOST_TOKENS)
    return tokens, l2_normalize(np.stack([rows.mean(axis=0) for rows in tokens]))


def simulated_contract(options: SimulationOptions, encoder: TextEncoder) -> FeatureContract:
    """The feature contract of a simulated store: the video encoder is named as what it is, with every option."""
    sentence_encoder = MINILM_ON_HUB if encoder.name == MINILM else encoder.name.removeprefix("hf:")
    video_encoder = {
        "name": "simulated-frames",
        "dim": options.video_dim,
        "notice": NOTICE,
        "sentence_encoder": sentence_encoder,
        **{name: value for name, value in asdict(options).items() if name not in ("video_dim", "clip_length_s")},
    }
    return FeatureContract(
        video_encoders=(video_encoder,),
        text_encoder={"name": f"{sentence_encoder} (last hidden layer, one row a token)", "dim": encoder.dim},
        clip_length=options.clip_length_s,
    )


def simulate_features(
    splits: Mapping[str, Sequence[CanonicalRow]],
    out_dir: str | os.PathLike,
    encoder: TextEncoder,
    options: SimulationOptions | None = None,
    *,
    progress: bool = True,
) -> FeatureStore:
    """Writes text features, simulated frame features and every split's rows (negatives mined), and opens the store.

    Args:
        splits: Rows by the name of their split; a row without moments is refused, for there is nothing to simulate.
        out_dir: The folder, continued if an earlier call with the same rows and options was interrupted.
        encoder: Makes text features and content, such as `build_text_encoder("minilm")`.

    Raises:
        ValueError: if rows are not valid or lack moments, or the folder holds a simulation of other rows.
    """
    options, out_dir = options or SimulationOptions(), Path(out_dir)
    rows = [row for split in splits.values() for row in split]
    validate_rows(rows).raise_for_errors()
    if unlabelled := [row["qid"] for row in rows if not row.get("relevant_windows")]:
        raise ValueError(f"{len(unlabelled)} rows have no `relevant_windows`, such as {unlabelled[:3]}: leave them out")
    _require_same_rows(out_dir, rows)

    videos: dict[str, list[CanonicalRow]] = {}
    for row in rows:
        videos.setdefault(row["vid"], []).append(row)
    contents: dict[str, np.ndarray] = {}
    embeddings: dict[str, np.ndarray] = {}
    with FeatureWriter(out_dir, simulated_contract(options, encoder)) as writer:
        bar = tqdm(total=len(rows), desc="sentences", unit="sentence", disable=not progress)
        for first in range(0, len(rows), _SENTENCES_PER_STEP):
            chunk = rows[first : first + _SENTENCES_PER_STEP]
            tokens, embedded = encode_sentences(encoder, [row["query"] for row in chunk])
            projected = project_content(embedded, options)
            for row, text, embedding, content in zip(chunk, tokens, embedded, projected, strict=True):
                contents[row["qid"]], embeddings[row["query"]] = content, embedding
                if row["qid"] not in writer.queries:
                    writer.add_text(row["qid"], text, row["query"])
            bar.update(len(chunk))
        bar.close()
        for vid, members in tqdm(videos.items(), desc="videos (simulated)", unit="video", disable=not progress):
            if vid not in writer.videos:
                writer.add_video(vid, simulate_video(members, [contents[row["qid"]] for row in members], options))
        writer.finish()
    # Embeddings that were computed before, in the form that mining asks for.
    lookup = SimpleNamespace(encode=lambda sentences: np.stack([embeddings[sentence] for sentence in sentences]))
    for name, split in splits.items():
        mined, report = mine_negative_queries(split, encoder=lookup, progress=False)
        if progress:
            print(f"{name}: {report}")
        write_rows(out_dir / f"{name}.jsonl", mined)
    return FeatureStore.from_packed(out_dir)


def _require_same_rows(out_dir: Path, rows: Sequence[CanonicalRow]) -> None:
    """Refuses to continue a folder with other rows, whose features would not be what the file says."""
    used = [[row["qid"], row["vid"], row["query"], row["duration"], row.get("relevant_windows")] for row in rows]
    digest = hashlib.sha256(json.dumps(used).encode()).hexdigest()[:16]
    path = out_dir / "simulation.json"
    if path.is_file() and (found := json.loads(path.read_text(encoding="utf-8"))["rows_sha256"]) != digest:
        raise ValueError(
            f"'{out_dir}' holds features simulated over other rows ({found}, these are {digest}): write to another "
            "folder, or delete this one"
        )
    write_json(path, {"notice": NOTICE, "rows": len(rows), "rows_sha256": digest})


def take_videos(rows: Sequence[CanonicalRow], limit: int, seed: int) -> list[CanonicalRow]:
    """Rows of whole videos, drawn at random, until there are `limit` rows or a few more; 0 takes all rows."""
    if limit < 0:
        raise ValueError(f"`limit` must not be negative, received {limit}")
    sizes = Counter(row["vid"] for row in rows)
    chosen, total = set(), 0
    for i in np.random.default_rng(seed).permutation(len(sizes)):
        if limit and total >= limit:
            break
        vid = list(sizes)[i]
        chosen.add(vid)
        total += sizes[vid]
    return [row for row in rows if row["vid"] in chosen]


def load_splits(
    rows_files: Sequence[str] | None, benchmark: str | None, data_dir: str | None, split_names: Sequence[str] | None
) -> dict[str, list[CanonicalRow]]:
    """Rows by split: of JSONL files (a split is named after its file), or of a benchmark's original files."""
    if (rows_files is None) == (benchmark is None):
        raise ValueError("give either `--rows FILE...` or `--benchmark NAME --data-dir DIR`")
    if rows_files is not None:
        splits = {Path(path).stem: list(read_rows(path)) for path in rows_files}
        if len(splits) != len(rows_files):
            raise ValueError(f"the files of `--rows` must have different names, received {list(rows_files)}")
        return splits
    assert benchmark is not None
    splits = load_benchmark(benchmark, data_dir, splits=split_names or None)
    return {name: [dict(row) for row in split] for name, split in splits.items()}  # type: ignore[misc]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", metavar="FILE", help="canonical rows in JSONL files, one per split")
    parser.add_argument("--benchmark", choices=sorted(BENCHMARKS), help="a benchmark whose original files you have")
    parser.add_argument("--data-dir", help="folder of the benchmark's original files")
    parser.add_argument("--splits", nargs="+", metavar="NAME", help="splits of the benchmark (default: all)")
    limit = "queries per split, whole videos"
    parser.add_argument("--limit", nargs="+", type=int, default=[0], metavar="N", help=limit)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the feature store")
    parser.add_argument("--encoder", help="name or folder of a text encoder (default: all-MiniLM-L6-v2)")
    for name, value in asdict(SimulationOptions()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    options = SimulationOptions(**{name: getattr(args, name) for name in asdict(SimulationOptions())})
    splits = load_splits(args.rows, args.benchmark, args.data_dir, args.splits)
    limits = args.limit * len(splits) if len(args.limit) == 1 else args.limit
    if len(limits) != len(splits):
        raise ValueError(f"`--limit` takes one number, or one for each of {list(splits)}; received {args.limit}")
    splits = {
        name: take_videos(rows, limit, options.seed) for (name, rows), limit in zip(splits.items(), limits, strict=True)
    }
    print(NOTICE)
    encoder = build_text_encoder(f"hf:{args.encoder}" if args.encoder else MINILM)
    store = simulate_features(splits, args.out, encoder, options)
    counts = ", ".join(f"{name}: {len(rows)} queries" for name, rows in splits.items())
    print(f"wrote {args.out}: {len(store.video_ids)} videos ({counts})")


if __name__ == "__main__":
    main()
