"""Annotations: `import`, `validate` and `mine-negatives`."""

import argparse

from .common import Commands, check_device, check_output, checked_rows, count_or_none, device, seconds, share, show


def import_rows(args: argparse.Namespace) -> int:
    check_output(args.out, read=args.files)

    from ..data.rows.importers.command import run

    show(args, *run(args))
    return 0


def validate(args: argparse.Namespace) -> int:
    from ..data import validate_file

    report = validate_file(
        args.rows,
        args.videos,
        args.features,
        reference=args.reference,
        require_windows=not args.unlabelled,
        clip_length_s=args.clip_length,
    )
    show(args, report.to_dict(), report.format(args.limit))
    return 0 if report.ok else 1


def mine_negatives(args: argparse.Namespace) -> int:
    rows = checked_rows(args.rows, ("qid", "vid", "query", "duration", "relevant_windows"))
    check_output(args.out, read=(args.rows,))
    check_device(args.device)

    from ..data import mine_negative_queries, write_rows

    mined, report = mine_negative_queries(
        rows,
        args.iou_threshold,
        None if args.weight_by_similarity else args.similarity_threshold,
        encoder=args.encoder,
        device=args.device,
    )
    write_rows(args.out, mined, integer_qids=rows.integer_qids)
    show(args, report.to_dict(), str(report))
    return 0


def add_commands(commands: Commands) -> None:
    from ..data.rows.importers.command import TEXT, add_arguments

    add_arguments(commands.add("import", import_rows, TEXT))

    command = commands.add("validate", validate, "check a JSONL file, and the videos and features it names")
    command.add_argument("rows", help="JSONL file of canonical rows")
    command.add_argument("--videos", help="folder of the video files")
    command.add_argument("--features", help="packed store, folder or HDF5 file of features, or a folder of those")
    command.add_argument("--reference", help="JSONL file that the text features were made from")
    command.add_argument("--unlabelled", action="store_true", help="rows without moments are fine")
    command.add_argument("--clip-length", type=seconds, help="seconds per clip, to check clip indices with")
    command.add_argument("--limit", type=count_or_none, default=100, help="problems shown (100)")

    command = commands.add(
        "mine-negatives", mine_negatives, "find the negative queries of each row (Principles 1 and 2)"
    )
    command.add_argument("rows", help="JSONL file of canonical rows of one split")
    command.add_argument("--out", required=True, help="JSONL file to write, with neg_query_ids")
    models = "sentence-transformers model, by name or folder, or hashed-words (minilm)"
    command.add_argument("--encoder", default="minilm", help=models)
    command.add_argument("--iou-threshold", type=share, default=0.5, help="negatives overlap the moments by less (0.5)")
    similarity = command.add_mutually_exclusive_group()
    below = "and their sentences have a cosine below (0.75)"
    similarity.add_argument("--similarity-threshold", type=share, default=0.75, help=below)
    weigh = "instead, let each count by one minus its cosine (neg_query_weights)"
    similarity.add_argument("--weight-by-similarity", action="store_true", help=weigh)
    command.add_argument("--device", type=device, help="for the encoder, such as cuda:0")
