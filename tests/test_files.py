"""Files are written whole: after any death or error the old ones or the new are there, and no litter stays."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modeling_bmdetr.cli.faults import is_expected
from modeling_bmdetr.files_bmdetr import (
    naming_failed_writes,
    remove_leftovers,
    replacing_file,
    replacing_files,
    replacing_folder,
    replacing_path,
    scratch_folder,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_when_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with replacing_file(path) as file:
        file.write("after é")
        file.flush()
        assert path.read_text() == "before"
    assert path.read_text(encoding="utf-8") == "after é"
    assert names(tmp_path) == ["a.txt"]


def half_written(writer, path: Path) -> None:
    with writer(path) as aside:
        if isinstance(aside, Path) and aside.is_dir():
            (aside / "part").write_text("half")
        raise RuntimeError


@pytest.mark.parametrize("writer", [replacing_file, replacing_path, replacing_folder])
def test_an_error_leaves_what_was_there(tmp_path, writer):
    path = tmp_path / "a.txt"
    if writer is not replacing_folder:
        path.write_text("before")
    with pytest.raises(RuntimeError):
        half_written(writer, path)
    assert names(tmp_path) == ([] if writer is replacing_folder else ["a.txt"])
    assert writer is replacing_folder or path.read_text() == "before"


def test_libraries_get_a_name_of_the_same_kind_of_file(tmp_path):
    with replacing_path(tmp_path / "picture.png") as aside:
        assert aside.suffix == ".png"
        assert aside.parent == tmp_path
        aside.write_bytes(b"drawn")
    assert (tmp_path / "picture.png").read_bytes() == b"drawn"


def test_a_folder_takes_its_place_as_a_whole(tmp_path):
    with replacing_folder(tmp_path / "out" / "model") as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "file").write_text("x")
        assert not (tmp_path / "out" / "model").exists()
    assert (tmp_path / "out" / "model" / "sub" / "file").read_text() == "x"
    assert names(tmp_path / "out") == ["model"]
    with pytest.raises(FileExistsError, match="not an empty folder"), replacing_folder(tmp_path / "out"):
        pass


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing_file(tmp_path / "a") as file:
            file.write("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_links_are_replaced_and_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (tmp_path / "a").symlink_to(secret)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for name in ("a", "broken"):
        with replacing_file(tmp_path / name) as file:
            file.write("mine")
        assert not (tmp_path / name).is_symlink()
    assert secret.read_text() == "secret"
    assert not (tmp_path / "nowhere").exists()


def test_names_aside_cannot_be_foreseen(tmp_path):
    seen = set()
    for _ in range(5):
        with replacing_path(tmp_path / "a") as aside:
            seen.add(aside.name)
            aside.write_text("x")
    assert len(seen) == 5


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_and_devices_are_written_to_directly(tmp_path):
    script = (
        "from modeling_bmdetr.files_bmdetr import replacing_file\nwith replacing_file('/dev/stdout') as f: f.write('x')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "x"
    with open(tmp_path / "out", "w") as out:
        subprocess.run([sys.executable, "-c", script], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "x"


def test_where_nothing_can_be_written_the_error_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none/a\.txt"), replacing_file(tmp_path / "none" / "a.txt"):
        pass
    with pytest.raises(IsADirectoryError, match="name a file in it"), replacing_file(tmp_path):
        pass


def test_long_and_odd_names(tmp_path):
    for name in ("é" * 120, "a" * 250, "x.tar.gz", ".hidden", "caf\udce9"):
        with replacing_file(tmp_path / name) as file:
            file.write("x")
        assert (tmp_path / name).read_text() == "x"
    assert len(names(tmp_path)) == 5


KILLED = """
    import os, signal, sys
    from modeling_bmdetr.files_bmdetr import replacing_file, replacing_folder
    writer = replacing_folder if sys.argv[2] == "folder" else replacing_file
    with writer(sys.argv[1]) as aside:
        (aside / "part").write_text("half") if sys.argv[2] == "folder" else aside.write("half")
        sys.argv[3] == "kill" and os.kill(os.getpid(), signal.SIGKILL)
        print("writing", flush=True)
        sys.stdin.read()
"""


def start(path: Path, kind: str, end: str) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(path), kind, end]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_cleared_away_and_what_a_live_one_writes_is_not(tmp_path, kind):
    killed = start(tmp_path / "killed", kind, "kill")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    live = start(tmp_path / "live", kind, "live")
    assert live.stdout is not None
    assert live.stdout.readline() == "writing\n"
    assert [name.split(".")[1] for name in names(tmp_path)] == ["live"]  # it has cleared the other away
    remove_leftovers(tmp_path)
    assert len(names(tmp_path)) == 1
    live.communicate()
    assert names(tmp_path) == ["live"]


def test_only_what_was_written_aside_is_cleared_away(tmp_path):
    kept = [".a.unfinished", "a.0123456789abcdef.unfinished", ".a.0123456789abcdef", ".bashrc"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".a.0123456789abcdef.unfinished").symlink_to(tmp_path / ".bashrc")
    remove_leftovers(tmp_path)
    assert set(kept) < set(names(tmp_path))
    remove_leftovers(tmp_path / "nowhere")


def fill(folder, **files):
    with replacing_files(folder, "key", stale=("old*",)) as aside:
        for name, text in files.items():
            (aside / name).write_text(text)


def test_files_that_belong_together_lose_their_key_first_and_keep_what_is_the_same(tmp_path, monkeypatch):
    fill(tmp_path, key="1", weights="w", old="o", code="c")
    kept = (tmp_path / "code").stat().st_ino
    seen = []
    replace = os.replace

    def watching(source, target):
        seen.append((Path(target).name, (tmp_path / "key").exists()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watching)
    fill(tmp_path, key="2", weights="v", code="c")
    assert seen == [("weights", False), ("key", False)]
    assert names(tmp_path) == ["code", "key", "weights"]
    assert (tmp_path / "code").stat().st_ino == kept
    seen.clear()
    fill(tmp_path, key="3", weights="v", code="c")
    assert seen == [("key", True)]  # there is always one
    fill(tmp_path, key="3", weights="u", code="c")
    assert seen[1:] == [("weights", False), ("key", False)]
    assert (tmp_path / "key").read_text() == "3"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs file locks")
def test_a_scratch_folder_goes_and_so_does_that_of_a_killed_process(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / ".bmdetr.0123456789abcdef.unfinished"
    left.mkdir()
    (left / "weights").write_text("many")
    with scratch_folder() as folder:
        assert not left.exists()
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").write_text("x")
        with scratch_folder() as other:
            assert folder.exists()
            assert other != folder
    assert not names(tmp_path)


@pytest.fixture
def full_disk():
    """Files that cannot grow past 3,000 bytes: as on a full disk, any library's writing fails."""
    resource = pytest.importorskip("resource", reason="files are limited as Linux does")
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1][1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before[1])
    signal.signal(signal.SIGXFSZ, before[0])


LARGE = torch.ones(5000)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(20_000)),
        lambda path: torch.save(LARGE, path),
        lambda path: torch.save([LARGE], open(path, "wb")),  # noqa: SIM115 - a writer that fails in the middle
        lambda path: save_file({"a": LARGE}, path),
    ],
    ids=["python", "torch", "torch_open_file", "safetensors"],
)
def test_on_a_full_disk_every_library_fails_alike(tmp_path, full_disk, write):
    said = f"^writing '{tmp_path / 'a.bin'}' failed.*: is the disk full"
    with (
        pytest.raises(OSError, match=said) as failed,
        naming_failed_writes(tmp_path),
        replacing_path(tmp_path / "a.bin") as aside,
    ):
        write(aside)
    assert is_expected(failed.value)
    assert names(tmp_path) == []


def test_other_errors_than_of_writing_pass(tmp_path):
    for error in (RuntimeError("mat1 and mat2"), FileNotFoundError(2, "No such file", "b"), OSError("said already")):
        with pytest.raises(type(error)) as raised, naming_failed_writes(tmp_path):
            raise error
        assert raised.value is error
