"""Train BM-DETR by a recipe, evaluate it, and report over seeds.

    accelerate launch examples/train.py examples/configs/charades_sta_slowfast_clip.yaml
    accelerate launch examples/train.py RECIPE.yaml --override training.learning_rate=1e-4 model.hidden_size=128
    accelerate launch examples/train.py RECIPE.yaml --seeds 1,2,3
    accelerate launch examples/train.py RECIPE.yaml --seeds 1,2,3 --resume

The best checkpoint by `training.metric_for_best_model` on `data.eval` is evaluated on every set of `data.test`. Written
to `--out` (`outputs/<recipe>`): `report.json`, `report.md`, and for each run (a subfolder `seed<N>` with `--seeds`)
the best model in `model/`, `predictions_<set>.jsonl`, `result.json` and checkpoints. A run that was stopped goes on
with `--resume`, exactly where its last checkpoint left it; seeds that are done are not run again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import benchmark_rows  # noqa: F401  # the recipes of the benchmarks
import torch

from modeling_bmdetr.recipes import read_recipe, train_by_recipe


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        seeds = parse_seeds(args.seeds) if args.seeds else None
        recipe = read_recipe(args.recipe, args.override)
        out = Path(args.out or recipe.training.get("output_dir") or Path("outputs") / Path(args.recipe).stem)
        train_by_recipe(recipe, out, seeds, resume=args.resume)
    except (ValueError, ImportError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="a YAML file, such as those in examples/configs")
    overrides = "entries to change or add, as section.entry=value"
    parser.add_argument("--override", nargs="+", action="extend", default=[], metavar="ENTRY=VALUE", help=overrides)
    parser.add_argument("--seeds", help="one run for each of these seeds, such as 1,2,3")
    parser.add_argument("--resume", action="store_true", help="go on where an earlier run of this recipe stopped")
    parser.add_argument("--out", help="folder for everything written (outputs/<name of the recipe>)")
    return parser


def parse_seeds(text: str) -> list[int]:
    """Seeds as in `1,2,3`."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise ValueError(f"--seeds expects whole numbers between commas, such as 1,2,3, received '{text}'") from None


if __name__ == "__main__":
    sys.exit(main())
