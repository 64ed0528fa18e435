"""A web page: `demo`."""

import argparse
import sys
from pathlib import Path

from ..packages_bmdetr import needed_module
from .common import Commands, add_checkpoint, check_folder, count, load_pipeline, port


def demo(args: argparse.Namespace) -> int:
    if args.videos:
        check_folder(args.videos)

    from ..demo import NO_GRADIO, DemoLimits, build_demo, launch_demo
    from ..index_files import video_files

    needed_module("gradio", NO_GRADIO)  # before the model is loaded
    limits = DemoLimits(upload_mb=args.upload_mb, minutes=args.minutes)
    videos = list(video_files(Path(args.videos))) if args.videos else []
    page = build_demo(load_pipeline(args), model_name=Path(args.model).name, examples=videos, limits=limits)
    address = launch_demo(page, host=args.host, port=args.port, limits=limits)
    print(f"the page: {address}   (stop it with Ctrl-C)", file=sys.stderr, flush=True)
    page.block_thread()
    return 0


def add_commands(commands: Commands) -> None:
    command = commands.add("demo", demo, "serve a web page that finds moments in videos")
    add_checkpoint(command)
    command.add_argument("--videos", metavar="FOLDER", help="videos to choose from")
    command.add_argument("--host", default="127.0.0.1", help="interface; 0.0.0.0 lets others in (127.0.0.1)")
    command.add_argument("--port", type=port, help="(the first free one from 7860)")
    command.add_argument("--upload-mb", type=count, default=500, help="largest upload in MB (500)")
    command.add_argument("--minutes", type=count, default=60, help="longest video in minutes (60)")
