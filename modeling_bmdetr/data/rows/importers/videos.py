"""The videos of a folder, by the many names that annotations have for them."""

import os
from contextlib import suppress
from pathlib import Path

from ....video_bmdetr import END_TOLERANCE_S, END_TOLERANCE_SHARE, VideoInfo, probe_video
from ..schema import TIME_TOLERANCE_S, VIDEO_SUFFIXES, folded_name


class VideoFolder:
    """The videos of a folder, found by what annotations call them, and measured at most once."""

    def __init__(self, folder: str | os.PathLike | None) -> None:
        self.folder = Path(folder) if folder is not None else None
        self.probed: dict[Path, VideoInfo] = {}
        self.measured: set[Path | None] = set()
        self.names: dict[str, str] = {}
        self.first_s: dict[str, float] = {}
        self.by_name: dict[str, list[Path]] = {}
        if self.folder is None:
            return
        if not self.folder.is_dir():
            raise FileNotFoundError(f"there is no folder of videos '{self.folder}'")
        for path in sorted(self.folder.rglob("*")):
            hidden = path.name.startswith("._")  # what macOS puts beside a file
            if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() and not hidden:
                names = (path.relative_to(self.folder).as_posix(), path.name, path.stem)
                for name in {*names, *(folded_name(name) + "/" for name in names)}:
                    self.by_name.setdefault(name, []).append(path)

    def identifier(self, name: str) -> str:
        """The `vid` of what a file calls its video: the file name without folder and suffix.

        Raises:
            ValueError: if two different videos would get the same one.
        """
        vid = _without_suffix(name).rsplit("/", 1)[-1]
        if not vid:
            raise ValueError(f"expected the name of a video, received {name!r}")
        first = self.names.setdefault(vid, name)
        if first != name and self._which(first) != self._which(name):
            hint = ", or give the folder of videos if they are one (--videos)" if self.folder is None else ""
            message = f"{name!r} and {first!r} are different videos with one name; rename one of the files"
            raise ValueError(message + hint)
        return vid

    def path(self, name: str) -> Path | None:
        """The file of what a file calls its video.

        Raises:
            ValueError: if several files of the folder could be meant.
        """
        parts = _posix(name).split("/")
        for candidate in ["/".join(parts[at:]) for at in range(len(parts))]:
            found = self._named(candidate)
            if len(found) > 1:
                raise ValueError(f"{name!r} could be {' or '.join(repr(str(path)) for path in found[:3])}")
            if found:
                return found[0]
        stem, _, suffix = parts[-1].rpartition(".")
        if f".{suffix.lower()}" not in VIDEO_SUFFIXES:
            return None  # a part of the name, as in cam.2
        found = self._named(stem)
        return found[0] if len(found) == 1 else None

    def _which(self, name: str) -> Path | str:
        """What tells a video from others: its file, or where there is none its name as written, without the suffix."""
        return self.path(name) or _without_suffix(name)

    def _named(self, name: str) -> list[Path]:
        return self.by_name.get(name) or self.by_name.get(folded_name(name) + "/", [])

    def probe(self, name: str, wanted: str) -> VideoInfo:
        """What the file of a video says.

        Raises:
            ValueError: if there is no such file, or it cannot be read.
        """
        if self.folder is None:
            raise ValueError(f"the {wanted} of video {name!r} is not in the file; give the folder of videos (--videos)")
        path = self.path(name)
        if path is None:
            raise ValueError(f"there is no video {name!r} in '{self.folder}'")
        if path not in self.probed:
            self.probed[path] = probe_video(path)
        return self.probed[path]

    def require_one_duration(self, name: str, vid: str, duration_s: float) -> None:
        """Refuses a video that had another length before."""
        first_s = self.first_s.setdefault(vid, duration_s)
        if abs(duration_s - first_s) > TIME_TOLERANCE_S:
            raise ValueError(
                f"the video {name!r} is {duration_s:.3f} s long here, but {first_s:.3f} s before; write one "
                "duration in all its lines"
            )

    def duration_s(self, name: str, stated_s: float | None = None) -> float:
        """The length of a video, as stated or else as its file says.

        Raises:
            ValueError: if neither says it, or the file says another one: by more than 1 s and 2 %, as much as the
                frames of a file may end early.
        """
        path = self.path(name)
        if stated_s is None:
            stated_s = self.probe(name, "duration").duration_s
            self.measured.add(path)
        if path is None:
            return stated_s
        found_s = stated_s
        with suppress(ValueError, OSError):  # a file that cannot be read says nothing against what is stated
            found_s = self.probe(name, "duration").duration_s
        if abs(found_s - stated_s) > max(END_TOLERANCE_S, END_TOLERANCE_SHARE * found_s):
            raise ValueError(
                f"the duration is {stated_s:.2f} s, but '{path}' is {found_s:.2f} s long; is it in another unit, or "
                "the length of the moment? Choose another column (--columns duration=NAME), or rename this one, so "
                "that durations are taken from the videos"
            )
        return stated_s

    def relative(self, name: str, vid: str) -> str | None:
        """The path of a video in the folder, where it does not follow from `vid`."""
        path = self.path(name) if self.folder is not None else None
        if path is None or self.folder is None:
            return None
        shown = path.relative_to(self.folder).as_posix()
        return None if shown in {vid + suffix for suffix in VIDEO_SUFFIXES} else shown


def _posix(name: str) -> str:
    """The path in what a file calls its video."""
    return name.replace("\\", "/").split("?d=")[-1].split("?")[0].removeprefix("./")


def _without_suffix(name: str) -> str:
    """The same without the suffix of a video file."""
    path = _posix(name).rstrip("/")
    stem, dot, suffix = path.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in VIDEO_SUFFIXES else path
