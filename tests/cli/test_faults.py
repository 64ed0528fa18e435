"""Faults on the command line: one line and exit code 2 where they can be expected, else a traceback that is kept."""

import argparse
import logging
import pickle
import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest
from tqdm.auto import tqdm

from modeling_bmdetr import cli
from modeling_bmdetr.cli import main
from modeling_bmdetr.data.rows.qids import canonical_qid


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """`failing(function)`: runs `bmdetr info x` with the command's work replaced; returns exit code and lines."""

    def run(function, capsys) -> tuple[int, list[str]]:
        def build_parser() -> argparse.ArgumentParser:
            parser = cli.OneLineParser(prog="bmdetr")
            cli.Commands(parser).add("info", function, "a command that fails")
            return parser

        monkeypatch.setattr(cli, "build_parser", build_parser)
        code = main(["info"])
        return code, capsys.readouterr().err.splitlines()

    return run


def raising(error: BaseException):
    def command(args: argparse.Namespace) -> int:
        raise error

    return command


def safetensors_error(args) -> int:
    from safetensors.torch import load

    load(b"no tensors")
    return 0


def strict_config(args) -> int:
    from modeling_bmdetr import BMDetrConfig

    BMDetrConfig(hidden_size="x")
    return 0


def nested(args) -> int:
    def deeper(level: int) -> int:
        return deeper(level + 1)

    return deeper(0)


@pytest.mark.parametrize(
    "command",
    [
        raising(ValueError("the file is\nno file")),
        raising(FileNotFoundError("no such file")),
        raising(ImportError("no such module")),
        raising(MemoryError()),
        raising(EOFError()),
        raising(pickle.UnpicklingError("bad pickle")),
        raising(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")),
        safetensors_error,
        strict_config,
        nested,
        lambda args: canonical_qid([1]),
    ],
)
def test_expected_faults_are_one_line_and_exit_code_2(command, failing, capsys) -> None:
    code, lines = failing(command, capsys)
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("bmdetr info: ")
    assert len(lines[0]) > len("bmdetr info: ")


@pytest.mark.parametrize("error", [KeyError("x"), AssertionError(), TypeError("bad operand"), RuntimeError("deep")])
def test_unexpected_faults_ask_for_a_report_and_keep_the_traceback(error, failing, capsys) -> None:
    code, lines = failing(raising(error), capsys)
    assert code == 1
    assert len(lines) == 1
    assert "please report it" in lines[0]
    path = Path(re.search(r"written to (\S+)$", lines[0])[1])
    text = path.read_text(encoding="utf-8")
    path.unlink()
    assert "Traceback (most recent call last)" in text
    assert type(error).__name__ in text
    assert "arguments: ['info']" in text


def test_where_no_file_can_be_written_the_traceback_is_shown(failing, capsys, monkeypatch) -> None:
    def full(**options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    code, lines = failing(raising(KeyError("x")), capsys)
    assert code == 1
    assert "Traceback (most recent call last):" in lines
    assert lines[-1].endswith("which was written to standard error, above")


def test_an_interrupt_has_the_exit_code_of_one(failing, capsys) -> None:
    assert failing(raising(KeyboardInterrupt()), capsys) == (130, ["bmdetr info: interrupted"])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["predict"],
        ["nothing"],
        ["predict", "a.mp4", "x", "--model", "m", "--top-k", "many"],
        ["info", "a", "--what"],
    ],
)
def test_arguments_that_do_not_fit_are_one_line_and_exit_code_2(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bmdetr")
    assert "--help" in line


def test_version(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert re.fullmatch(r"bmdetr (\d+\.\d+\.\d+\S*|\(not installed\))", capsys.readouterr().out.strip())


def test_the_parser_of_every_command_has_json_and_quiet() -> None:
    (commands,) = (action for action in cli.build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, parser in commands.choices.items():
        options = {option for action in parser._actions for option in action.option_strings}
        assert {"--json", "--quiet", "--help"} <= options, name


def test_quiet_is_over_when_the_command_is(capsys, monkeypatch) -> None:
    def command(args: argparse.Namespace) -> int:
        logging.getLogger("modeling_bmdetr").warning("a warning")
        warnings.warn("another warning", stacklevel=1)
        list(tqdm(range(3), desc="a bar"))
        return 0

    def build_parser() -> argparse.ArgumentParser:
        parser = cli.OneLineParser(prog="bmdetr")
        cli.Commands(parser).add("info", command, "a command that says much")
        return parser

    monkeypatch.setattr(cli, "build_parser", build_parser)
    assert main(["info", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    with pytest.warns(UserWarning, match="another warning"):
        assert main(["info"]) == 0
    assert "a bar" in capsys.readouterr().err
    assert logging.root.manager.disable < logging.WARNING


def test_python_m(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bmdetr", "--version"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("modeling_bmdetr.cli", run_name="__main__")
    assert stop.value.code == 0


def test_a_missing_gradio_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--model", "nowhere"]) == 2
    assert capsys.readouterr().err == "bmdetr demo: the page needs Gradio: pip install gradio\n"


def test_options_that_exclude_each_other_are_refused_before_anything_is_loaded(tmp_path: Path, capsys):
    assert main(["export", "nowhere", "--out", str(tmp_path / "x"), "--format", "torch-export", "--int8"]) == 2
    assert capsys.readouterr().err == "bmdetr export: --int8 belongs to --format onnx: leave one of them out\n"
