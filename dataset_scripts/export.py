"""Writes a data set as Parquet and JSONL that plain `datasets.load_dataset` reads, with a data set card.

OUT/README.md                the card; `load_dataset("OUT")` reads the Parquet files
OUT/data/<split>.parquet
OUT/jsonl/README.md          tells `load_dataset("OUT/jsonl")` which file is which split
OUT/jsonl/<split>.jsonl      the same rows for the code bases that read QVHighlights' schema
OUT/statistics.json          statistics, cleaning reports and file hashes
"""

import json
from pathlib import Path
from typing import Any

import datasets
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from tqdm.auto import tqdm

from modeling_bmdetr.data import write_rows
from modeling_bmdetr.files_bmdetr import remove_leftovers, replacing_files

from .builder import BenchmarkBuilder
from .split_statistics import builder_statistics, format_statistics, statistics_as_json

EXPORTED = ("README.md", "statistics.json", "data/*.parquet", "jsonl/*.jsonl", "jsonl/README.md")


def export(builder: datasets.DatasetBuilder, out_dir: str | Path, *, progress: bool = True) -> list[Path]:
    """Write all splits of a builder to `out_dir` and return the paths of the files written.

    JSONL files keep the type that qids have where they come from (integers in QVHighlights), so that other tools match
    them; Parquet holds strings. Fields without a value are left out of JSONL.

    The files take their places together: whatever ends the process, the folder holds the export that was there, the new
    one, or no card, and running again completes it.

    Raises:
        ValueError: `out_dir` holds files of another export, whose splits would mix with these.
    """
    out_dir = Path(out_dir)
    statistics = builder_statistics(builder)
    builder.download_and_prepare()
    splits = {str(name): part for name, part in builder.as_dataset().items()}
    for folder in ("data", "jsonl"):
        remove_leftovers(out_dir / folder)
        held = [path for path in (out_dir / folder).glob("*") if path.stem not in (*splits, "README")]
        if held:
            listed = ", ".join(sorted(path.name for path in held))
            raise ValueError(f"'{out_dir / folder}' already holds {listed}; name an empty folder.")
    integer_qids = isinstance(builder, BenchmarkBuilder) and builder.integer_qids
    record: dict[str, Any] = {"statistics": statistics_as_json(statistics)}
    if isinstance(builder, BenchmarkBuilder):
        record["cleaning"] = {name: builder.cleaning_report(name).to_dict() for name in splits}
        record["files"] = builder.file_hashes()
    written: list[str] = []
    with replacing_files(out_dir, "README.md") as aside:
        for folder in ("data", "jsonl"):
            (aside / folder).mkdir()
        for name, part in tqdm(splits.items(), desc="export", unit="split", disable=not progress):
            part.to_parquet(aside / "data" / f"{name}.parquet")
            write_rows(
                aside / "jsonl" / f"{name}.jsonl", part, integer_qids=frozenset(part["qid"]) if integer_qids else ()
            )
            written += [f"data/{name}.parquet", f"jsonl/{name}.jsonl"]
        (aside / "statistics.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        dataset_card(builder, splits, format_statistics(statistics, markdown=True)).save(aside / "README.md")
        jsonl_card = DatasetCard(_header(splits, "{}.jsonl") + "\nThe rows of the folder above as JSONL.\n")
        jsonl_card.save(aside / "jsonl" / "README.md")
    return [out_dir / name for name in (*written, "statistics.json", "README.md", "jsonl/README.md")]


def _header(splits: dict[str, datasets.Dataset], path: str, **metadata: Any) -> str:
    """The YAML header of a card: which file holds which split (`path` with the split for {}), and the features."""
    data = DatasetCardData(**metadata)
    files = [{"split": split, "path": path.format(split)} for split in splits]
    data["configs"] = [{"config_name": "default", "data_files": files}]
    info = datasets.DatasetInfo(features=next(iter(splits.values())).features)
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    return f"---\n{data.to_yaml()}\n---\n"


def dataset_card(builder: datasets.DatasetBuilder, splits: dict[str, datasets.Dataset], statistics: str) -> DatasetCard:
    """The card of an export: what it is, where it comes from, its licence, its statistics and its dirt."""
    info = builder.info
    title = getattr(builder, "TITLE", type(builder).__name__)
    header = _header(
        splits,
        "data/{}.parquet",
        language="en",
        license=getattr(builder, "HUB_LICENCE", None),
        pretty_name=title,
        tags=["video", "moment retrieval", "temporal-grounding"],
    )
    features = next(iter(splits.values())).features
    sections = [
        f"# {title}",
        info.description,
        "One row is one query about one video: `qid`, `vid`, `query`, `duration` (s) and `relevant_windows` "
        "(`[[start, end], ...]` in s)"
        + (", with `relevant_clip_ids` and `saliency_scores`." if "saliency_scores" in features else "."),
        "```python\nfrom datasets import load_dataset\n\n"
        'rows = load_dataset("REPOSITORY_OR_FOLDER")\n```\n\n'
        "The folder `jsonl` holds the same rows as JSONL.",
    ]
    if isinstance(builder, BenchmarkBuilder):
        sections += [
            "## Source and licence",
            "Made from the original annotation files, which keep the licence of their owners:",
            "\n".join(f"- `{file.name}` from {file.origin}" for file in builder.FILES if file.name in builder.files),
            f"Licence: {builder.LICENCE}.\n\nHomepage: {builder.HOMEPAGE}",
            "## How dirty rows were handled",
            _rules_section(builder),
        ]
    sections += ["## Statistics of the rows as stored", statistics]
    if info.citation:
        sections += ["## Citation", info.citation]
    return DatasetCard(header + "\n" + "\n\n".join(sections) + "\n")


def _rules_section(builder: BenchmarkBuilder) -> str:
    """What was done to dirty rows, in words; the counts of each kind stand in the statistics."""
    rules = builder.config.train_rules
    sentences = ["Reversed windows are swapped, and white space in queries is reduced to single blanks."]
    if rules.duplicates == "drop":
        sentences.append("In train, repeated rows are dropped.")
    if rules.zero_length == "drop":
        sentences.append("In train, windows of zero length are dropped.")
    if rules.past_end == "clip":
        sentences.append("In train, windows are cut at the end of the video; those wholly past it are dropped.")
    sentences.append("Everything else is as published, in the order of the original files.")
    dropped = {split: builder.cleaning_report(split).dropped_rows for split in builder.splits}
    sentences += [f"{count} rows of {split} were dropped." for split, count in dropped.items() if count]
    return " ".join(sentences)


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
    """Upload an export as a data set repository, which is made if needed, and return the address of the commit.

    Private by default: the annotations belong to others, see their licence before publishing them.
    """
    api = HfApi(token=token)
    api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=str(folder),
        allow_patterns=list(EXPORTED),
        commit_message="Upload annotations",
    )
    return commit.commit_url
