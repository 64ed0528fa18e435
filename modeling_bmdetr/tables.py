"""Tables in Markdown and in plain text."""

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], rule: str = "---:") -> str:
    """A table of cells that are Markdown already; the first column stands left, the others as `rule` says."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---|" + f"{rule}|" * (len(head) - 1), *lines[1:]])


def plain_table(rows: Sequence[Sequence[str]]) -> str:
    """Cells in aligned columns, the first one to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join("  ".join(line) for line in lines)
