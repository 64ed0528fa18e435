"""One English: "per clip", and "received" in every error."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [
    path.relative_to(ROOT).as_posix()
    for folder in ("modeling_bmdetr", "dataset_scripts", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
PER = re.compile(
    r"\b(values?|rows?|one|rating|folder|frames|seconds|sentence|pixels|tensor|position)"
    r" an? (clip|token|query|video|batch|epoch|row|pair|process|side|layer|event|sample)\b"
    r"(?! (covers|lasts|has|holds|that|of|in|to))"
)

# The name of an encoder in feature stores that exist.
STORED = {" (last hidden layer, one row a token)"}


def texts(tree: ast.AST) -> list[ast.Constant]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


@pytest.mark.parametrize("file", FILES)
def test_errors_say_received_and_rates_say_per(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise):
            for text in texts(node):
                assert not re.search(r"\bgot\b", text.value), f"{file}:{text.lineno} says 'got'; errors say 'received'"
    for text in texts(tree):
        found = None if text.value in STORED else PER.search(text.value)
        assert not found, f"{file}:{text.lineno} says '{found[0] if found else ''}'; say 'per'"
