"""Training on own data: `train`."""

import argparse
import contextlib
import sys
from pathlib import Path

from ..files_bmdetr import require_writable
from .common import Commands, check_device, check_folder, check_not_read, show
from .features import add_encoding


def train(args: argparse.Namespace) -> int:
    from ..data.rows.importers.command import options_of
    from ..recipes.own_data import DEFAULT_ENCODER, OwnData, train_own_data

    if args.checkpoint and (args.video_encoder or args.text_encoder or args.clip_length):
        brought = "--video-encoder, --text-encoder and --clip-length"
        raise ValueError(f"--from brings its own encoders and clip length; leave out {brought}")
    check_folder(args.videos)
    check_device(args.device)
    require_writable(args.out)
    for name in ("train", "val"):
        check_not_read(Path(args.out, "data", f"{name}.jsonl"), (args.rows, args.val))
    as_given = ("rows", "videos", "out", "val", "checkpoint", "clip_length", "workers", "device", "resume")
    data = OwnData(
        **{name: getattr(args, name) for name in as_given},
        video_encoders=tuple(args.video_encoder or (DEFAULT_ENCODER,)),
        text_encoder=args.text_encoder or DEFAULT_ENCODER,
        overrides=args.override,
        options=options_of(args),
    )
    # What the Trainer prints on its way is no result.
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        report = train_own_data(data)
    words = "\n".join(report["verdict"]["words"])
    show(args, report, f"\n{words}\nmodel: {args.out}/model   report: {args.out}/report.md")
    return 0


def add_commands(commands: Commands) -> None:
    from ..data.rows.importers.command import add_reading

    command = commands.add("train", train, "train a model on your own annotations and videos")
    command.add_argument("rows", help="annotations: JSONL rows, or any file that `bmdetr import` reads")
    command.add_argument("--out", required=True, help="folder for model, report, recipe and features")
    command.add_argument("--val", help="annotations of other videos (a part of the videos is held out)")
    command.add_argument("--from", dest="checkpoint", help="checkpoint to train further, a folder or name on the Hub")
    add_encoding(command, "clip:openai/clip-vit-base-patch32", clip_length="1, longer for videos over 150 s")
    overrides = "entries of the recipe to change, as section.entry=value, such as training.num_train_epochs=20"
    command.add_argument("--override", nargs="+", action="extend", default=[], metavar="ENTRY=VALUE", help=overrides)
    add_reading(command)
    command.add_argument("--resume", action="store_true", help="go on where an earlier run stopped")
