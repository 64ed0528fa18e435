"""Tables in Markdown and in plain text."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

_SIGNS = re.compile(r"([\\`*\[\]<>|&$~])|(?<!\w)_|_(?!\w)")  # of Markdown and HTML


def markdown_text(value: Any) -> str:
    """Text that Markdown and HTML show as it is, on one line, inside a table too."""
    return _SIGNS.sub(lambda found: "\\" + found[0], " ".join(str(value).split()))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], rule: str = "---:") -> str:
    """A table of cells that are Markdown already; the first column stands left, the others as `rule` says."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---|" + f"{rule}|" * (len(head) - 1), *lines[1:]])


def plain_table(rows: Sequence[Sequence[str]]) -> str:
    """Cells in aligned columns, the first one to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join("  ".join(line) for line in lines)
