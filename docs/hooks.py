"""What the documentation site makes by itself: a reference page per module, and links from `[`Name`]` in the text."""

import ast
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGE = "modeling_bmdetr"
# `[`Name`]` or `[`Name.method`]`, as docstrings name what they lean on, unless a target follows already.
REFERENCE = re.compile(r"\[`([A-Za-z_][\w.]*)`\](?![\[(])")


def modules() -> dict[str, Path]:
    """Dotted name and file of every module of the package that has anything public of its own."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not any(part.startswith("__") for part in parts) and parts[:2] != (PACKAGE, "cli"):
            found[".".join(parts)] = path
    return found


def public_places() -> dict[str, str]:
    """Dotted path of each public class and function, by its short name, and of methods as `Class.method`."""
    places = {}
    for module, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                places[node.name] = f"{module}.{node.name}"
                for member in node.body if isinstance(node, ast.ClassDef) else ():
                    if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                        places[f"{node.name}.{member.name}"] = f"{module}.{node.name}.{member.name}"
    return places


PLACES = public_places()


def link_references(text: str) -> str:
    """`[`Name`]` becomes a link where the name is ours, and plain code where it is another library's."""
    return REFERENCE.sub(
        lambda found: f"[`{found[1]}`][{PLACES[found[1]]}]" if found[1] in PLACES else f"`{found[1]}`", text
    )


class CrossReferences(griffe.Extension):
    """Links the references in docstrings."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = link_references(obj.docstring.value)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the reference to the navigation: one page per module, grouped by room."""
    rooms: dict[str, list[dict[str, str]]] = {}
    for module in modules():
        room, _, name = module.removeprefix(f"{PACKAGE}.").rpartition(".")
        rooms.setdefault(room or "the package", []).append({name: f"reference/{module}.md"})
    config.nav = [*(config.nav or []), {"Reference": [{room: pages} for room, pages in rooms.items()]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the reference page of each module."""
    for module in modules():
        content = (
            f"# `{module.removeprefix(f'{PACKAGE}.')}`\n\n::: {module}\n    options: {{show_root_heading: false}}\n"
        )
        files.append(File.generated(config, f"reference/{module}.md", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links the references in the pages."""
    return link_references(markdown)
