"""Writing files whole: a reader finds what was there before or all that is new, never a part, whatever dies when.

A file or folder is written aside, under a name that nobody can guess, in the folder where it belongs; it is made
durable and then renamed. What a killed process left aside is deleted by the next that writes to the same folder: a
live writer holds a lock on what it writes, and the lock goes with its process.
"""

import errno
import filecmp
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # not on this system: leftovers are then not told from files being written, and stay
    fcntl = None  # type: ignore[assignment]

_ASIDE = re.compile(r"^\..*\.[0-9a-f]{16}\.unfinished(\.\w+)?$")
# How writing fails in Python, on a disk or a share of it that is full or broken, and in `torch.save`.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_TORCH_WRITING = re.compile(r"inline_container|iostream error|PytorchStreamWriter|Parent directory .* does not exist")


@contextmanager
def naming_failed_writes(path: str | os.PathLike) -> Iterator[None]:
    """Makes one error, which names `path`, of all that libraries raise where a file in or at it cannot be written.

    Python's own error for a full disk has no name, `torch.save` raises `RuntimeError`, and safetensors an error of its
    own kind. Every other error passes.

    Raises:
        OSError: writing failed.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_failed_write(error):
            raise
        reason = f" ({error.strerror})" if isinstance(error, OSError) else ""  # the others' texts help nobody
        failed = OSError(
            f"writing '{path}' failed{reason}: is the disk full? Make room, or write to another folder, then run it "
            "again"
        )
        failed.errno = getattr(error, "errno", None)
        raise failed from error


def _is_failed_write(error: BaseException) -> bool:
    if isinstance(error, OSError):  # one that was named already has its message alone
        return error.errno in _FULL and error.filename is None and len(error.args) > 1
    if isinstance(error, SafetensorError):
        return "Error while serializing" in str(error)
    return _TORCH_WRITING.search(str(error)) is not None


@contextmanager
def replacing_file(path: str | os.PathLike, *, binary: bool = False) -> Iterator[IO[Any]]:
    """A file to write to (UTF-8 text unless `binary`), which takes the place of `path` when the block ends well.

    After an error `path` is as it was. A symbolic link at `path` is replaced, not followed. Devices and pipes
    (`/dev/stdout`) cannot be replaced and are written to directly.

    Raises:
        OSError: the folder cannot be written to, the file is read-only, or the disk is full.
    """
    encoding = None if binary else "utf-8"
    if is_device(Path(path)):
        with open(path, "wb" if binary else "w", encoding=encoding) as file:
            yield file
        return
    with replacing_path(path) as aside, open(aside, "wb" if binary else "w", encoding=encoding) as file:
        yield file


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes JSON that people can read, whole or not at all; missing folders are made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(path) as file:
        file.write(json.dumps(content, indent=2) + "\n")


@contextmanager
def replacing_path(path: str | os.PathLike) -> Iterator[Path]:
    """As `replacing_file`, for libraries that open files by name: gives the name to write to, with the same suffix."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(f"'{path}' is a folder: name a file in it")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"'{path}' is read-only: make it writable, or write to another file")
    remove_leftovers(path.parent)
    lock, aside = _create_aside(path)
    try:
        with naming_failed_writes(path):
            yield aside
            _sync(aside)
        os.replace(aside, path)
        _sync(path.parent)
    finally:
        os.close(lock)
        aside.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill, which becomes `path` as a whole when the block ends well.

    Raises:
        FileExistsError: `path` is a file, or a folder that is not empty.
        OSError: the folder cannot be made, or the disk is full.
    """
    path = Path(path)
    if path.is_symlink() or path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise FileExistsError(f"'{path}' exists and is not an empty folder: name another one")
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming_failed_writes(path), _folder_aside(path) as aside:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                _sync(file)
        os.rename(aside, path)
        _sync(path.parent)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder, for this user alone, among the system's temporary files; deleted when the block ends.

    What killed processes left of theirs is deleted first.
    """
    with _folder_aside(Path(tempfile.gettempdir()) / "bmdetr", mode=0o700) as folder:
        yield folder


@contextmanager
def replacing_files(folder: str | os.PathLike, key: str, stale: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to fill, whose files take their places in `folder` when the block ends well; others there stay.

    For files that belong together and are useless without `key`: the old `key` goes first and the new one comes last,
    so that whoever dies between leaves a folder that is refused, never one that mixes old and new. Files that are the
    same already stay, and where only `key` is another one it is replaced at once, so that there is always one.

    Args:
        key: Name of the file without which the others are not read.
        stale: Patterns of names that are deleted where the new files do not replace them.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with naming_failed_writes(folder), _folder_aside(folder / "saved") as aside:
        yield aside
        files = sorted((path for path in aside.rglob("*") if path.is_file()), key=lambda path: path == aside / key)
        names = {file.relative_to(aside).as_posix() for file in files}
        for file in files:
            # Some libraries write for the owner alone; all get the permissions of any file made here.
            file.chmod((aside.stat().st_mode & 0o666) | 0o600)
            _sync(file)
        files = [file for file in files if not _is_same(file, folder / file.relative_to(aside))]
        old_files = {
            old for pattern in stale for old in folder.glob(pattern) if old.name not in names and old.is_file()
        }
        if key in names and (old_files or files not in ([], [aside / key])):
            (folder / key).unlink(missing_ok=True)
            files += [] if aside / key in files else [aside / key]
        for old in old_files:
            old.unlink()
        for file in files:
            target = folder / file.relative_to(aside)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
        _sync(folder)


def require_writable(folder: str | os.PathLike) -> None:
    """Refuses a folder that cannot be made or written to, before anything slow is done for it; leaves nothing there.

    Raises:
        OSError: a part of its path is no folder, or nothing can be written there.
    """
    folder = Path(folder)
    there = next((part for part in (folder, *folder.parents) if os.path.lexists(part)), folder)
    if not there.is_dir():
        raise NotADirectoryError(
            f"the folder '{folder}' cannot be made: '{there}' is no folder; name a folder that can be written to"
        )
    try:  # permissions alone do not tell: a file system may be read-only
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(
            f"the folder '{folder}' cannot be written to ({error.strerror}): change its permissions, or name another "
            "folder"
        ) from error


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Deletes what processes that died were writing aside in a folder."""
    if fcntl is None:
        return
    with suppress(FileNotFoundError, PermissionError, NotADirectoryError), os.scandir(Path(folder)) as entries:
        for entry in entries:
            if _ASIDE.match(entry.name) and not entry.is_symlink():
                with suppress(OSError):  # its writer lives, or another process is quicker
                    _remove_unlocked(Path(entry.path), entry.is_dir(follow_symlinks=False))


def _remove_unlocked(path: Path, is_folder: bool) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe of that name would wait
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path) if is_folder else path.unlink()
    finally:
        os.close(descriptor)


def _aside(path: Path) -> Path:
    """A name beside `path` that cannot be guessed; the longest file name a system takes is 255 bytes."""
    stem = os.fsdecode(os.fsencode(path.name)[:150])
    suffix = path.suffix if re.fullmatch(r"\.\w+", path.suffix) else ""
    return path.with_name(f".{stem}.{secrets.token_hex(8)}.unfinished{suffix}")


@contextmanager
def _folder_aside(path: Path, mode: int = 0o777) -> Iterator[Path]:
    """A new, locked folder beside `path`, deleted at the end unless it was renamed; leftovers are deleted first."""
    remove_leftovers(path.parent)
    aside = _aside(path)
    aside.mkdir(mode)
    lock = os.open(aside, os.O_RDONLY) if fcntl is not None else None
    try:
        if lock is not None:
            take_lock(lock)
        yield aside
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(aside, ignore_errors=True)


def _create_aside(path: Path) -> tuple[int, Path]:
    """A new, locked file beside `path`: its descriptor and its name."""
    while True:
        aside = _aside(path)
        try:  # O_EXCL follows no symbolic link; the usual permissions, less the umask
            descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            error.filename = str(path)
            raise
        take_lock(descriptor)
        if os.fstat(descriptor).st_nlink:
            return descriptor, aside
        os.close(descriptor)  # taken for a leftover before it was locked


def take_lock(descriptor: int) -> bool:
    """Locks an open file or folder without waiting; False where another process holds the lock.

    It goes with the process, killed or not. Where there are no locks, everyone gets one.
    """
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # file systems without locks
        pass
    return True


def _is_same(file: Path, other: Path) -> bool:
    """Whether another file, not a link to one, has the same content and permissions."""
    if other.is_symlink() or not other.is_file() or file.stat().st_mode != other.stat().st_mode:
        return False
    return filecmp.cmp(file, other, shallow=False)


def _sync(path: Path) -> None:
    """Makes a file, or the names in a folder, durable; not every system can do so for a folder."""
    if path.is_dir():
        with suppress(OSError):
            _sync_descriptor(os.open(path, os.O_RDONLY))
    else:
        _sync_descriptor(os.open(path, os.O_RDWR))


def _sync_descriptor(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_device(path: Path) -> bool:
    """Whether `path` leads to something that is no regular file, or lies where devices and descriptors do."""
    if path.parts[1:2] in (("dev",), ("proc",)) and path.parts[1:3] != ("dev", "shm"):
        return path.exists() and not path.is_dir()
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
