"""Exports a data set and pushes it, through the command line."""

import json
from pathlib import Path

from reporting import ARGUMENTS, outcome, write_report

from dataset_scripts.__main__ import main

RECORD = {
    "timestamps": [[0, 100], [100, 220], [40, 90]],
    "sentences": ["He cuts bread.", "He waits.", "The tap runs."],
    "fps": 20,
    "num_frames": 240,
}
FOLDER = Path(ARGUMENTS["folder"])
for number, split in enumerate(("train", "val", "test")):
    (FOLDER / f"{split}.json").write_text(json.dumps({f"v{number}.avi": RECORD}))


def export(repository: str, *options: str) -> int:
    arguments = ["export", "tacos", "--data-dir", FOLDER, "--out", FOLDER / "out", "--cache-dir", FOLDER / "cache"]
    return main([str(argument) for argument in (*arguments, "--push-to-hub", repository, *options)])


outcome("export", lambda: export("tester/tacos"))
outcome("other owner", lambda: export("someone/tacos"))
write_report()
