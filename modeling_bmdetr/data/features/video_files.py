"""The video files of rows: where they are, and whether they are as long as the rows say."""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ...video_bmdetr import probe_video
from ..rows.jsonl import RowFile
from ..rows.schema import VIDEO_SUFFIXES, Problem, folded_name
from .sources import nearest

# A video file may be this much shorter or longer than its row says before a warning is due.
DURATION_TOLERANCE_S = 1.0


class VideoFiles:
    """The video files in some folders, found by rows. Each folder is listed once.

    A row's file is its `video` path, or `<vid>` with a known suffix, in the first folder that has it. Suffixes match in
    capitals too, and accents in either of their Unicode forms. The file lies in the folder or below it: a path that
    leads elsewhere finds nothing.
    """

    def __init__(self, folders: Iterable[str | os.PathLike]) -> None:
        self.folders = [Path(folder) for folder in folders]
        self._listings: dict[Path, dict[str, str]] = {}

    def find(self, row: Mapping[str, Any]) -> Path | None:
        """The video file of a row; None where there is none."""
        path = row.get("video") or row["vid"]
        if not isinstance(path, str) or "\0" in path:
            return None
        endings = ("",) if row.get("video") else ("", *VIDEO_SUFFIXES)
        for folder in self.folders:
            inside = os.path.relpath(os.path.join(folder, path), folder)
            if inside.split(os.sep)[0] == "..":
                continue
            parent, name = os.path.split(inside)
            files = self._files(folder / parent)
            for ending in endings:
                if (found := files.get(name + ending) or files.get(_folded(name + ending))) is not None:
                    return folder / parent / found
        return None

    def missing(self, row: Mapping[str, Any]) -> str:
        """What to say of a row whose video is not there."""
        name = str(row.get("video") or row["vid"])
        sought = name if row.get("video") else f"{name}{{{','.join(VIDEO_SUFFIXES[:3])}, ...}}"
        names = [name for name in self._files(self.folders[0]) if not name.endswith("/")]
        return f"there is no video '{sought}' in '{self.folders[0]}'{nearest(name, names)}"

    def _files(self, folder: Path) -> dict[str, str]:
        """Names of the files in a folder, by themselves and folded."""
        if folder not in self._listings:
            files: dict[str, str] = {}
            with suppress(OSError), os.scandir(folder) as entries:
                for name in sorted(entry.name for entry in entries if entry.is_file()):
                    if not name.startswith("._"):  # what macOS puts beside a file
                        files[name] = name
                        files.setdefault(_folded(name), name)
            self._listings[folder] = files
        return self._listings[folder]


def find_video(row: Mapping[str, Any], folders: Iterable[str | os.PathLike]) -> Path | None:
    """The video file of a row in the first folder that has it, see [`VideoFiles`]; None where there is none."""
    return VideoFiles(folders).find(row)


def _folded(name: str) -> str:
    """`folded_name`, marked by what no file name holds."""
    return folded_name(name) + "/"


def existing_folder(folder: str | Path, argument: str) -> Path:
    """The folder, if there is one; `argument` is what messages call it."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{argument} '{folder}' is not a folder.")
    return Path(folder)


def lines_of(rows: Sequence[Mapping[str, Any]]) -> Sequence[int | None]:
    """The line of each row in its file; None for rows of no file."""
    return rows.line_numbers if isinstance(rows, RowFile) else [None] * len(rows)


def check_video_files(
    rows: Sequence[Mapping[str, Any]], video_dir: str | Path, *, beside: Path | None = None, progress: bool = True
) -> list[Problem]:
    """One problem for each video that is missing, cannot be read, or is not as long as its row says.

    Reads the first frame of every video, which needs PyAV (`pip install av`).
    """
    files = VideoFiles([existing_folder(video_dir, "video_dir"), *([beside] if beside is not None else [])])
    first_rows: dict[str, tuple[Mapping[str, Any], int | None]] = {}
    for row, line in zip(rows, lines_of(rows), strict=True):
        first_rows.setdefault(row["vid"], (row, line))
    problems = []
    for row, line in tqdm(first_rows.values(), desc="videos", unit="video", disable=not progress):
        path = files.find(row)
        if path is None:
            problems.append(Problem("error", line, "vid", files.missing(row), row["qid"]))
            continue
        message = _compare_duration(path, row.get("duration"))
        if message:
            severity, text = message
            problems.append(Problem(severity, line, "duration", text, row["qid"]))  # type: ignore[arg-type]
    return problems


def _compare_duration(path: Path, duration: Any) -> tuple[str, str] | None:
    """(severity, message) if the file cannot be read or its length is not `duration`; None if all is well."""
    try:
        length_s = probe_video(path).duration_s
    except ValueError as error:
        return "error", str(error)
    if not isinstance(duration, (int, float)) or abs(length_s - duration) <= DURATION_TOLERANCE_S:
        return None
    return "warning", f"is {duration} s, but '{path}' is {length_s:.2f} s long"
