"""Tables and plots of `ablate.py`: mean and spread over seeds, and what lies within the spread of the reference."""

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ablation_variants import REFERENCE, TABLES, reference_of

from modeling_bmdetr.tables import markdown_table

# Key of the metrics -> heading.
COLUMNS: dict[str, str] = {
    "MR-full-R1@0.5": "R1@0.5",
    "MR-full-R1@0.7": "R1@0.7",
    "MR-full-mAP": "mAP",
    "MR-full-mIoU": "mIoU",
    "p_inside": "p inside",
    "p_outside": "p outside",
    "p_difference": "difference",
    "joint_p_inside": "joint p inside",
    "joint_p_outside": "joint p outside",
    "joint_p_difference": "difference",
    "CAL-ECE": "ECE",
    "CAL-AUC": "AUC right/wrong",
    "PR-AUROC": "presence AUROC",
    "PR-ECE": "presence ECE",
}
DECISIVE = "MR-full-R1@0.7"


def summarize(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per variant, in the order of the results: seeds, and mean and standard deviation of every metric.

    `spread` is the standard deviation over seeds (n - 1 in the divisor; not a number with one seed). `difference` is
    the mean minus that of the table's reference, over the seeds that both have; `within_spread` says that it is not
    larger than the root of the sum of both variances, and is None where one shared seed has none.
    """
    by_variant: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        by_variant.setdefault(result["variant"], []).append(result)
    summary = []
    for name, members in by_variant.items():
        against = by_variant.get(reference_of(members[0]["table"]), ())
        reference = {result["seed"]: _values(result) for result in against}
        values = {result["seed"]: _values(result) for result in members}
        entry: dict[str, Any] = {
            "variant": name,
            "table": members[0]["table"],
            "label": members[0]["label"],
            "seeds": sorted(values),
            "seconds": float(np.mean([result["seconds"] for result in members])),
        }
        for column in COLUMNS:
            column_values = [row[column] for row in values.values() if column in row]
            if not column_values:
                continue
            mean, spread = _mean_and_spread(column_values)
            shared = [seed for seed in values if seed in reference and column in reference[seed]]
            entry[column] = {"mean": mean, "spread": spread}
            if shared:
                own, own_spread = _mean_and_spread([values[seed][column] for seed in shared])
                other, other_spread = _mean_and_spread([reference[seed][column] for seed in shared])
                entry[column]["difference"] = own - other
                spread_of_both = math.hypot(own_spread, other_spread)
                within = None if math.isnan(spread_of_both) else abs(own - other) <= spread_of_both
                entry[column]["within_spread"] = within
        summary.append(entry)
    return summary


def _values(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a run that are tabulated."""
    values = {name: float(value) for name, value in result["metrics"].items() if name in COLUMNS}
    for p in ("p", "joint_p"):
        if f"{p}_inside" in values and f"{p}_outside" in values:
            values[f"{p}_difference"] = values[f"{p}_inside"] - values[f"{p}_outside"]
    return values


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def markdown(results: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> str:
    """Every table that has a row, each with the reference on top."""
    summary = summarize(results)
    lines = [
        "Mean ± standard deviation over seeds. The last column is R1@0.7 minus that of the table's first row, over the "
        "seeds that both have; `~` marks a difference within the spread (not larger than the root of the sum of both "
        "variances), bold one beyond it. p is Eq. 6, a mean over the clips inside and outside the moments, at inference"
        + _with_negatives(results)
        + " Joint p has them, drawn for the evaluation rows as in training (Table 9).",
        "",
        _common_settings(results),
        *notes,
    ]
    for table, title in TABLES.items():
        rows = [entry for entry in summary if entry["table"] == table]
        if not rows or (table == REFERENCE and len(summary) > 1):
            continue
        columns = [column for column in COLUMNS if any(column in entry for entry in rows)]
        reference = [entry for entry in summary if entry["variant"] == reference_of(table)]
        cells = [
            [entry["label"], *(_cell(entry.get(c)) for c in columns), str(len(entry["seeds"])), _difference(entry)]
            for entry in [*reference, *(row for row in rows if row not in reference)]
        ]
        head = ["variant", *(COLUMNS[column] for column in columns), "seeds", "Δ R1@0.7"]
        lines += ["", f"## {title}", "", markdown_table(head, cells, rule="---")]
    return "\n".join(lines) + "\n"


def _with_negatives(results: Sequence[Mapping[str, Any]]) -> str:
    given = {bool(result.get("training", {}).get("evaluate_with_negatives")) for result in results}
    return ", with negative queries." if given == {True} else "." if True in given else ", without negative queries."


def _common_settings(results: Sequence[Mapping[str, Any]]) -> str:
    """What all runs share, and how long one takes."""
    shared = {}
    for part in ("model", "training"):
        settings = [result.get(part, {}) for result in results]
        shared[part] = {
            name: value
            for name, value in (settings[0].items() if settings else ())
            if name not in ("video_encoders", "text_encoder") and all(other.get(name) == value for other in settings)
        }
    seconds = float(np.median([result["seconds"] for result in results])) if results else 0.0
    lines = [f"{part}: " + ", ".join(f"{k}={v}" for k, v in values.items()) for part, values in shared.items()]
    return f"Every run (median {seconds:.0f} s): " + "; ".join(lines) + "."


def _cell(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    digits = 2 if abs(value["mean"]) <= 1 else 1
    spread = "" if math.isnan(value["spread"]) else f" ± {value['spread']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{spread}"


def _difference(entry: Mapping[str, Any]) -> str:
    decisive = entry.get(DECISIVE, {})
    if entry["variant"] == reference_of(entry["table"]) or "difference" not in decisive:
        return ""
    text = f"{decisive['difference']:+.1f}"
    if decisive["within_spread"] is None:
        return text
    return f"~ {text}" if decisive["within_spread"] else f"**{text}**"


def write_csv(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """One line per run, with every metric."""
    metrics = sorted({name for result in results for name in result["metrics"]})
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["table", "variant", "label", "seed", "seconds", "steps", *metrics])
        for result in results:
            row = [result[name] for name in ("table", "variant", "label", "seed", "seconds", "steps")]
            writer.writerow([*row, *(result["metrics"].get(name, "") for name in metrics)])


def plot_table(results: Sequence[Mapping[str, Any]], table: str, path: Path) -> None:
    """R1@0.7 of a table's variants (bars with their spread and a dot for every seed), and p inside and outside."""
    from matplotlib.figure import Figure

    summary = [
        entry for entry in summarize(results) if entry["table"] == table or entry["variant"] == reference_of(table)
    ]
    figure = Figure(figsize=(9, 1.2 + 0.42 * len(summary)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, entry in enumerate(summary):
        spread = entry[DECISIVE]["spread"]
        left.barh(
            place,
            entry[DECISIVE]["mean"],
            xerr=None if math.isnan(spread) else spread,
            color="tab:gray" if entry["variant"] == reference_of(table) else "tab:blue",
            alpha=0.6,
        )
        seeds = [result["metrics"][DECISIVE] for result in results if result["variant"] == entry["variant"]]
        left.plot(seeds, [place] * len(seeds), "k.", markersize=4)
        for column, marker in (("p_inside", "o"), ("p_outside", "x")):
            if column in entry:
                right.plot(entry[column]["mean"], place, marker, color="tab:green" if marker == "o" else "tab:red")
    left.set_yticks(range(len(summary)), [entry["label"] for entry in summary])
    left.invert_yaxis()
    left.set_xlabel("R1@0.7 (%)")
    right.set_xlabel("mean p inside (o) and outside (x) the moment")
    right.set_xlim(0, 1)
    figure.suptitle(TABLES[table].partition(":")[0])
    figure.savefig(path, dpi=120)


def write_report(
    results: Sequence[Mapping[str, Any]], out_dir: str | os.PathLike, notes: Sequence[str] = (), plots: bool = True
) -> None:
    """Writes `ablation.csv`, `ablation.md` and, with matplotlib installed, a plot of every table that has a row."""
    if not results:
        return
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_csv(out_dir / "ablation.csv", results)
    (out_dir / "ablation.md").write_text(markdown(results, notes), encoding="utf-8")
    if not plots:
        return
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("no plots: they need matplotlib (pip install matplotlib)")
        return
    for table in {result["table"] for result in results} - {REFERENCE}:
        plot_table(results, table, out_dir / f"{table}.png")
