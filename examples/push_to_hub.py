"""Uploads a saved checkpoint to the Hub in one commit, complete with code, processor and model card.

    python examples/push_to_hub.py outputs/quickstart/model my-name/bmdetr-moving-shapes --private --license mit

The folder is what `save_pretrained`, the trainer or the converter wrote. It is loaded first, so that nothing is
published that cannot be loaded, and its code files are replaced by those of the installed library. With `--results`, or
where the folder has a `results.json`, the model card is written anew from that record; else the folder's card is used.
"""

import argparse
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import ModelCard

from modeling_bmdetr import BMDetrForMomentRetrieval, BMDetrProcessor
from modeling_bmdetr.cards import write_model_card
from modeling_bmdetr.saving_bmdetr import (
    CARD_FILE,
    PROCESSOR_FILE,
    fetch_companions,
    open_repository,
    upload_checkpoint,
)

RESULTS_FILE = "results.json"


def main() -> int:
    args = parse_arguments()
    try:
        print(push(args))
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the checkpoint")
    parser.add_argument("repo_id", help="repository, as OWNER/NAME; made if it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to commit to, made if it does not exist (default: main)")
    parser.add_argument("--token", help="access token (default: the one stored by `hf auth login`)")
    parser.add_argument("--message", help="message of the commit")
    parser.add_argument("--results", type=Path, help=f"record of results for the card (default: FOLDER/{RESULTS_FILE})")
    parser.add_argument("--license", help="licence of the weights, such as mit or cc-by-nc-4.0")
    parser.add_argument("--language", help="language of the sentences, such as en; only with a new card")
    parser.add_argument("--keep-card", action="store_true", help="leave the repository's model card as it is")
    return parser.parse_args()


def push(args: argparse.Namespace) -> str:
    """Loads, completes and uploads the checkpoint; returns the address of the commit."""
    model, processor = load(args.folder)
    results = args.results or (args.folder / RESULTS_FILE)
    if args.keep_card and (args.license or args.language):
        raise ValueError("--license and --language change the card; leave out --keep-card, or edit the card there")
    if args.results is not None and not results.is_file():
        raise FileNotFoundError(f"'{results}', given as --results, does not exist")
    places: dict[str, Any] = {"revision": args.revision, "private": args.private, "token": args.token}
    with TemporaryDirectory() as staging:
        if args.keep_card:
            fetch_companions(staging, open_repository(args.repo_id, **places), args.revision, args.token)
        elif results.is_file():
            shutil.copy(results, Path(staging) / RESULTS_FILE)
            write_model_card(
                model, staging, results, repo_id=args.repo_id, license=args.license, language=args.language
            )
        elif (args.folder / CARD_FILE).is_file():
            shutil.copy(args.folder / CARD_FILE, staging)
            stamp(Path(staging) / CARD_FILE, args.license, args.language)
        processor.save_pretrained(staging)
        model.save_pretrained(staging)
        return upload_checkpoint(
            staging, args.repo_id, **places, commit_message=args.message, more_files=[RESULTS_FILE]
        )


def stamp(card: Path, license: str | None, language: Any) -> None:
    """Writes licence and language, where they are given, into a card that is there."""
    given = {"license": license, "language": language}
    if any(given.values()):
        read = ModelCard.load(card, ignore_metadata_errors=True)
        for name, value in given.items():
            if value:
                setattr(read.data, name, value)
        read.save(card)


def load(folder: Path) -> tuple[BMDetrForMomentRetrieval, BMDetrProcessor]:
    """The checkpoint, if it is whole: every weight is there and none is left over.

    Raises:
        FileNotFoundError: there is no such folder or no configuration in it.
        ValueError: weights are missing or superfluous, or the processor has another feature contract than the model.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"'{folder}' is no saved checkpoint: it has no config.json")
    model = BMDetrForMomentRetrieval.from_pretrained(folder, dtype="auto")
    if not (folder / PROCESSOR_FILE).is_file():
        return model, BMDetrProcessor(model.config)
    processor = BMDetrProcessor.from_pretrained(folder)
    model.config.feature_contract.require_match(processor.contract, "config.json", PROCESSOR_FILE)
    return model, processor


if __name__ == "__main__":
    sys.exit(main())
