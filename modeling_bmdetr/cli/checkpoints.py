"""Checkpoints: `convert`, `calibrate`, `info` and `export`."""

import argparse
import contextlib
from pathlib import Path
from typing import Any

from ..files_bmdetr import require_writable
from .common import (
    Commands,
    check_model,
    check_not_read,
    check_output,
    load_checkpoint,
    model_errors,
    show,
)


def convert(args: argparse.Namespace) -> int:
    if args.to_released:
        check_model(args.checkpoint)
        check_output(args.out, read=map(str, Path(args.checkpoint).glob("*")))
    else:
        require_writable(args.out)
        for weights in Path(args.out).glob("model*.safetensors"):  # are replaced or deleted
            check_not_read(weights, (args.checkpoint,))

    from ..released import convert_to_folder, export_released

    if args.to_released:
        path = export_released(args.checkpoint, args.out)
        show(args, {"out": str(path)}, f"written for the released code: {path}")
        return 0
    report = convert_to_folder(
        args.checkpoint, args.out, strict=not args.lenient, prediction_format=args.prediction_format
    )
    show(args, {"out": args.out, **vars(report)}, f"{report}\nconverted to '{args.out}'")
    return 0


def calibrate(args: argparse.Namespace) -> int:
    require_writable(args.out or args.checkpoint)

    check_model(args.checkpoint)

    from .. import BMDetrForMomentRetrieval, BMDetrProcessor
    from ..calibrating import calibrate_folder
    from ..data import FeatureStore, read_rows

    with model_errors(args.checkpoint):
        model = BMDetrForMomentRetrieval.from_pretrained(args.checkpoint, revision=args.revision)
    processor = None
    with contextlib.suppress(OSError):  # one made anew, then
        processor = BMDetrProcessor.from_pretrained(args.checkpoint, revision=args.revision)
    rows, store = read_rows(args.rows), FeatureStore.from_packed(args.features)
    out = args.out or args.checkpoint
    calibration, lines = calibrate_folder(model, rows, store, out, seed=args.seed, processor=processor)
    show(args, calibration.to_dict(), "\n".join(lines))
    return 0 if calibration.score is not None else 1


def info(args: argparse.Namespace) -> int:
    check_model(args.checkpoint)

    from ..calibration_bmdetr import as_calibration, calibration_lines
    from ..configuration_bmdetr import BMDetrConfig
    from ..modeling_bmdetr import BMDetrForMomentRetrieval

    with model_errors(args.checkpoint):
        config = BMDetrConfig.from_pretrained(args.checkpoint, revision=args.revision)
        model = BMDetrForMomentRetrieval.from_pretrained(args.checkpoint, revision=args.revision)
    contract = config.feature_contract
    sizes = ("hidden_size", "encoder_layers", "decoder_layers", "num_attention_heads", "num_queries")
    forms = ("background_aware", "learnable_spans", "decoder_memory", "frame_attention_scale")
    result: dict[str, Any] = {
        "checkpoint": args.checkpoint,
        "parameters": model.num_parameters(),
        "sizes": {name: getattr(config, name) for name in sizes},
        "forms": {name: getattr(config, name) for name in (*forms, "alignment_pooling", "alignment_denominator")},
        "loss_weights": {name: value for name, value in config.to_dict().items() if name.endswith("loss_weight")},
        "feature_contract": contract.to_dict(),
    }
    lines = [f"{args.checkpoint}: BM-DETR, {result['parameters']:,} parameters"]
    for section in ("sizes", "forms", "loss_weights", "feature_contract"):
        lines.append(section.replace("_", " "))
        lines += [f"  {name}: {value}" for name, value in result[section].items()]
    result["calibration"] = config.calibration
    lines += ["calibration", *(f"  {line}" for line in calibration_lines(as_calibration(config.calibration)))]
    span_s = contract.max_clips * contract.clip_length
    lines.append(f"reads up to {contract.max_clips} clips of {contract.clip_length:g} s ({span_s:g} s) at once")
    show(args, result, "\n".join(lines))
    return 0


def export(args: argparse.Namespace) -> int:
    if args.int8 and args.format != "onnx":
        raise ValueError("--int8 belongs to --format onnx: leave one of them out")
    require_writable(args.out)
    model, processor = load_checkpoint(args.checkpoint, args.revision)

    from ..export import export_model

    result = export_model(model, args.out, args.format, int8=args.int8, processor=processor)
    files = " and ".join(result[name] for name in ("file", "int8_file") if name in result)
    text = f"{files} written to '{args.out}'; {result['file']} differs from the model by at most "
    show(args, {"out": args.out, **result}, f"{text}{result['largest_difference']:.1g}")
    return 0


def add_commands(commands: Commands) -> None:
    command = commands.add("convert", convert, "convert a checkpoint of the authors' released code, or back")
    command.add_argument("checkpoint", help="a .ckpt or bare state dict; with --to-released, a checkpoint folder")
    command.add_argument("out", help="the folder to write; with --to-released, the file")
    command.add_argument("--to-released", action="store_true", help="write a file that the released code loads")
    command.add_argument("--lenient", action="store_true", help="list unknown and missing parameters and go on")
    formats = "how the checkpoint's pipeline writes moments (seconds)"
    command.add_argument("--prediction-format", choices=["seconds", "released"], default="seconds", help=formats)

    command = commands.add("calibrate", calibrate, "make a checkpoint's scores probabilities, by validation rows")
    command.add_argument("checkpoint", help="a folder, or with --out a name on the Hub")
    command.add_argument("rows", help="JSONL file of labelled rows that are neither of training nor of test")
    command.add_argument("--features", required=True, help="packed store of their features")
    command.add_argument("--out", help="folder to write the calibrated checkpoint to (the checkpoint's own)")
    command.add_argument("--revision", help="branch, tag or commit on the Hub")
    command.add_argument("--seed", type=int, default=0, help="of what is drawn where rows have no absent queries (0)")

    command = commands.add("info", info, "show what a checkpoint is and which features it needs")
    command.add_argument("checkpoint", help="a folder, or a name on the Hub")
    command.add_argument("--revision", help="branch, tag or commit on the Hub")

    command = commands.add("export", export, "write a checkpoint as ONNX or as a program of torch.export")
    command.add_argument("checkpoint", help="a folder, or a name on the Hub")
    command.add_argument("--out", required=True, help="folder to write")
    command.add_argument("--format", choices=["onnx", "torch-export"], default="onnx", help="(onnx)")
    command.add_argument("--int8", action="store_true", help="with onnx: a second file with 8-bit matrices")
    command.add_argument("--revision", help="branch, tag or commit on the Hub")
