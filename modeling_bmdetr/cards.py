"""The model card of a checkpoint, written from its configuration and a record of results.

Every figure in a card comes from one of the two. A record is a dict, or a JSON file of one, with any of these keys:

    metrics     flat dict of figures, as `evaluate_submission` returns them
    dataset     `{"name": ..., "id": ..., "split": ...}` of the rows that the metrics are of
    baselines   dict of other systems' metrics on the same rows, by name
    data        what the model was trained and evaluated on: `{"train": {"videos": ..., "queries": ...}, ...}`
    training    dict of training arguments
    seed        of the run
    versions    of the libraries, by name
    examples    two sentences to show how the model is asked
    converted   of converted weights: `{"from": file, "parameters": count, "dropped": count}`
    license, language, repo_id      what the card's header says where the caller does not

Names and sentences in a record are text, whatever they contain: none of it becomes Markdown, HTML, YAML or Python.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from .calibration_bmdetr import as_calibration, calibration_lines
from .configuration_bmdetr import BMDetrConfig, FeatureContract
from .contract_bmdetr import is_number
from .encoders_bmdetr import CLIP_PREFIX, MINILM, PRETRAINED_PREFIX, WEIGHTLESS_VIDEO_ENCODERS, HashedWordTextEncoder
from .files_bmdetr import replacing_file
from .saving_bmdetr import CARD_FILE, TASK
from .tables import markdown_text

TEMPLATE = Path(__file__).parent / "model_card_template.md"
TAGS = ["moment-retrieval", TASK, "highlight-detection", "bmdetr", "video"]
MAIN_METRICS = ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU", "mAP")
THIS_MODEL = "this model"
ANY_REPOSITORY = "PATH_OR_REPOSITORY"
EXAMPLES = ("she opens the door", "a dog barks")
RUNNABLE_ENCODERS = (
    *(*WEIGHTLESS_VIDEO_ENCODERS, HashedWordTextEncoder.name, MINILM),
    *(CLIP_PREFIX, PRETRAINED_PREFIX, "timm:"),
)
_STATED_ELSEWHERE = frozenset(FeatureContract.__dataclass_fields__) | {
    *("video_dim", "text_dim", "hidden_size", "encoder_layers", "decoder_layers", "num_attention_heads"),
    *("intermediate_size", "num_queries", "model_type", "calibration"),
}
# Parts of a record that are dicts.
_SECTIONS = ("metrics", "dataset", "baselines", "data", "training", "versions", "converted")

Record = Mapping[str, Any]


def write_model_card(
    model: PreTrainedModel, folder: str | os.PathLike, results: Record | str | os.PathLike | None = None, **options: Any
) -> Path:
    """Writes a model's card to `README.md` in `folder` and returns its path; `options` as in `render_model_card`."""
    card = render_model_card(cast(BMDetrConfig, model.config), results, parameters=model.num_parameters(), **options)
    path = Path(folder) / CARD_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(path) as file:
        file.write(str(card))
    return path


def renew_calibration(folder: str | os.PathLike, before: BMDetrConfig, model: PreTrainedModel) -> None:
    """Has the card in a folder, if there is one, say of the calibration what is true of `model`.

    What else the card says, and what is not in the words of this package, stays.

    Args:
        before: The configuration of which the card was written.
    """
    path = Path(folder) / CARD_FILE
    if not path.is_file():
        return
    text, parameters = path.read_text(encoding="utf-8"), model.num_parameters()
    configs = (before, cast(BMDetrConfig, model.config))
    old, new = (str(render_model_card(config, parameters=parameters)).splitlines(keepends=True) for config in configs)
    for _, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if a < b:
            text = text.replace("".join(old[a:b]), "".join(new[c:d]))
    with replacing_file(path) as file:
        file.write(text)


def render_model_card(
    config: BMDetrConfig,
    results: Record | str | os.PathLike | None = None,
    *,
    parameters: int,
    repo_id: str | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    tags: Sequence[str] = (),
) -> ModelCard:
    """The card of a checkpoint. The same arguments give the same card, to the byte.

    Args:
        config: Configuration of the model.
        results: Record of results, or the path of its JSON file; the head of this module lists its keys.
        parameters: Number of the model's parameters.
        repo_id: Repository named in the examples.
        license, language: Entries of the card's header. Without a licence the card says that none is stated.
        tags: Further tags.

    Raises:
        ValueError: the record is no dict, or a part of it is not what the head of this module says.
    """
    record = read_record(results)
    dataset = {"name": "unnamed data", **(record.get("dataset") or {})}
    metrics = record.get("metrics") or {}
    repo_id, license = repo_id or record.get("repo_id"), license or record.get("license")
    sentence, other_sentence = record.get("examples") or EXAMPLES
    contract, calibration = config.feature_contract, as_calibration(config.calibration)
    encoders = [*contract.video_encoders, *([contract.text_encoder] if contract.text_encoder else [])]
    runnable = bool(contract.video_encoders) and bool(contract.text_encoder)
    results_listed = eval_results(metrics, dataset)
    header = ModelCardData(
        library_name="transformers",
        license=license,
        language=language or record.get("language"),  # type: ignore[arg-type]
        tags=[*TAGS, *(tag for tag in tags if tag not in TAGS)],
        datasets=[dataset["id"]] if "/" in dataset.get("id", "") else None,
        model_name=(repo_id or "BM-DETR").rpartition("/")[2] if results_listed else None,
        eval_results=results_listed or None,
    )
    return ModelCard.from_template(
        header,
        template_path=str(TEMPLATE),
        title=_title(record, dataset),
        converted=_converted(record.get("converted")),
        config=config,
        parameters=f"{parameters:,}",
        repo_id=json.dumps(repo_id or ANY_REPOSITORY),
        sentence=json.dumps(str(sentence)),
        other_sentence=json.dumps(str(other_sentence)),
        encodes_raw_video=runnable and all(encoder["name"].startswith(RUNNABLE_ENCODERS) for encoder in encoders),
        contract=contract_rows(config),
        is_calibrated=calibration is not None and calibration.score is not None,
        calibration=[markdown_text(line) for line in calibration_lines(calibration)],
        evaluated_on=_evaluated_on(dataset, record.get("data") or {}),
        main_metrics=_main_metrics(metrics),
        systems=systems(metrics, record.get("baselines") or {}),
        all_metrics=[(_code(name), value) for name, value in metrics.items()],
        training=training_rows(record),
        differences=_differences(config),
        clip_length=f"{contract.clip_length:g}",
        long_video=_long_video(contract),
        license=license,
    )


def read_record(results: Record | str | os.PathLike | None) -> dict[str, Any]:
    """A record of results from a dict or a JSON file; empty for None.

    Raises:
        ValueError: see `render_model_card`.
    """
    if isinstance(results, (str, os.PathLike)):
        results = json.loads(Path(results).read_text(encoding="utf-8"))
    if results is not None and not isinstance(results, Mapping):
        raise ValueError(f"`results` must be a dict with keys such as 'metrics', received {type(results).__name__}")
    record = {name: value for name, value in (results or {}).items() if value is not None}
    _check_record(record)
    # Scalars of NumPy would become tags of Python in the header.
    record["metrics"] = {name: float(value) for name, value in record.get("metrics", {}).items()}
    record["dataset"] = {name: value and str(value) for name, value in record.get("dataset", {}).items()}
    return record


def _check_record(record: Record) -> None:
    """Raises `ValueError` by name where a part of a record is not what the head of this module says."""
    for section in _SECTIONS:
        entries = record.get(section, {})
        if not isinstance(entries, Mapping) or not all(isinstance(key, str) for key in entries):
            raise ValueError(f"`{section}` must be a dict by name, received {entries!r}")
    for system, metrics in {**record.get("baselines", {}), "metrics": record.get("metrics", {})}.items():
        if not isinstance(metrics, Mapping):
            raise ValueError(f"`{system}` must be a flat dict of figures, received {metrics!r}")
        for name, value in metrics.items():
            if not isinstance(name, str) or not (isinstance(value, float) or is_number(value)):
                raise ValueError(f"`{system}` must be a flat dict of figures, received {value!r} for {name!r}")
    named = record.get("dataset", {}).items()
    texts: dict[Any, Any] = {f"dataset.{name}": value for name, value in named if value is not None}
    texts |= {name: record[name] for name in ("repo_id", "license") if name in record}
    languages = record.get("language", [])
    texts |= dict(enumerate(languages)) if isinstance(languages, list) else {"language": languages}
    for name, value in texts.items():
        if not isinstance(value, str):
            what = f"an entry of `language` ({name})" if isinstance(name, int) else f"`{name}`"
            raise ValueError(f"{what} must be a text, received {value!r}")
    examples = record.get("examples", ())
    if not isinstance(examples, (list, tuple)) or len(examples) not in (0, 2):
        raise ValueError(f"`examples` must be two sentences, received {examples!r}")
    if (converted := record.get("converted")) and not converted.keys() >= {"from", "parameters", "dropped"}:
        raise ValueError(f"`converted` must have `from`, `parameters` and `dropped`, received {sorted(converted)}")


def eval_results(metrics: Mapping[str, float], dataset: Mapping[str, str]) -> list[EvalResult]:
    """The metrics of retrieval (`MR-`) and of highlights (`HL-`) as entries of the header's `model-index`."""
    tasks = {"MR": (TASK, "Moment retrieval"), "HL": ("highlight-detection", "Highlight detection")}
    return [
        EvalResult(
            task_type=tasks[name[:2]][0],
            task_name=tasks[name[:2]][1],
            dataset_type=dataset.get("id", dataset["name"]),
            dataset_name=dataset["name"],
            dataset_split=dataset.get("split"),
            metric_type=name,
            metric_name=name,
            metric_value=value,
        )
        for name, value in metrics.items()
        if name.startswith(("MR-", "HL-"))
    ]


def systems(metrics: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]) -> list[tuple[str, list[str]]]:
    """Rows of the table of results: this model, then each baseline, in the columns of `_main_metrics`."""
    columns = [f"MR-full-{name}" for name in _main_metrics(metrics)]
    rows = {THIS_MODEL: metrics, **baselines} if columns else {}
    return [
        (markdown_text(name), [f"{values[column]:.2f}" if column in values else "" for column in columns])
        for name, values in rows.items()
    ]


def contract_rows(config: BMDetrConfig) -> list[tuple[str, str]]:
    """The feature contract in words."""
    contract = config.feature_contract
    video = " + ".join(_encoder(encoder, "clip") for encoder in contract.video_encoders)
    text = _encoder(contract.text_encoder, "token") if contract.text_encoder else ""
    longest_s = contract.max_clips * contract.clip_length
    rows = [
        ("video encoders", video or f"not named; {config.video_dim} values per clip"),
        ("text encoder", text or f"not named; {config.text_dim} values per token"),
        ("clip", f"{contract.clip_length:g} s"),
        ("longest video read at once", f"{contract.max_clips} clips, {longest_s:g} s"),
        ("longer videos", f"`{contract.long_video}`"),
        ("longest sentence", f"{contract.max_tokens} tokens; the rest is cut"),
        ("video rows", "L2-normalised, each encoder's part by itself" if contract.normalize_video else "as they are"),
        ("text rows", "L2-normalised" if contract.normalize_text else "as they are"),
        ("start and end of each clip", "appended by the model" if contract.endpoint_features else "not used"),
    ]
    if contract.text_rows == "all":
        rows.append(("padding rows of the text encoder", "kept, as in the released features"))
    return rows


def training_rows(record: Record) -> list[tuple[str, str]]:
    """Data, arguments, seed and versions of a record, one row each."""
    rows = [(_code(name), _words(value)) for name, value in (record.get("training") or {}).items()]
    data = "; ".join(
        f"{markdown_text(split)}: {_words(counts)}" for split, counts in (record.get("data") or {}).items()
    )
    versions = ", ".join(markdown_text(f"{name} {version}") for name, version in (record.get("versions") or {}).items())
    seed = _words(record["seed"]) if "seed" in record else ""
    return [*([("data", data)] if data else []), *rows] + [
        (name, value) for name, value in (("seed", seed), ("versions", versions)) if value
    ]


def _main_metrics(metrics: Mapping[str, float]) -> list[str]:
    return [name for name in MAIN_METRICS if f"MR-full-{name}" in metrics]


def _words(value: Any) -> str:
    """A value of a record for a cell of a table."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(inner)} {markdown_text(name)}" for name, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_words(inner) for inner in value)
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else markdown_text(value)
    )


def _encoder(encoder: Mapping[str, Any], unit: str) -> str:
    options = "".join(
        f", {markdown_text(f'{name} {value}')}" for name, value in encoder.items() if name not in ("name", "dim")
    )
    return f"{_code(encoder['name'])} ({encoder['dim']} values per {unit}{options})"


def _code(value: Any) -> str:
    """The text as code in a cell of a table."""
    text = " ".join(str(value).split()).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if text.startswith("`") or text.endswith("`") else f"{fence}{text}{fence}"


def _evaluated_on(dataset: Mapping[str, str], data: Mapping[str, Any]) -> str:
    split = dataset.get("split")
    counts = data.get(split) if split else None
    part = f", {markdown_text(split)}" if split else ""
    return f"{markdown_text(dataset['name'])}{part}" + (f" ({_words(counts)})" if isinstance(counts, Mapping) else "")


def _title(record: Record, dataset: Mapping[str, str]) -> str:
    if record.get("converted"):
        return "BM-DETR, converted from the authors' release"
    return (
        f"BM-DETR trained on {markdown_text(dataset['name'])}"
        if record.get("dataset")
        else "BM-DETR for moment retrieval"
    )


def _converted(conversion: Mapping[str, Any] | None) -> str:
    """What the card says of weights that were converted."""
    if not conversion:
        return ""
    return (
        f"The weights were converted from {_code(conversion['from'])}, a checkpoint of the code that the authors of "
        f"the paper released; they are theirs and keep their licence. {conversion['parameters']} parameters were "
        f"converted, and {conversion['dropped']} that no output depends on were dropped."
    )


def _differences(config: BMDetrConfig) -> str:
    """Fields that are not the library's defaults, without those that the card states elsewhere."""
    default = BMDetrConfig()
    values = {name: getattr(config, name) for name in BMDetrConfig.__annotations__ if name not in _STATED_ELSEWHERE}
    changed = {name: value for name, value in values.items() if value != getattr(default, name)}
    return ", ".join(f"`{name}={value}`" for name, value in changed.items())


def _long_video(contract: FeatureContract) -> str:
    longest_s = f"{contract.max_clips * contract.clip_length:g} s"
    return {
        "truncate": f"Only the first {longest_s} of a longer video are searched, unless the pipeline is told "
        '`long_video="window"`.',
        "resample": f"Videos longer than {longest_s} are pooled to {contract.max_clips} clips: spans are coarser.",
        "window": f"The pipeline searches a video longer than {longest_s} in overlapping windows; a moment longer than "
        "a window cannot be found.",
    }[contract.long_video]
