"""From a recipe to what the Trainer takes: rows, features, negative queries, model and arguments."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from transformers.utils import logging

from ..configuration_bmdetr import BMDetrConfig, contract_fields
from ..contract_bmdetr import FeatureContract
from ..data.batches.negatives import mine_negative_queries
from ..data.features.packed import is_packed
from ..data.features.published import count_tokens
from ..data.features.sentences import spread
from ..data.features.store import FeatureStore
from ..data.rows.jsonl import read_rows, write_rows
from ..data.rows.schema import CanonicalRow, is_labelled
from ..data.rows.validation import validate_rows
from ..modeling_bmdetr import BMDetrForMomentRetrieval
from ..training import BMDetrTrainingArguments
from .recipe import DATA, FEATURES, HELD_OUT, Recipe

logger = logging.get_logger(__name__)

BenchmarkRows: TypeAlias = Callable[[Mapping[str, Any], str], list[CanonicalRow]]
UnwrittenRows: TypeAlias = Mapping[str, Sequence[CanonicalRow]]
_benchmarks: tuple[BenchmarkRows, Callable[[str], str]] | None = None

# ---------------------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class RecipeRows:
    """Rows by role. `test` maps a split or file to its rows, `digests` every set to a hash of its rows as they were
    read, before negative queries were mined."""

    train: list[CanonicalRow]
    eval: list[CanonicalRow]
    test: dict[str, list[CanonicalRow]]
    digests: dict[str, str] = field(default_factory=dict)


def load_rows(recipe: Recipe, unwritten: UnwrittenRows | None = None) -> RecipeRows:
    """The rows that `data` names, validated. Those held out are no part of `train`.

    Args:
        unwritten: rows by the name of the file that they will be written to.
    """
    data, load = recipe.data, partial(load_set, recipe, unwritten=unwritten)
    for role in ("train", "eval"):
        if not data.get(role):
            raise ValueError(f"`data.{role}` is missing: {DATA[role]}")
    labels_of(["eval", *tests_of(recipe)])
    train = load(data["train"], limited=False)
    if data["eval"] == HELD_OUT:
        train, evaluation = hold_out(train, data.get(HELD_OUT, 0.1))
    else:
        evaluation = load(data["eval"], limited=False)
    limit, tests = data.get("limit"), {name: load(name, labelled=False) for name in tests_of(recipe)}
    train, evaluation = limited_rows(train, limit), limited_rows(evaluation, limit)
    sets = {"train": train, "eval": evaluation, **tests}
    return RecipeRows(train, evaluation, tests, {name: digest_of(rows) for name, rows in sets.items()})


def digest_of(rows: Sequence[CanonicalRow]) -> str:
    """A hash by which it is seen that rows have changed; their order counts, that of their fields does not."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def tests_of(recipe: Recipe) -> list[str]:
    """The splits or files of `data.test`."""
    tests = recipe.data.get("test") or []
    return [tests] if isinstance(tests, str) else list(tests)


def labels_of(names: Iterable[str]) -> dict[str, str]:
    """What each split or file is called in reports and files: its name, without folder and suffix.

    Raises:
        ValueError: two have the same, so that the figures of one would replace those of the other.
    """
    labels = {name: Path(name).stem for name in names}
    for label, number in Counter(labels.values()).items():
        if number > 1:
            same = [name for name in labels if labels[name] == label]
            raise ValueError(f"{', '.join(map(repr, same))} would all be reported as '{label}': rename a file")
    return labels


def load_set(
    recipe: Recipe,
    name: str,
    *,
    labelled: bool = True,
    limited: bool = True,
    unwritten: UnwrittenRows | None = None,
) -> list[CanonicalRow]:
    """One split or file by its name; for `held_out`, the part of the training rows that is held out.

    Args:
        labelled: every row must have moments.
        limited: at most `data.limit` rows.
        unwritten: as in `load_rows`.
    """
    data = recipe.data
    if name == HELD_OUT:
        whole = load_set(recipe, data["train"], limited=False, unwritten=unwritten)
        rows = hold_out(whole, data.get(HELD_OUT, 0.1))[1]
    elif data.get("benchmark"):
        rows = _known_benchmarks(data["benchmark"])[0](data, name)
    else:
        rows = list((unwritten or {}).get(name) or read_rows(name))
        validate_rows(rows, require_windows=labelled, source=name).raise_for_errors()
    return limited_rows(rows, data.get("limit") if limited else None)


def register_benchmarks(rows_of: BenchmarkRows, title_of: Callable[[str], str]) -> None:
    """Says how the rows of a benchmark's split are had from the section `data`, and what the benchmark is called."""
    global _benchmarks
    _benchmarks = (rows_of, title_of)


def title_of(recipe: Recipe) -> str:
    """What the data set is called."""
    name = recipe.data.get("benchmark")
    return _known_benchmarks(name)[1](name) if name else "own data"


def _known_benchmarks(name: str) -> tuple[BenchmarkRows, Callable[[str], str]]:
    if _benchmarks is None:
        raise ValueError(
            f"the benchmark {name!r} needs examples/train.py of the repository, or its rows in JSONL files"
        )
    return _benchmarks


def hold_out(rows: Sequence[CanonicalRow], share: float) -> tuple[list[CanonicalRow], list[CanonicalRow]]:
    """Divides rows by video: (what remains, what is held out).

    Which videos are held out follows from their names alone, so that every run, seed and machine holds out the same.
    """
    if not isinstance(share, float) or not 0 < share < 1:
        raise ValueError(f"`data.held_out` must be a share in (0, 1), received {share!r}")
    videos = sorted({row["vid"] for row in rows}, key=lambda vid: hashlib.sha256(vid.encode()).hexdigest())
    chosen = set(videos[: max(1, round(share * len(videos)))])
    return [row for row in rows if row["vid"] not in chosen], [row for row in rows if row["vid"] in chosen]


def limited_rows(rows: Sequence[CanonicalRow], limit: int | None) -> list[CanonicalRow]:
    """At most `limit` rows, evenly spread, whose negative queries are among them."""
    if limit is not None and limit < 1:
        raise ValueError(f"`data.limit` must be at least 1, received {limit}")
    return with_known_negatives(list(rows) if limit is None else spread(rows, limit))


def with_known_negatives(rows: Sequence[CanonicalRow]) -> list[CanonicalRow]:
    """The rows, without negative queries, and their weights, that are not among them."""
    qids = {row["qid"] for row in rows}
    result = []
    for row in rows:
        if (negatives := row.get("neg_query_ids")) is not None and not qids.issuperset(negatives):
            row = row.copy()
            row["neg_query_ids"] = [qid for qid in negatives if qid in qids]
            if (weights := row.get("neg_query_weights")) is not None:
                row["neg_query_weights"] = [w for qid, w in zip(negatives, weights, strict=True) if qid in qids]
        result.append(row)
    return result


# ------------------------------------------------------------------------------------------------------------ features


def open_store(recipe: Recipe, rows: RecipeRows) -> FeatureStore:
    """The features, checked against the rows."""
    options = dict(recipe.features)
    video, text, tokenizer, video_suffix = (options.pop(name, None) for name in FEATURES)
    if not video:
        raise ValueError(f"`features.video` is missing: {FEATURES['video']}")
    paths = [video] if isinstance(video, str) else list(video)
    if "video_encoders" in options:
        options["video_encoders"] = tuple(options["video_encoders"])
    everything = [*rows.train, *rows.eval, *(row for test in rows.test.values() for row in test)]
    if all(is_packed(path) for path in paths):
        # A packed store knows its encoders; the recipe may say how its rows are prepared.
        contract = replace(FeatureStore.from_packed(paths).contract, **options)
        store = FeatureStore.open(paths, contract=contract, text_dir=text)
    else:
        counts = count_tokens(everything, tokenizer) if tokenizer else None
        contract = FeatureContract(**options)
        layout = {"video_suffix": video_suffix} if video_suffix else {}
        store = FeatureStore.open(paths, text_dir=text, contract=contract, token_counts=counts, **layout)
    store.require(everything)
    return store


# ----------------------------------------------------------------------------------------------------------- negatives


def add_negatives(recipe: Recipe, rows: RecipeRows, cache_dir: str | os.PathLike) -> RecipeRows:
    """Rows with the negative queries that training needs, and evaluation if it is to have them."""
    rows = replace(rows, train=with_negatives(recipe, rows.train, cache_dir))
    if not recipe.training.get("evaluate_with_negatives"):
        return rows
    tests = {name: with_negatives(recipe, part, cache_dir) for name, part in rows.test.items()}
    return replace(rows, eval=with_negatives(recipe, rows.eval, cache_dir), test=tests)


def with_negatives(recipe: Recipe, rows: Sequence[CanonicalRow], cache_dir: str | os.PathLike) -> list[CanonicalRow]:
    """Rows with `neg_query_ids`, mined unless they have them already or are not asked for.

    Rows without moments have none: what overlaps them cannot be told.
    """
    sampling = recipe.training.get("negative_sampling", "mined")
    wanted = sampling in ("mined", "mined_only") and recipe.model.get("background_aware", True)
    if not wanted or any(row.get("neg_query_ids") is not None for row in rows):
        return list(rows)
    if not all(map(is_labelled, rows)):
        return [{**row, "neg_query_ids": []} for row in rows]
    return mined_rows(rows, recipe.negatives, cache_dir)


def mined_rows(
    rows: Sequence[CanonicalRow], options: Mapping[str, Any], cache_dir: str | os.PathLike
) -> list[CanonicalRow]:
    """Rows with the negative queries that `mine_negative_queries` finds with these options.

    Mining is done once for the same rows and options: the result is kept in `cache_dir`.
    """
    identity = [dict(options), [[row["qid"], row["vid"], row["query"], row["relevant_windows"]] for row in rows]]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    path = Path(cache_dir) / f"negatives-{digest}.jsonl"
    if path.is_file():
        return list(read_rows(path))
    mined, report = mine_negative_queries(rows, progress=False, **options)
    logger.info(str(report))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, mined)
    return mined  # type: ignore[return-value]


# -------------------------------------------------------------------------------------------------- model and training


def build_model(recipe: Recipe, contract: FeatureContract) -> BMDetrForMomentRetrieval:
    """A new model; or, with `checkpoint` in `model`, the one to train further, whose feature contract must fit.

    Raises:
        ValueError: the checkpoint was trained on other features, or `model` changes its sizes.
    """
    checkpoint = recipe.model.get("checkpoint")
    if not checkpoint:
        return BMDetrForMomentRetrieval(build_config(recipe, contract))
    trained_on = BMDetrConfig.from_pretrained(checkpoint).feature_contract
    trained_on.require_match(contract, f"the checkpoint '{checkpoint}'", "the feature store")
    options = {name: value for name, value in recipe.model.items() if name not in ("released", "checkpoint")}
    try:
        return BMDetrForMomentRetrieval.from_pretrained(checkpoint, **options)
    except RuntimeError as error:
        given = ", ".join(options)
        raise ValueError(f"`model` must keep the sizes of the checkpoint '{checkpoint}'; it changes {given}") from error


def build_config(recipe: Recipe, contract: FeatureContract) -> BMDetrConfig:
    """The model's configuration. `released: true` in `model` starts from the forms of the released code."""
    options = {name: value for name, value in recipe.model.items() if name != "checkpoint"}
    if options.pop("released", False):
        return BMDetrConfig.released(**{**contract_fields(contract), **options})
    return BMDetrConfig.from_contract(contract, **options)


def training_arguments(
    recipe: Recipe, output_dir: str | os.PathLike, seed: int | None = None
) -> BMDetrTrainingArguments:
    """The training arguments, with another output folder and perhaps another seed."""
    seeds = {} if seed is None else {"seed": seed}
    return BMDetrTrainingArguments(**{**recipe.training, **seeds, "output_dir": str(output_dir)})
