"""Commands printed in the README and in the pages: they exist, with the arguments that they are given."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from modeling_bmdetr.cli import build_parser

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
BLOCK = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The command lines of a page's shell blocks, as words; without assignments of variables before them."""
    found = []
    for block in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|(?<!\|)\|(?!\|)", line):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                    words.pop(0)
                if words:
                    found.append(words)
    return found


def test_there_are_commands() -> None:
    assert len([words for page in PAGES for words in commands(page) if words[0] == "bmdetr"]) > 8


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_bmdetr_have_known_arguments(page: str) -> None:
    for words in commands(page):
        if words[0] == "bmdetr" and "..." not in words:  # which stands for arguments that are left out
            build_parser().parse_args(words[1:])


@pytest.mark.parametrize("page", PAGES)
def test_scripts_and_targets_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in commands(page):
        scripts = [
            word for word in words if word.startswith(("examples/", "tests/")) and word.endswith((".py", ".yaml"))
        ]
        for script in scripts:
            assert (ROOT / script).is_file(), f"{page}: {' '.join(words)}"
        if words[0] == "make":
            assert set(words[1:]) <= targets, f"{page}: {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_the_readme_names_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    sentence = re.search(r"Extras: (.*?)\. ", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert sentence is not None
    # Extras of which one holds another are named with it: `all` (those, but `ray`).
    assert set(re.findall(r"`([a-z0-9]+)`", sentence.group(1))) == set(extras)
