"""Recipes: YAML files that say what `train.py` trains on what. Reading is strict: whatever is not known is an error.

A recipe has five sections. `SECTIONS` lists the entries of the first three; those of `model` are the fields of
`BMDetrConfig` but for its feature contract, those of `training` the fields of `BMDetrTrainingArguments`.
"""

import difflib
import hashlib
import json
import os
import re
import types
import typing
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from transformers.utils import logging

from dataset_scripts.registry import BENCHMARKS, builder_class
from modeling_bmdetr import BMDetrConfig
from modeling_bmdetr.contract_bmdetr import FeatureContract
from modeling_bmdetr.data import (
    CanonicalRow,
    FeatureStore,
    count_tokens,
    mine_negative_queries,
    read_rows,
    validate_rows,
    write_rows,
)
from modeling_bmdetr.data.features.packed import is_packed
from modeling_bmdetr.files_bmdetr import replacing_file
from modeling_bmdetr.training import BMDetrTrainingArguments

logger = logging.get_logger(__name__)

HELD_OUT = "held_out"
CONTRACT_FIELDS = tuple(field.name for field in fields(FeatureContract))
DATA = {
    "benchmark": "name of a data set of `dataset_scripts`; left out, `train`, `eval` and `test` are JSONL files",
    "data_dir": "folder of the benchmark's annotation files",
    "released_jsonl": "folder of the annotation files whose qids name the released text features (Charades only)",
    "train": "split, or JSONL file, to train on",
    "eval": f"split or file on which the best checkpoint is chosen, or `{HELD_OUT}`: a part of the training videos",
    HELD_OUT: "share of the training videos that are held out, in (0, 1)",
    "test": "list of splits or files to report at the end",
    "limit": "use only so many queries of each set, evenly spread: for a trial run",
}
FEATURES = {
    "video": "folder of the video features, or a list of folders to concatenate, or packed feature stores",
    "text": "folder of the text features, where `video` is not packed",
    "tokenizer": "tokenizer that counts the tokens of text features padded to 77 rows, for `to_end_of_text`",
    "video_suffix": "what file names of video features have after the video's, such as `-cam-002`",
}
NEGATIVES = {
    "encoder": "sentence-transformers model, by name or folder; or `hashed-words`, which compares words alone",
    "iou_threshold": "negative queries overlap the moment by less",
    "similarity_threshold": "and the cosine of the two sentences is below; null weights by similarity in place of it",
}
# Fields of the training arguments that a script must read to make them mean something; this one has `--resume`.
_FOR_OTHER_SCRIPTS = ("do_train", "do_eval", "do_predict", "resume_from_checkpoint")
SECTIONS: dict[str, Sequence[str]] = {
    "data": tuple(DATA),
    "features": (*FEATURES, *CONTRACT_FIELDS),
    "negatives": tuple(NEGATIVES),
    "model": ("released", *(name for name in BMDetrConfig.__annotations__ if name not in CONTRACT_FIELDS)),
    "training": tuple(
        field.name for field in fields(BMDetrTrainingArguments) if field.init and field.name not in _FOR_OTHER_SCRIPTS
    ),
}
# Types of entries that nothing else checks; those of `training` follow from its fields.
_TYPES: dict[str, dict[str, Any]] = {
    "data": {"limit": int | None},
    "negatives": {"encoder": str, "iou_threshold": float, "similarity_threshold": float | None},
    "training": typing.get_type_hints(BMDetrTrainingArguments),
}
# Widths follow from the features.
_DERIVED = {"video_dim": "features", "text_dim": "features"}


@dataclass(frozen=True)
class Recipe:
    """The sections of a recipe, after overrides."""

    data: dict[str, Any]
    features: dict[str, Any]
    negatives: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The sections, for the record: without an access token, since records are published with the model."""
        sections = {name: dict(getattr(self, name)) for name in SECTIONS}
        sections["training"].pop("hub_token", None)
        return sections


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are those of YAML 1.2 (`2e-4` is a number), and in which a key occurs once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if repeated := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise ValueError(f"line {node.start_mark.line + 1}: {', '.join(repeated)} occurs twice in one section")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"), list("-+0123456789.")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d+$"), list("-+0123456789"))


def read_recipe(path: str | os.PathLike, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies overrides `section.entry=value`, values in YAML.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, or holds a section, an entry or a type that is not known; all are listed at once.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no recipe '{path}'; examples/configs holds those of the benchmarks")
    content = _parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(content, dict) or not all(isinstance(section or {}, dict) for section in content.values()):
        raise ValueError(f"'{path}' must hold the sections {', '.join(SECTIONS)}, each with entries `name: value`")
    sections = {name: dict(section or {}) for name, section in content.items()}
    for override in overrides:
        target, equals, value = override.partition("=")
        section, dot, entry = target.partition(".")
        if not (equals and dot and entry):
            raise ValueError(f"--override expects section.entry=value, such as training.seed=1, received '{override}'")
        sections.setdefault(section, {})[entry] = _parse(value, f"--override {target}")
    if problems := [*_unknown(sections), *_mistyped(sections)]:
        raise ValueError(f"'{path}' with its overrides:\n  " + "\n  ".join(problems))
    return Recipe(**{name: sections.get(name, {}) for name in SECTIONS})


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # the loader is a safe one
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _unknown(sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each section and entry that is not known, with what may have been meant."""
    everywhere = {entry: section for section, entries in SECTIONS.items() for entry in entries}
    problems = []
    for section, entries in sections.items():
        if section not in SECTIONS:
            problems.append(f"unknown section `{section}`{_suggestion(section, SECTIONS)}")
            continue
        for entry in entries:
            if entry in SECTIONS[section] and not (section == "model" and entry in _DERIVED):
                continue
            if section == "model" and entry in _DERIVED:
                hint = "; it follows from the encoders in `features`"
            elif entry in everywhere:
                hint = f"; it belongs to `{everywhere[entry]}`"
            else:
                hint = _suggestion(entry, SECTIONS[section])
            problems.append(f"unknown entry `{section}.{entry}`{hint}")
    return problems


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), [*known], n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(f'`{item}`' for item in close)}?" if close else ""


def _mistyped(sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each entry of `_TYPES` whose value has another type. `BMDetrConfig` checks its own."""
    problems = []
    for section, hints in _TYPES.items():
        for name, value in sections.get(section, {}).items():
            if name not in hints:
                continue
            kinds = typing.get_args(hints[name]) if isinstance(hints[name], types.UnionType) else (hints[name],)
            if all(kind in (bool, int, float, str, types.NoneType) for kind in kinds) and not _fits(value, kinds):
                expected = " or ".join(kind.__name__ for kind in kinds)
                problems.append(f"`{section}.{name}` must be {expected}, received {value!r}")
    return problems


def _fits(value: Any, kinds: Sequence[Any]) -> bool:
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
        return True
    return type(value) in kinds


# ---------------------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class RecipeRows:
    """Rows by role. `test` maps a split or file to its rows."""

    train: list[CanonicalRow]
    eval: list[CanonicalRow]
    test: dict[str, list[CanonicalRow]]


def load_rows(recipe: Recipe) -> RecipeRows:
    """The rows that `data` names, validated. Those held out are no part of `train`."""
    data = recipe.data
    for role in ("train", "eval"):
        if not data.get(role):
            raise ValueError(f"`data.{role}` is missing: {DATA[role]}")
    labels_of(["eval", *tests_of(recipe)])
    train = load_set(recipe, data["train"], limited=False)
    if data["eval"] == HELD_OUT:
        train, evaluation = hold_out(train, data.get(HELD_OUT, 0.1))
    else:
        evaluation = load_set(recipe, data["eval"], limited=False)
    limit, tests = data.get("limit"), {name: load_set(recipe, name, labelled=False) for name in tests_of(recipe)}
    return RecipeRows(limited_rows(train, limit), limited_rows(evaluation, limit), tests)


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


def load_set(recipe: Recipe, name: str, *, labelled: bool = True, limited: bool = True) -> list[CanonicalRow]:
    """One split or file by its name; for `held_out`, the part of the training rows that is held out.

    Args:
        labelled: every row must have moments.
        limited: at most `data.limit` rows.
    """
    data = recipe.data
    if name == HELD_OUT:
        rows = hold_out(load_set(recipe, data["train"], limited=False), data.get(HELD_OUT, 0.1))[1]
    elif data.get("benchmark"):
        rows = _benchmark_rows(data, name)
    else:
        rows = list(read_rows(name))
        validate_rows(rows, require_windows=labelled, source=name).raise_for_errors()
    return limited_rows(rows, data.get("limit") if limited else None)


def _benchmark_rows(data: Mapping[str, Any], split: str) -> list[CanonicalRow]:
    if data["benchmark"] not in BENCHMARKS:
        hint = _suggestion(data["benchmark"], BENCHMARKS)
        raise ValueError(
            f"`data.benchmark` must be one of {', '.join(BENCHMARKS)}, received {data['benchmark']!r}{hint}"
        )
    if not data.get("data_dir"):
        raise ValueError(f"`data.data_dir` is missing: {DATA['data_dir']}")
    options = {"released_jsonl": data["released_jsonl"]} if data.get("released_jsonl") else {}
    builder = builder_class(data["benchmark"])(data_dir=data["data_dir"], splits=(split,), **options)
    return builder.rows(split)


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
    kept = spread(rows, limit)
    qids = {row["qid"] for row in kept}
    result = []
    for row in kept:
        if (negatives := row.get("neg_query_ids")) is not None and not qids.issuperset(negatives):
            row = row.copy()
            row["neg_query_ids"] = [qid for qid in negatives if qid in qids]
            if (weights := row.get("neg_query_weights")) is not None:
                row["neg_query_weights"] = [w for qid, w in zip(negatives, weights, strict=True) if qid in qids]
        result.append(row)
    return result


def spread(rows: Sequence[CanonicalRow], limit: int | None) -> list[CanonicalRow]:
    """At most `limit` rows, evenly spread."""
    if limit is not None and limit < 1:
        raise ValueError(f"`data.limit` must be at least 1, received {limit}")
    if limit is None or len(rows) <= limit:
        return list(rows)
    return [rows[index] for index in np.linspace(0, len(rows) - 1, limit).round().astype(int)]


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
    """Rows with `neg_query_ids`, mined unless they have them already or are not asked for."""
    sampling = recipe.training.get("negative_sampling", "mined")
    wanted = sampling in ("mined", "mined_only") and recipe.model.get("background_aware", True)
    if not wanted or any(row.get("neg_query_ids") is not None for row in rows):
        return list(rows)
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


def write_json(path: Path, content: Any) -> None:
    """Writes JSON so that the file is whole or not there, also when the process is killed while writing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(path) as file:
        file.write(json.dumps(content, indent=2) + "\n")


# -------------------------------------------------------------------------------------------------- model and training


def build_config(recipe: Recipe, contract: FeatureContract) -> BMDetrConfig:
    """The model's configuration. `released: true` in `model` starts from the forms of the released code."""
    options = dict(recipe.model)
    features = {**contract.to_dict(), "video_dim": contract.video_dim, "text_dim": contract.text_dim}
    if options.pop("released", False):
        return BMDetrConfig.released(**{**features, **options})
    return BMDetrConfig(**{**features, **options})


def training_arguments(
    recipe: Recipe, output_dir: str | os.PathLike, seed: int | None = None
) -> BMDetrTrainingArguments:
    """The training arguments, with another output folder and perhaps another seed."""
    seeds = {} if seed is None else {"seed": seed}
    return BMDetrTrainingArguments(**{**recipe.training, **seeds, "output_dir": str(output_dir)})
