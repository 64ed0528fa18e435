"""The grid of `ablate.py`: named variants of BM-DETR, by table, and the presets they run on.

A variant names only what differs from the reference, the package's defaults on a preset's sizes and schedule. Tables
and figures are those of the paper (arXiv:2306.02728); those without a number are ours.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from modeling_bmdetr.configuration_bmdetr import WITHOUT_RANKING


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Attributes:
        name: Names the row on the command line and its result files.
        table: The table it belongs to, a key of `TABLES`.
        label: What the row says in the table.
        model: Fields of `BMDetrConfig` that differ from the reference.
        training: Fields of `BMDetrTrainingArguments` that differ.
        mining: Options of `mine_negative_queries`, where negative queries are mined otherwise than the data's.
    """

    name: str
    table: str
    label: str
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    mining: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    """Sizes and schedule, small enough for a CPU where it says so.

    Attributes:
        description: What it needs and what it takes.
        model: Fields of `BMDetrConfig`.
        training: Fields of `BMDetrTrainingArguments`.
        benchmark: The benchmark whose annotations frames are simulated over, or None.
        simulation: Fields of `SimulationOptions`.
        limits: Training and evaluation queries of the simulation.
        eval_split: The benchmark's split to evaluate on.
    """

    description: str
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    benchmark: str | None = None
    simulation: dict[str, Any] = field(default_factory=dict)
    limits: tuple[int, int] = (0, 0)
    eval_split: str = "test"


TABLES: dict[str, str] = {
    "reference": "Reference",
    "objective": "Background-aware objectives: weights of L_prob on the joint probability, on P(f|Q+) and on P(f|Q-)",
    "ranking": "Ranking: where spans start and learn, and what they are ranked by",
    "forms": "Forms of Eq. 8: what the decoder reads, and how frame attention scales",
    "alignment": "Paper or released: semantic alignment (Eq. 9-10, 17)",
    "components": "Components (Table 7)",
    "losses": "Losses (Table 8)",
    "sampling": "Sampling of negative queries (Figure 3, left)",
    "limits": "Few usable negative queries: several of them, weights in place of a threshold, other videos",
    "shifting": "Temporal shifting (Figure 3, right)",
}

REFERENCE = "reference"
# Tables that are held against a row of their own: presets may leave temporal shifting out of the reference.
_OWN_REFERENCES = {"components": "components_bmd_fs_ls_ts"}
_NO_NEGATIVES = {"negative_sampling": "none"}
_COMPONENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # component -> what switches it off
    "bmd": ({"background_aware": False}, {}),
    "fs": ({"alignment_loss_weight": 0.0}, {}),
    "ls": ({"learnable_spans": False}, {}),
    "ts": ({}, {"temporal_shifting": False}),
}
_LOSSES: dict[str, dict[str, Any]] = {  # loss of Table 8 -> what switches it off
    "l": {"class_loss_weight": 0.0, "l1_loss_weight": 0.0, "giou_loss_weight": 0.0},
    "lm": {"margin_loss_weight": 0.0},
    "ls": {"alignment_loss_weight": 0.0},
    "lp": {
        "probability_loss_weight": 0.0,
        "positive_probability_loss_weight": 0.0,
        "negative_probability_loss_weight": 0.0,
    },
}


def _objective(joint: float, positive: float, negative: float) -> Variant:
    name = f"objective_{joint:g}_{positive:g}_{negative:g}".replace(".", "p")
    note = " (the paper's)" if positive == negative == 0 else ""
    weights = {
        "probability_loss_weight": joint,
        "positive_probability_loss_weight": positive,
        "negative_probability_loss_weight": negative,
    }
    return Variant(name, "objective", f"joint {joint:g}, positive {positive:g}, negative {negative:g}{note}", weights)


def _only_components(kept: Sequence[str]) -> Variant:
    model: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for component, (model_off, training_off) in _COMPONENTS.items():
        if component not in kept:
            model.update(model_off)
            training.update(training_off)
    training.setdefault("temporal_shifting", True)
    label = " + ".join(component.upper() for component in kept) or "all off"
    return Variant(f"components_{'_'.join(kept) or 'none'}", "components", label, model, training)


def _only_losses(kept: Sequence[str]) -> Variant:
    off = {name: weight for loss, weights in _LOSSES.items() if loss not in kept for name, weight in weights.items()}
    label = " + ".join({"l": "L", "lm": "L_m", "ls": "L_s", "lp": "L_p"}[loss] for loss in kept)
    return Variant(f"losses_{'_'.join(kept)}", "losses", label, off)


def _variants() -> list[Variant]:
    """The grid, the most telling rows of each table first."""
    heavy = {"positive_probability_loss_weight": 4.0}
    grid = [
        Variant(REFERENCE, "reference", "the package's defaults"),
        Variant("no_negatives", "objective", "no negative queries", {}, _NO_NEGATIVES),
        _objective(2, 0, 0),
        _objective(0, 2, 2),
        _objective(2, 2, 0),
        _objective(0, 2, 1),
        _objective(2, 2, 1),
        _objective(2, 2, 2),
        _objective(0, 2, 0),
        # As much weight as `positive 2, negative 2` has in all: is it the negatives, or the weight?
        Variant("no_negatives_weight_4", "objective", "no negative queries, weight 4", heavy, _NO_NEGATIVES),
        _objective(1, 1, 0),
        _objective(0, 1, 1),
        _objective(0, 4, 4),
    ]
    grid += [
        Variant("ranking_none", "ranking", "the paper's model", WITHOUT_RANKING),
        Variant(
            "ranking_quality", "ranking", "the paper's model, ranked by quality",
            {**WITHOUT_RANKING, "quality_head": True, "score": "quality"},
        ),
        Variant("ranking_no_proposals", "ranking", "no clip proposals", {"clip_proposals": False}),
        Variant("ranking_no_refinement", "ranking", "spans not refined", {"span_refinement": False}),
        Variant("ranking_no_fit", "ranking", "only matched spans learn", {"fit_loss_weight": 0.0}),
        Variant("ranking_no_answers", "ranking", "negative queries not answered", {"answer_negatives": False}),
        Variant("ranking_class", "ranking", "ranked by class", {"score": "class"}),
        Variant("ranking_product", "ranking", "ranked by class times quality", {"score": "product"}),
    ]  # fmt: skip
    for memory in ("encoder", "attended"):
        for scale in ("literal", "mean_one"):
            label = f"decoder reads {'X+' if memory == 'encoder' else 'X+ times attention'}, attention {scale}"
            fields = {"decoder_memory": memory, "frame_attention_scale": scale}
            grid.append(Variant(f"form_{memory}_{scale}", "forms", label, fields))
    for pooling in ("linear", "gated"):
        for denominator in ("negatives", "all"):
            fields = {"alignment_pooling": pooling, "alignment_denominator": denominator}
            label = f"{pooling} pooling, denominator over {denominator}"
            grid.append(Variant(f"alignment_{pooling}_{denominator}", "alignment", label, fields))
    kept_components = ("fs ls ts", "bmd ls ts", "bmd fs ts", "bmd fs ls", "bmd fs ls ts", "", "bmd", "fs", "ls", "ts")
    grid += [_only_components(kept.split()) for kept in (*kept_components, "bmd fs", "bmd ls", "bmd ts", "fs ls")]
    grid += [
        Variant(f"sampling_{strategy}", "sampling", label, {}, {"negative_sampling": strategy})
        for strategy, label in (
            ("mined", "same video, Principles 1 and 2"),
            ("same_video", "same video, any other query"),
            ("random_video", "another video"),
            ("none", "no negative queries"),
        )
    ]
    grid += [
        Variant(f"negatives_{number}", "limits", f"{number} negative queries", {}, {"num_negatives": number})
        for number in (1, 2, 4)
    ]
    unlimited = {"similarity_threshold": 2.0}  # near duplicates are still left out
    grid += [
        Variant("negatives_own_video", "limits", "of the same video only", {}, {"negative_sampling": "mined_only"}),
        Variant("negatives_weighted", "limits", "weighted by similarity", mining={"similarity_threshold": None}),
        Variant("negatives_any_similarity", "limits", "no threshold on similarity", mining=unlimited),
    ]
    everywhere = {"temporal_shifting": True, "shifting_limit_s": 1e9}
    grid += [
        Variant("shifting_off", "shifting", "off", {}, {"temporal_shifting": False}),
        Variant("shifting_short", "shifting", "videos shorter than 60 s", {}, {"temporal_shifting": True}),
        Variant("shifting_all", "shifting", "videos of any length", {}, everywhere),
    ]
    kept_losses = ("lm ls lp", "l", "l lm", "l ls", "l lp", "l lm lp", "l ls lp", "l lm ls", "l lm ls lp")
    return grid + [_only_losses(kept.split()) for kept in kept_losses]


VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _variants()}

# Small enough for a minute and a half a run on one CPU core: what makes the grid of this size affordable.
_SMALL_MODEL: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "intermediate_size": 128,
    "alignment_dim": 64,
    "projection_dropout": 0.2,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation": "relu",
    "max_tokens": 12,
}
_SHORT_SCHEDULE: dict[str, Any] = {
    "num_train_epochs": 10,
    "lr_drop_epochs": 8,
    "learning_rate": 8e-4,
    "per_device_train_batch_size": 16,
    "temporal_shifting": False,
}
# The released width, learning rate and batch.
_WIDE_MODEL: dict[str, Any] = {
    **_SMALL_MODEL,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "intermediate_size": 256,
    "alignment_dim": 256,
}
_WIDE_SCHEDULE: dict[str, Any] = {
    **_SHORT_SCHEDULE,
    "num_train_epochs": 14,
    "lr_drop_epochs": 11,
    "learning_rate": 2e-4,
    "per_device_train_batch_size": 32,
}
_SIMULATION: dict[str, Any] = {
    "video_dim": 128,
    "clip_length_s": 1.0,
    "scene": 0.5,
    "noise": 0.4,
    "jitter_s": 0.5,
    "irrelevant_inside": 0.15,
    "leak_outside": 0.1,
}
PRESETS: dict[str, Preset] = {
    "charades_simulated": Preset(
        "Charades-STA's annotations (`--data-dir`), simulated frames, a small model: 90 s a run on one CPU core.",
        _SMALL_MODEL,
        _SHORT_SCHEDULE,
        "charades_sta",
        _SIMULATION,
        limits=(2500, 1000),
    ),
    "charades_simulated_wide": Preset(
        "The same data for a model of the released width, evaluated on the whole test split: 6 to 10 minutes a run.",
        _WIDE_MODEL,
        _WIDE_SCHEDULE,
        "charades_sta",
        _SIMULATION,
        limits=(2500, 0),
    ),
    "charades_simulated_noisy": Preset(
        "The same with a scene and noise as strong as the content, and more clips that show something else.",
        _SMALL_MODEL,
        _SHORT_SCHEDULE,
        "charades_sta",
        {"video_dim": 128},
        limits=(2500, 1000),
    ),
    "activitynet_simulated": Preset(
        "ActivityNet-Captions' annotations (`--data-dir`), frames mean-pooled to 40 clips: shifting on long videos.",
        {**_SMALL_MODEL, "max_clips": 40, "long_video": "resample"},
        _SHORT_SCHEDULE,
        "activitynet_captions",
        _SIMULATION,
        limits=(2500, 1000),
        eval_split="val_2",
    ),
    "moving_shapes": Preset(
        "Rendered videos of moving shapes, features by the weightless encoders; nothing is needed.",
        {**_SMALL_MODEL, "hidden_size": 128, "num_attention_heads": 4, "max_tokens": 16},
        {**_SHORT_SCHEDULE, "num_train_epochs": 30, "lr_drop_epochs": 24, "temporal_shifting": True},
    ),
    "rows": Preset(
        "Your own rows and features (`--train-rows`, `--eval-rows`, `--features`), full size, the paper's schedule.",
    ),
}


def reference_of(table: str) -> str:
    """The variant that the rows of a table are held against."""
    return _OWN_REFERENCES.get(table, REFERENCE)


def select_variants(names: Iterable[str]) -> list[Variant]:
    """Variants by name, by table, or `all`, in that order; the reference of each comes before it.

    Raises:
        ValueError: a name that is neither.
    """
    chosen: dict[str, Variant] = {}
    for name in names:
        found = [variant for variant in VARIANTS.values() if name in ("all", variant.name, variant.table)]
        if not found:
            raise ValueError(
                f"unknown variant {name!r}; expected `all`, a table of {list(TABLES)}, or one of {list(VARIANTS)}"
            )
        for variant in found:
            reference = VARIANTS[reference_of(variant.table)]
            chosen.update({reference.name: reference, variant.name: variant})
    return list(chosen.values())
