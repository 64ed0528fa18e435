"""Recipes: YAML files that say what is trained on what. Reading is strict: whatever is not known is an error.

A recipe has five sections. `SECTIONS` lists the entries of the first three; those of `model` are the fields of
`BMDetrConfig` but for its feature contract, those of `training` the fields of `BMDetrTrainingArguments`. Beside them,
`import` lists modules that register encoders and losses.
"""

import difflib
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from ..configuration_bmdetr import BMDetrConfig
from ..contract_bmdetr import FeatureContract
from ..plugins_bmdetr import import_plugins, require_loss
from ..training import BMDetrTrainingArguments

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
    "encoder": "sentence-transformers model by name or folder, `minilm`, or `hashed-words`, which compares words alone",
    "iou_threshold": "negative queries overlap the moment by less",
    "similarity_threshold": "and the cosine of the two sentences is below; null weights by similarity in place of it",
}
MODEL = {
    "released": "true starts from the forms of the released code",
    "checkpoint": "folder or name of a checkpoint to train further; fields given beside it replace its own",
}
# Fields of the training arguments that a script must read to make them mean something; this one has `--resume`.
_FOR_OTHER_SCRIPTS = ("do_train", "do_eval", "do_predict", "resume_from_checkpoint")
SECTIONS: dict[str, Sequence[str]] = {
    "data": tuple(DATA),
    "features": (*FEATURES, *CONTRACT_FIELDS),
    "negatives": tuple(NEGATIVES),
    "model": (
        *MODEL,
        *(name for name in BMDetrConfig.__annotations__ if name not in CONTRACT_FIELDS),
    ),
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
    imports: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The sections, for the record: without an access token, since records are published with the model."""
        sections = {name: dict(getattr(self, name)) for name in SECTIONS}
        sections["training"].pop("hub_token", None)
        return {"import": list(self.imports), **sections} if self.imports else sections


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
    """Reads a recipe, applies overrides `section.entry=value`, values in YAML, and imports the modules it lists.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a module of `import` does not import.
        ValueError: it is not YAML, or holds a section, an entry or a type that is not known; all are listed at once.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no recipe '{path}'; examples/configs holds those of the benchmarks")
    return make_recipe(_parse(path.read_text(encoding="utf-8"), str(path)), path, overrides)


def make_recipe(content: Any, path: str | os.PathLike, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of what a file at `path` holds, or is to hold; errors as in `read_recipe`."""
    content = dict(content) if isinstance(content, dict) else content
    imports = content.pop("import", None) or [] if isinstance(content, dict) else []
    if not isinstance(imports, list) or not all(isinstance(module, str) for module in imports):
        raise ValueError(f"`import` of '{path}' must be a list of modules, such as [my_losses], received {imports!r}")
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
    import_plugins(imports)
    if (loss := sections.get("model", {}).get("loss")) is not None:
        require_loss(loss)
    return Recipe(**{name: sections.get(name, {}) for name in SECTIONS}, imports=tuple(imports))


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
            problems.append(f"unknown section `{section}`{suggestion(section, SECTIONS)}")
            continue
        for entry in entries:
            if entry in SECTIONS[section] and not (section == "model" and entry in _DERIVED):
                continue
            if section == "model" and entry in _DERIVED:
                hint = "; it follows from the encoders in `features`"
            elif entry in everywhere:
                hint = f"; it belongs to `{everywhere[entry]}`"
            else:
                hint = suggestion(entry, SECTIONS[section])
            problems.append(f"unknown entry `{section}.{entry}`{hint}")
    return problems


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the known names near `name`, or nothing."""
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
