"""The model card of a recorded run, and the record it is made from.

    python examples/render_model_card.py outputs/quickstart/report.json --model outputs/quickstart/model \\
        --dataset "Moving Shapes" --split test --license mit --language en --record examples/results/quickstart.json
    python examples/render_model_card.py examples/results/quickstart.json --out model_card.md

The first command reduces a report to what a card needs, with the model's configuration, so that the second one gives
the same card anywhere. The record is small enough to be kept under version control.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval
from modeling_bmdetr.cards import render_model_card
from modeling_bmdetr.files_bmdetr import write_json

KEPT = ("metrics", "baselines", "data", "training", "seed", "versions")


def main() -> int:
    args = parse_arguments()
    try:
        report = json.loads(args.report.read_text(encoding="utf-8"))
        record = report if args.model is None else make_record(report, args)
        text = card_of_record(record)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.record is not None:
        write_json(args.record, record)
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")
    if args.record is None and args.out is None:
        print(text, end="")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="a report such as quickstart's, or a record made from one")
    parser.add_argument("--model", type=Path, help="folder of the model that the report is about; makes a record")
    parser.add_argument("--dataset", help="name of the data")
    parser.add_argument("--split", help="which part of the data the metrics are of")
    parser.add_argument("--license", help="licence of the weights, such as mit")
    parser.add_argument("--language", help="language of the sentences, such as en")
    parser.add_argument("--record", type=Path, help="write the record here")
    parser.add_argument("--out", type=Path, help="write the card here (default: print it)")
    return parser.parse_args()


def make_record(report: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """What a card needs of a report, and of the model that it is about."""
    model = BMDetrForMomentRetrieval.from_pretrained(args.model)
    default = BMDetrConfig()
    fields = {name: getattr(model.config, name) for name in BMDetrConfig.__annotations__}
    record = {name: report[name] for name in KEPT if name in report}
    if "swapped_sentences" in report:
        swapped = {"this model, asked with another sentence of the video": report["swapped_sentences"]}
        record["baselines"] = {**record.get("baselines", {}), **swapped}
    if args.dataset is not None:
        record["dataset"] = {"name": args.dataset, **({"split": args.split} if args.split else {})}
    if len(queries := [answer["query"] for answer in report.get("answers", ())]) >= 2:
        record["examples"] = queries[:2]
    record |= {name: value for name in ("license", "language") if (value := getattr(args, name)) is not None}
    record["config"] = {name: value for name, value in fields.items() if value != getattr(default, name)}
    record["parameters"] = model.num_parameters()
    return record


def card_of_record(record: dict[str, Any]) -> str:
    """The card, from the record alone.

    Raises:
        ValueError: the record lacks the configuration of the model.
    """
    if missing := [name for name in ("config", "parameters") if name not in record]:
        raise ValueError(f"the record lacks {missing}: make it with --model")
    return str(render_model_card(BMDetrConfig(**record["config"]), record, parameters=record["parameters"]))


if __name__ == "__main__":
    sys.exit(main())
