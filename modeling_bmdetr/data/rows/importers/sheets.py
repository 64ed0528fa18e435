"""Tables as text: the cells of CSV, TSV and spreadsheet files, each with the place where it stands."""

import csv
import datetime
import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError
from zipfile import BadZipFile, ZipFile

from ....packages_bmdetr import needed_module
from .moments import AnnotationError, fault, read_text

DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
SPREADSHEETS = (".xlsx", ".xlsm")
# A spreadsheet of a few bytes may span millions of cells, or unpack to more than memory holds.
MOST_CELLS, MOST_BYTES = 10_000_000, 2**28
# What openpyxl raises where a part of the file is not what its place asks for.
_DAMAGED = (
    *(BadZipFile, ParseError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, EOFError, OSError),
    *(zlib.error, NotImplementedError, RuntimeError),
)
REMEDY = "delete what stands aside from the table, or save it as CSV"


@dataclass(frozen=True)
class Table:
    """The lines of a table that are not blank.

    Attributes:
        lines: the number of each line in its file, from 1, and its cells.
        place: names a line, or with the number of a column from 1 a cell.
        kind: what the file was taken for, in words.
        delimiter: what separates cells, where something does.
    """

    lines: list[tuple[int, list[str]]]
    place: Callable[[int, int | None], str]
    kind: str
    delimiter: str | None = None


def read_table(
    path: Path, *, delimiter: str | None = None, sheet: str | None = None, encoding: str | None = None
) -> Table:
    """The table in a `.csv`, `.tsv`, `.txt` or `.xlsx` file.

    The cells of a spreadsheet become the text that it shows, as far as times go: a cell with the format `h:mm` that
    shows 1:05 is the text 1:05.

    Raises:
        AnnotationError: if the file is not such a table.
        ImportError: if a spreadsheet is to be read and openpyxl is not installed.
    """
    if path.suffix.lower() in SPREADSHEETS:
        return _read_spreadsheet(path, sheet)
    text = read_text(path, encoding)
    delimiter = delimiter or _delimiter(text)
    lines = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    first = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((first, [cell.strip() for cell in cells]))
            first = reader.line_num + 1
    except csv.Error as error:
        raise fault(path, f"line {first}", f"cannot be split into cells: {error}; check its quotes") from error
    kind = f"table, cells separated by a {DELIMITERS.get(delimiter, repr(delimiter))}"
    return Table(lines, lambda n, c: f"line {n}" + (f", column {c}" if c is not None else ""), kind, delimiter)


def _delimiter(text: str) -> str:
    """The delimiter that the first line with any has most of, outside quotes."""
    for line in text.splitlines():
        bare = "".join(line.split('"')[::2])
        best = max(DELIMITERS, key=bare.count)
        if bare.count(best):
            return best
    return ","


def _read_spreadsheet(path: Path, sheet: str | None) -> Table:
    missing = "reading spreadsheets needs openpyxl: pip install openpyxl, or save it as CSV"
    openpyxl = needed_module("openpyxl", missing)
    try:
        with ZipFile(path) as packed:
            stated = sum(part.file_size for part in packed.infolist())
        if stated > MOST_BYTES:
            raise fault(path, "", f"unpacks to {stated:,} bytes, more than {MOST_BYTES:,}; {REMEDY}")
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            name, lines = _cells(path, book, sheet)
        finally:
            book.close()
    except AnnotationError:
        raise
    except (openpyxl.utils.exceptions.InvalidFileException, *_DAMAGED) as error:
        raise fault(path, "", f"is not a spreadsheet that can be read ({error})") from error

    def place(line: int, column: int | None) -> str:
        cell = f"cell {openpyxl.utils.get_column_letter(column)}{line}" if column is not None else f"row {line}"
        return f"sheet '{name}', {cell}"

    others = f" of {len(book.sheetnames)}" if len(book.sheetnames) > 1 else ""
    return Table(lines, place, f"spreadsheet, sheet '{name}'{others}")


def _cells(path: Path, book: Any, sheet: str | None) -> tuple[str, list[tuple[int, list[str]]]]:
    """The name of the sheet, and its lines that are not blank."""
    names = [found.title for found in book.worksheets]  # without charts that have a sheet of their own
    if not names or (sheet is not None and sheet not in names):
        raise fault(path, "", f"has no sheet '{sheet}'; its sheets are {', '.join(names) or 'none'}")
    name = sheet or names[0]
    lines, looked_at = [], 0
    for number, row in enumerate(book[name].iter_rows(), start=1):
        looked_at += len(row)
        if looked_at > MOST_CELLS:
            raise fault(path, f"row {number}", f"the sheet spans more than {MOST_CELLS:,} cells; {REMEDY}")
        cells = [_shown(cell) for cell in row]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            lines.append((number, cells))
    return name, lines


def _shown(cell: Any) -> str:
    """A cell as text; times as the format shows them, hours and minutes being minutes and seconds where it has no s."""
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, datetime.datetime):
        value = value - datetime.datetime(1899, 12, 30)
    if isinstance(value, datetime.time):
        value = datetime.datetime.combine(datetime.date.min, value) - datetime.datetime.min
    if isinstance(value, datetime.timedelta):
        seconds = value.total_seconds()
        if "s" not in str(cell.number_format).lower():
            return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02d}"
        return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02d}:{seconds % 60:09.6f}"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return " ".join(str(value).split())
