"""What the runs of `ablate.py` train and are evaluated on: simulated, rendered, or the user's own rows and features."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation_variants import PRESETS, Preset

from modeling_bmdetr.data import CanonicalRow, read_rows, write_rows
from modeling_bmdetr.data.batches.negatives import DEFAULT_ENCODER, HASHED_WORDS
from modeling_bmdetr.data.features.store import FeatureStore
from modeling_bmdetr.encoders_bmdetr import build_text_encoder
from modeling_bmdetr.recipes.preparation import mined_rows
from modeling_bmdetr.text_encoders_bmdetr import MINILM


def digest_of(value: Any) -> str:
    """A short digest of anything that JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class ExperimentData:
    """What every run of a grid trains and is evaluated on.

    Attributes:
        directory: Where negative queries that are mined for some variants are kept.
        sentence_encoder: What they are mined with.
    """

    train_rows: Sequence[CanonicalRow]
    eval_rows: Sequence[CanonicalRow]
    store: FeatureStore
    directory: Path
    sentence_encoder: str = DEFAULT_ENCODER

    def digest(self) -> str:
        """Changes when rows or the feature contract do."""
        rows = [[dict(row) for row in rows] for rows in (self.train_rows, self.eval_rows)]
        return digest_of([rows, self.store.contract.to_dict()])

    def train_rows_with(self, mining: Mapping[str, Any]) -> Sequence[CanonicalRow]:
        """The training rows, their negative queries mined with other options of `mine_negative_queries`, if any."""
        if not mining:
            return self.train_rows
        return mined_rows(self.train_rows, {"encoder": self.sentence_encoder, **mining}, self.directory)


def load_data(
    preset_name: str,
    directory: Path,
    annotations_dir: str | None = None,
    train_rows: str | None = None,
    eval_rows: str | None = None,
    features: Sequence[str] | None = None,
) -> ExperimentData:
    """The user's rows and features where given, else the preset's, which are made in `directory` once.

    Raises:
        ValueError: some of rows and features are missing, or the preset has no data of its own.
    """
    preset = PRESETS[preset_name]
    if train_rows or eval_rows or features:
        if not (train_rows and eval_rows and features):
            raise ValueError("give all three of `--train-rows`, `--eval-rows` and `--features`")
        paths = (Path(train_rows), Path(eval_rows))
        return opened(paths, FeatureStore.open(features), directory, MINILM)
    if preset.benchmark:
        return simulated_data(directory, preset, annotations_dir)
    if preset_name == "moving_shapes":
        return rendered_data(directory)
    raise ValueError(f"the preset `{preset_name}` needs `--train-rows`, `--eval-rows` and `--features`")


def opened(rows: Sequence[Path], store: FeatureStore, directory: Path, encoder: str) -> ExperimentData:
    """Data whose rows, to train and to evaluate on, lie in two files."""
    train, evaluation = (list(read_rows(path)) for path in rows)
    return ExperimentData(train, evaluation, store, directory, encoder)


def simulated_data(directory: Path, preset: Preset, data_dir: str | None) -> ExperimentData:
    """Simulates the features of a preset once; later calls open them."""
    import simulated_features as simulation

    names = ("train", preset.eval_split)
    files = [directory / f"{name}.jsonl" for name in names]
    if not all(file.is_file() for file in files):
        splits = simulation.load_splits(None, preset.benchmark, data_dir, names)
        options = simulation.SimulationOptions(**preset.simulation)
        chosen = {
            name: simulation.take_videos(splits[name], limit, options.seed)
            for name, limit in zip(names, preset.limits, strict=True)
        }
        print(simulation.NOTICE)
        simulation.simulate_features(chosen, directory, build_text_encoder(MINILM), options)
    return opened(files, FeatureStore.from_packed(directory), directory, MINILM)


def rendered_data(directory: Path) -> ExperimentData:
    """Renders moving shapes and extracts their features with the weightless encoders once; later calls open them."""
    from dataset_scripts.moving_shapes import render_moving_shapes
    from modeling_bmdetr.data import extract_features

    names = ("train", "test")
    files = [directory / f"{name}.jsonl" for name in names]
    if not all(file.is_file() for file in files):
        splits = render_moving_shapes(directory / "videos")
        rows = [row for name in names for row in splits[name]]
        extract_features(rows, directory / "videos", directory, "pixel-grid", "hashed-words", 1.0)
        for name, file in zip(names, files, strict=True):
            write_rows(file, mined_rows(splits[name], {"encoder": HASHED_WORDS}, directory))  # type: ignore[arg-type]
    return opened(files, FeatureStore.from_packed(directory), directory, HASHED_WORDS)
