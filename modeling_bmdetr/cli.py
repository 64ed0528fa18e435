"""Command line `bmdetr`: one subcommand a task, each a thin layer over the function that does it.

Results go to standard output (as JSON with `--json`), progress and messages to standard error. Bad input ends with one
line on standard error and exit code 2.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

ABSENT_BELOW = 0.5  # presence below which an answer says that the video does not show it

# Handlers import what they need when they run, so that a command needs only the extras of its own task.


def predict(args: argparse.Namespace) -> int:
    from . import BMDetrForMomentRetrieval, BMDetrProcessor, MomentRetrievalPipeline

    model = BMDetrForMomentRetrieval.from_pretrained(args.model, revision=args.revision)
    processor = BMDetrProcessor.from_pretrained(args.model, revision=args.revision)
    pipe = MomentRetrievalPipeline(model, processor=processor, device=args.device)
    bar = _Bar("clips")
    video = pipe.encode_video(args.video, progress=bar)
    bar.close()
    names = ("top_k", "score_threshold", "nms_threshold", "min_presence")
    options = {name: getattr(args, name) for name in names}
    answers = pipe(video, args.query, long_video=args.long_video, **options)
    if args.plot:
        from .visualization import plot_moments

        plot_moments(answers, args.video, path=args.plot)
        print(f"picture: {args.plot}", file=sys.stderr)
    lines = []
    for answer in answers:
        presence = answer.get("presence")
        is_absent = presence is not None and presence < max(args.min_presence, ABSENT_BELOW)
        said = "" if presence is None else f" ({'not in this video, ' if is_absent else ''}presence {presence:.2f})"
        lines.append(answer["query"] + said)
        lines += [f"  {m['start']:8.2f} s - {m['end']:8.2f} s   score {m['score']:.3f}" for m in answer["moments"]]
        lines += ["  no moment above the thresholds"] * (not answer["moments"])
    if not pipe.is_calibrated:
        print("scores are not calibrated: they rank, but are no probabilities (bmdetr calibrate)", file=sys.stderr)
    _show(args, {"video": args.video, "answers": answers}, "\n".join(lines))
    return 0


def extract(args: argparse.Namespace) -> int:
    from .data import extract_features, read_rows

    report = extract_features(
        read_rows(args.rows),
        args.videos,
        args.out,
        args.video_encoder,
        args.text_encoder,
        args.clip_length,
        encoder_options={"device": args.device} if args.device else None,
        dtype=args.dtype,
        workers=args.workers,
    )
    _show(args, report.to_dict(), str(report))
    return 0 if report.complete else 1


def pack(args: argparse.Namespace) -> int:
    from .configuration_bmdetr import BMDetrConfig, FeatureContract
    from .data import pack_features, read_rows

    if args.model:
        contract = BMDetrConfig.from_pretrained(args.model).feature_contract
    else:
        contract = FeatureContract(clip_length=args.clip_length, text_rows=args.text_rows)
    rows = read_rows(args.rows) if args.rows else None
    store = pack_features(args.videos, args.out, text_dir=args.text, contract=contract, rows=rows, dtype=args.dtype)
    result = {"out": args.out, "videos": len(store.video_ids), "queries": len(store.query_ids)}
    _show(
        args,
        {**result, "contract": store.contract.to_dict()},
        f"{result['videos']} videos and {result['queries']} queries packed in '{args.out}'",
    )
    return 0


def import_rows(args: argparse.Namespace) -> int:
    from .data.rows.importers.command import run

    _show(args, *run(args))
    return 0


def validate(args: argparse.Namespace) -> int:
    from .data import validate_file

    report = validate_file(
        args.rows,
        args.videos,
        args.features,
        reference=args.reference,
        require_windows=not args.unlabelled,
        clip_length_s=args.clip_length,
    )
    _show(args, report.to_dict(), report.format(args.limit))
    return 0 if report.ok else 1


def mine_negatives(args: argparse.Namespace) -> int:
    from .data import mine_negative_queries, read_rows, write_rows

    rows = read_rows(args.rows)
    mined, report = mine_negative_queries(
        rows,
        args.iou_threshold,
        None if args.weight_by_similarity else args.similarity_threshold,
        encoder=args.encoder,
        device=args.device,
    )
    write_rows(args.out, mined, integer_qids=rows.integer_qids)
    _show(args, report.to_dict(), str(report))
    return 0


def evaluate(args: argparse.Namespace) -> int:
    from .evaluation import evaluate_submission, format_metrics

    options = {"clip_length_s": args.clip_length, "presence_threshold": args.presence_threshold}
    metrics = evaluate_submission(args.predictions, args.ground_truth, **options)
    print(format_metrics(metrics, "json" if args.json else args.format))
    return 0


def convert(args: argparse.Namespace) -> int:
    from .released import convert_to_folder, export_released

    if args.to_released:
        path = export_released(args.checkpoint, args.out)
        _show(args, {"out": str(path)}, f"written for the released code: {path}")
        return 0
    report = convert_to_folder(
        args.checkpoint, args.out, strict=not args.lenient, prediction_format=args.prediction_format
    )
    _show(args, {"out": args.out, **vars(report)}, f"{report}\nconverted to '{args.out}'")
    return 0


def calibrate(args: argparse.Namespace) -> int:
    from . import BMDetrForMomentRetrieval
    from .calibrating import calibrate_folder
    from .data import FeatureStore, read_rows

    model = BMDetrForMomentRetrieval.from_pretrained(args.model, revision=args.revision)
    calibration, lines = calibrate_folder(
        model, read_rows(args.rows), FeatureStore.open(args.features), args.out or args.model, seed=args.seed
    )
    _show(args, calibration.to_dict(), "\n".join(lines))
    return 0 if calibration.score is not None else 1


def info(args: argparse.Namespace) -> int:
    from .configuration_bmdetr import BMDetrConfig
    from .modeling_bmdetr import BMDetrForMomentRetrieval

    config = BMDetrConfig.from_pretrained(args.checkpoint, revision=args.revision)
    model = BMDetrForMomentRetrieval.from_pretrained(args.checkpoint, revision=args.revision)
    contract = config.feature_contract
    forms = ["background_aware", "learnable_spans", "decoder_memory", "frame_attention_scale"]
    forms += ["alignment_pooling", "alignment_denominator"]
    result: dict[str, Any] = {
        "checkpoint": args.checkpoint,
        "parameters": model.num_parameters(),
        "sizes": {
            name: getattr(config, name)
            for name in ("hidden_size", "encoder_layers", "decoder_layers", "num_attention_heads", "num_queries")
        },
        "forms": {name: getattr(config, name) for name in forms},
        "loss_weights": {name: value for name, value in config.to_dict().items() if name.endswith("loss_weight")},
        "feature_contract": contract.to_dict(),
    }
    lines = [f"{args.checkpoint}: BM-DETR, {result['parameters']:,} parameters"]
    for section in ("sizes", "forms", "loss_weights", "feature_contract"):
        lines.append(section.replace("_", " "))
        lines += [f"  {name}: {value}" for name, value in result[section].items()]
    from .calibration_bmdetr import as_calibration, calibration_lines

    result["calibration"] = config.calibration
    lines += calibration_lines(as_calibration(config.calibration))
    span_s = contract.max_clips * contract.clip_length
    lines.append(f"reads up to {contract.max_clips} clips of {contract.clip_length:g} s ({span_s:g} s) at once")
    _show(args, result, "\n".join(lines))
    return 0


def export(args: argparse.Namespace) -> int:
    from . import BMDetrForMomentRetrieval, BMDetrProcessor
    from .export import export_model

    model = BMDetrForMomentRetrieval.from_pretrained(args.checkpoint, revision=args.revision)
    processor = BMDetrProcessor.from_pretrained(args.checkpoint, revision=args.revision)
    result = export_model(model, args.out, args.format, int8=args.int8, processor=processor)
    files = " and ".join(result[name] for name in ("file", "int8_file") if name in result)
    text = f"{files} written to '{args.out}'; {result['file']} differs from the model by at most "
    _show(args, {"out": args.out, **result}, f"{text}{result['largest_difference']:.1g}")
    return 0


class _Bar:
    """A progress bar that `encode_video` can call with (done, total); it appears with the first call."""

    def __init__(self, unit: str):
        self.unit = unit
        self.bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        from tqdm.auto import tqdm

        if self.bar is None:
            self.bar = tqdm(total=total, unit=self.unit, desc="encoding the video")
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _show(args: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    print(json.dumps(result, indent=2, default=str) if args.json else text)


def build_parser() -> argparse.ArgumentParser:
    """The parser of every subcommand."""
    from .data.rows.importers.command import TEXT as IMPORT_TEXT
    from .data.rows.importers.command import add_arguments as add_import_arguments

    parser = argparse.ArgumentParser(prog="bmdetr", description="BM-DETR: moments in videos, found by sentences.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(function=function)
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        return command

    command = add("predict", predict, "find the moments that sentences describe in a video")
    command.add_argument("video", help="a video file")
    command.add_argument("query", nargs="+", help="sentences, each in quotes")
    command.add_argument("--model", required=True, help="checkpoint: a folder, or a name on the Hub")
    command.add_argument("--revision", help="branch, tag or commit on the Hub")
    command.add_argument("--plot", metavar="FILE", help="draw the answers to a picture (.png, .pdf, .svg)")
    command.add_argument("--top-k", type=int, default=3, help="moments an answer (3)")
    command.add_argument("--score-threshold", type=float, default=0.0, help="leave out moments that score less (0)")
    command.add_argument("--min-presence", type=float, default=0.0, help="no moments where presence is lower (0)")
    command.add_argument("--nms-threshold", type=float, help="leave out moments that overlap a better one by more")
    command.add_argument("--long-video", choices=["window", "truncate", "resample"], help="for a long video (contract)")
    command.add_argument("--device", help="such as cuda:0 (the first accelerator, else the CPU)")

    command = add("extract", extract, "encode videos and sentences into a packed feature store")
    command.add_argument("rows", help="JSONL file of canonical rows")
    command.add_argument("--videos", required=True, help="folder of the video files")
    command.add_argument("--out", required=True, help="the store; run again, the command goes on where it stopped")
    encoders = "pixel-grid, or clip:NAME_OR_PATH of a CLIP-like model; several are concatenated"
    command.add_argument("--video-encoder", nargs="+", required=True, help=encoders)
    command.add_argument("--text-encoder", required=True, help="hashed-words, or clip:NAME_OR_PATH")
    command.add_argument("--clip-length", type=float, required=True, help="seconds a clip")
    command.add_argument("--dtype", choices=["float16", "float32"], default="float32", help="number type (float32)")
    command.add_argument("--workers", type=int, default=0, help="processes that decode and encode (0: this one)")
    command.add_argument("--device", help="for encoders with weights, such as cuda:0")

    command = add("pack", pack, "copy published feature files into a packed feature store")
    command.add_argument("videos", nargs="+", help="folders of video features, concatenated in this order")
    command.add_argument("--text", help="folder of text features (qid<qid>.npz)")
    command.add_argument("--out", required=True, help="the store; run again, the command goes on where it stopped")
    command.add_argument("--model", help="checkpoint whose feature contract the features must keep")
    command.add_argument("--clip-length", type=float, default=1.0, help="seconds a clip, without --model (1)")
    command.add_argument("--text-rows", choices=["to_end_of_text", "all"], default="all", help="without --model (all)")
    command.add_argument("--rows", help="JSONL file: copy only what its rows need")
    command.add_argument("--dtype", choices=["float16", "float32"], default="float32", help="number type (float32)")

    add_import_arguments(add("import", import_rows, IMPORT_TEXT))

    command = add("validate", validate, "check a JSONL file, and the videos and features it names")
    command.add_argument("rows", help="JSONL file of canonical rows")
    command.add_argument("--videos", help="folder of the video files")
    command.add_argument("--features", help="packed store or folder of features")
    command.add_argument("--reference", help="JSONL file that the text features were made from")
    command.add_argument("--unlabelled", action="store_true", help="rows without moments are fine")
    command.add_argument("--clip-length", type=float, help="seconds a clip, to check clip indices with")
    command.add_argument("--limit", type=int, default=100, help="problems shown (100)")

    command = add("mine-negatives", mine_negatives, "find the negative queries of each row (Principles 1 and 2)")
    command.add_argument("rows", help="JSONL file of canonical rows of one split")
    command.add_argument("--out", required=True, help="JSONL file to write, with neg_query_ids")
    encoder = "sentence-transformers/all-MiniLM-L6-v2"
    command.add_argument("--encoder", default=encoder, help=f"sentence-transformers model, by name or path ({encoder})")
    command.add_argument("--iou-threshold", type=float, default=0.5, help="negatives overlap the moments by less (0.5)")
    similarity = command.add_mutually_exclusive_group()
    below = "and their sentences have a cosine below (0.75)"
    similarity.add_argument("--similarity-threshold", type=float, default=0.75, help=below)
    weigh = "instead, let each count by one minus its cosine (neg_query_weights)"
    similarity.add_argument("--weight-by-similarity", action="store_true", help=weigh)
    command.add_argument("--device", help="for the encoder, such as cuda:0")

    command = add("evaluate", evaluate, "compute the metrics of predictions")
    command.add_argument("predictions", help="JSONL file of predictions")
    command.add_argument("ground_truth", help="JSONL file of canonical rows")
    command.add_argument("--format", choices=["table", "json", "markdown"], default="table", help="(table)")
    command.add_argument("--clip-length", type=float, default=2.0, help="seconds a clip, for highlights (2)")
    command.add_argument("--presence-threshold", type=float, default=0.5, help="up to it, queries are rejected (0.5)")

    command = add("convert", convert, "convert a checkpoint of the authors' released code, or back")
    command.add_argument("checkpoint", help="a .ckpt or bare state dict; with --to-released, a checkpoint folder")
    command.add_argument("out", help="the folder to write; with --to-released, the file")
    command.add_argument("--to-released", action="store_true", help="write a file that the released code loads")
    command.add_argument("--lenient", action="store_true", help="list unknown and missing parameters and go on")
    formats = "how the checkpoint's pipeline writes moments (seconds)"
    command.add_argument("--prediction-format", choices=["seconds", "released"], default="seconds", help=formats)

    command = add("calibrate", calibrate, "make a checkpoint's scores probabilities, fitted on validation rows")
    command.add_argument("model", help="checkpoint: a folder, or with --out a name on the Hub")
    command.add_argument("rows", help="JSONL file of validation rows with labels, no rows of training or test")
    command.add_argument("--features", required=True, help="packed store of their features")
    command.add_argument("--out", help="folder to write the calibrated checkpoint to (the model's own)")
    command.add_argument("--revision", help="branch, tag or commit on the Hub")
    command.add_argument(
        "--seed", type=int, default=0, help="of pairs with other videos, for rows without absent ones (0)"
    )

    command = add("info", info, "show what a checkpoint is and which features it needs")
    command.add_argument("checkpoint", help="a folder, or a name on the Hub")
    command.add_argument("--revision", help="branch, tag or commit on the Hub")

    command = add("export", export, "write a checkpoint as ONNX or as a program of torch.export")
    command.add_argument("checkpoint", help="a folder, or a name on the Hub")
    command.add_argument("--out", required=True, help="folder to write")
    command.add_argument("--format", choices=["onnx", "torch-export"], default="onnx", help="(onnx)")
    command.add_argument("--int8", action="store_true", help="with onnx: a second file with 8-bit matrices")
    command.add_argument("--revision", help="branch, tag or commit on the Hub")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; the exit code is 0, 1 when the task found problems, or 2 on bad input."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.function(args))
    except (ValueError, ImportError, OSError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"bmdetr {args.command}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"bmdetr {args.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
