"""Features on disk: `extract` and `pack`."""

import argparse

from ..files_bmdetr import require_writable
from .common import (
    Commands,
    add_plugins,
    check_device,
    check_folder,
    check_model,
    checked_rows,
    count_or_none,
    device,
    part_of,
    seconds,
    show,
)


def extract(args: argparse.Namespace) -> int:
    rows = checked_rows(args.rows, ("qid", "vid", "query", "video", "duration"))
    check_folder(args.videos)
    check_device(args.device)
    require_writable(args.out)

    from ..data import extract_features

    report = extract_features(
        rows,
        args.videos,
        args.out,
        args.video_encoder,
        args.text_encoder,
        args.clip_length,
        encoder_options={"device": args.device} if args.device else None,
        **{name: getattr(args, name) for name in ("dtype", "workers", "engine", "address", "shard")},
    )
    show(args, report.to_dict(), str(report))
    return 0 if report.complete else 1


def pack(args: argparse.Namespace) -> int:
    require_writable(args.out)

    from ..configuration_bmdetr import BMDetrConfig, FeatureContract
    from ..data import pack_features, read_rows

    if args.model:
        check_model(args.model)
        contract = BMDetrConfig.from_pretrained(args.model).feature_contract
    else:
        contract = FeatureContract(clip_length=args.clip_length, text_rows=args.text_rows)
    rows = read_rows(args.rows) if args.rows else None
    names = ("video_key", "text_key", "video_suffix")
    layout = {name: value for name in names if (value := getattr(args, name)) is not None}
    store = pack_features(
        args.videos, args.out, text_dir=args.text, contract=contract, rows=rows, dtype=args.dtype, **layout
    )
    result = {"out": args.out, "videos": len(store.video_ids), "queries": len(store.query_ids)}
    show(
        args,
        {**result, "contract": store.contract.to_dict()},
        f"{result['videos']} videos and {result['queries']} queries packed in '{args.out}'",
    )
    return 0


def add_commands(commands: Commands) -> None:
    command = commands.add("extract", extract, "encode videos and sentences into a packed feature store")
    command.add_argument("rows", help="JSONL file of canonical rows")
    command.add_argument("--out", required=True, help="the store; run again, the command goes on where it stopped")
    add_encoding(command)
    command.add_argument("--dtype", choices=["float16", "float32"], default="float32", help="number type (float32)")
    engines = "where videos are encoded: here, or on a Ray cluster with --workers actors (local)"
    command.add_argument("--engine", choices=["local", "ray"], default="local", help=engines)
    command.add_argument("--address", help="of a running Ray cluster (one is started on this machine)")
    shard = "encode the I-th of N parts of the videos, into a store of its own: for arrays of jobs"
    command.add_argument("--shard", type=part_of, metavar="I/N", help=shard)

    command = commands.add("pack", pack, "copy published feature files into a packed feature store")
    command.add_argument("videos", nargs="+", help="folders of video features, concatenated in this order")
    command.add_argument("--text", help="folder of text features (qid<qid>.npz)")
    command.add_argument("--out", required=True, help="the store; run again, the command goes on where it stopped")
    command.add_argument("--model", help="checkpoint whose feature contract the features must keep")
    command.add_argument("--clip-length", type=seconds, default=1.0, help="seconds per clip, without --model (1)")
    command.add_argument("--text-rows", choices=["to_end_of_text", "all"], default="all", help="without --model (all)")
    command.add_argument("--rows", help="JSONL file: copy only what its rows need")
    command.add_argument("--video-key", help="array to read from files of video features that hold several (features)")
    command.add_argument("--text-key", help="the same for text features (last_hidden_state)")
    command.add_argument("--video-suffix", help="what file names of video features have after the video's, as -cam-002")
    command.add_argument("--dtype", choices=["float16", "float32"], default="float32", help="number type (float32)")


def add_encoding(command: argparse.ArgumentParser, encoder: str | None = None, clip_length: str | None = None) -> None:
    """Declares what every command that encodes videos and sentences takes.

    Args:
        encoder: Encoder of both that is taken where none is named; without one they must be named.
        clip_length: The same for the clip length, in words.
    """
    add_plugins(command)
    command.add_argument("--videos", required=True, help="folder of the video files")
    default = f" ({encoder})" if encoder else ""
    encoders = "pixel-grid, hf:NAME_OR_PATH of a model of transformers that sees images or videos, timm:NAME, "
    encoders += f"or a plug-in; several stand side by side{default}"
    command.add_argument("--video-encoder", nargs="+", required=encoder is None, help=encoders)
    text_encoders = (
        "hashed-words, minilm, hf:NAME_OR_PATH of a model of transformers that reads text, words:NAME for single words "
        "by one of these, or a plug-in"
    )
    command.add_argument("--text-encoder", required=encoder is None, help=text_encoders + default)
    length = f"seconds per clip ({clip_length})" if clip_length else "seconds per clip"
    command.add_argument("--clip-length", type=seconds, required=clip_length is None, help=length)
    workers = "processes that decode and encode (0: this one)"
    command.add_argument("--workers", type=count_or_none, default=0, help=workers)
    command.add_argument("--device", type=device, help="for encoders with weights, such as cuda:0")
