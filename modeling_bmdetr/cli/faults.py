"""What becomes of an exception: one line and exit code 2 where it can be expected, a traceback in a file where not."""

import json
import os
import pickle
import struct
import sys
import tempfile
import traceback
import zipfile
import zlib

# Faults of input, files and connections, by the errors of Python that say so. Other errors of Python, such as KeyError
# and AssertionError, are faults of this package.
_EXPECTED: tuple[type[BaseException], ...] = (
    *(ValueError, OSError, ImportError, MemoryError, EOFError, RecursionError),
    *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error, json.JSONDecodeError),
)
# Those of libraries, by package and name, so that they need not be imported to be known.
_EXPECTED_OF_LIBRARIES = {
    ("safetensors", "SafetensorError"),
    ("huggingface_hub", "StrictDataclassError"),
    ("httpx2", "HTTPError"),
    ("httpx", "HTTPError"),
    ("av", "FFmpegError"),
    ("torch", "OutOfMemoryError"),
}


def is_expected(error: BaseException) -> bool:
    """Whether the error says that input, files, memory or a connection are at fault, and not this package."""
    if _raised_on_purpose(error):
        return True
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}
    return isinstance(error, _EXPECTED) or bool(kinds & _EXPECTED_OF_LIBRARIES)


def _raised_on_purpose(error: BaseException) -> bool:
    """Whether a `raise` of this package made the error: then it is a check that speaks, whatever the kind of error."""
    frames = traceback.extract_tb(error.__traceback__)
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return bool(frames) and frames[-1].filename.startswith(package) and (frames[-1].line or "").startswith("raise ")


def message_of(error: BaseException) -> str:
    """What an expected error says, or what its kind means where it says nothing."""
    if isinstance(error, RecursionError):
        return "the input is nested too deeply to be read"
    if isinstance(error, MemoryError):
        return f"there is not enough memory ({error})" if str(error) else "there is not enough memory"
    if isinstance(error, (EOFError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error)):
        return f"a file is damaged, cut off or of another kind than its name says ({error or type(error).__name__})"
    return str(error) or type(error).__name__


def keep_traceback(error: BaseException, arguments: list[str]) -> str:
    """Writes the traceback of an unexpected error to a new file, or else to standard error; says where it is."""
    from .common import version

    lines = traceback.format_exception(error)
    head = f"bmdetr {version()}, Python {sys.version.split()[0]}\narguments: {arguments!r}\n\n"
    try:
        descriptor, name = tempfile.mkstemp(prefix="bmdetr-traceback-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(head + "".join(lines))
    except OSError:  # no place for it, as on a full disk
        sys.stderr.write(head + "".join(lines))
        return "standard error, above"
    return name
