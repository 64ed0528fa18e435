"""Training on own data: `train`."""

import argparse

from .common import Commands, add_plugins, show


def train(args: argparse.Namespace) -> int:
    from ..data.rows.importers import ImportOptions
    from ..data.rows.importers.command import columns_of
    from ..recipes.own_data import DEFAULT_ENCODER, OwnData, train_own_data

    if args.checkpoint and (args.video_encoder or args.text_encoder or args.clip_length):
        brought = "--video-encoder, --text-encoder and --clip-length"
        raise ValueError(f"--from brings its own encoders and clip length; leave out {brought}")
    data = OwnData(
        args.rows,
        args.videos,
        args.out,
        val=args.val,
        checkpoint=args.checkpoint,
        video_encoders=tuple(args.video_encoder or (DEFAULT_ENCODER,)),
        text_encoder=args.text_encoder or DEFAULT_ENCODER,
        clip_length=args.clip_length,
        overrides=args.override,
        workers=args.workers,
        device=args.device,
        resume=args.resume,
        options=ImportOptions(columns=columns_of(args.columns), fps=args.fps, past_end=args.past_end),
    )
    report = train_own_data(data)
    words = "\n".join(report["verdict"]["words"])
    show(args, report, f"\n{words}\nmodel: {args.out}/model   report: {args.out}/report.md")
    return 0


def add_commands(commands: Commands) -> None:
    """Declares the commands of this group."""
    command = commands.add("train", train, "train a model on your own annotations and videos")
    add_plugins(command)
    command.add_argument("rows", help="annotations: JSONL rows, or any file that `bmdetr import` reads")
    command.add_argument("--videos", required=True, help="folder of the video files")
    command.add_argument("--out", required=True, help="folder for model, report, recipe and features")
    command.add_argument("--val", help="annotations of other videos (a part of the videos is held out)")
    command.add_argument("--from", dest="checkpoint", help="checkpoint to train further, a folder or name on the Hub")
    encoders = "as for `bmdetr extract` (clip:openai/clip-vit-base-patch32; pixel-grid needs no download)"
    command.add_argument("--video-encoder", nargs="+", help=encoders)
    text_encoders = "as for `bmdetr extract` (clip:openai/clip-vit-base-patch32; hashed-words needs no download)"
    command.add_argument("--text-encoder", help=text_encoders)
    command.add_argument("--clip-length", type=float, help="seconds per clip (1, longer for videos over 150 s)")
    overrides = "entries of the recipe to change, as section.entry=value, such as training.num_train_epochs=20"
    command.add_argument("--override", nargs="+", action="extend", default=[], metavar="ENTRY=VALUE", help=overrides)
    command.add_argument("--columns", nargs="+", default=[], metavar="ROLE=NAME", help="as for `bmdetr import`")
    command.add_argument("--fps", type=float, help="as for `bmdetr import`")
    command.add_argument(
        "--past-end", choices=["error", "clip", "keep"], default="error", help="as for `bmdetr import`"
    )
    command.add_argument("--workers", type=int, default=0, help="processes that decode and encode (0: this one)")
    command.add_argument("--device", help="for encoders with weights, such as cuda:0")
    command.add_argument("--resume", action="store_true", help="go on where an earlier run stopped")
