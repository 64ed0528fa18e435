"""Writes the tables of stored results into the pages that show them.

    python examples/results_tables.py            # after a file in examples/results/ changed
    python examples/results_tables.py --check    # exit code 1 where a page shows anything else than what is stored

A page says where a table belongs with a pair of comments; what stands between them is written by this script:

    <!-- results: ablations.json objective -->
    <!-- end -->

The file holds `{"tables": {"objective": {"columns": [...], "rows": [[...], ...]}, ...}}`, every cell a string.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from modeling_bmdetr.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "examples" / "results"
PLACE = re.compile(r"(<!-- results: (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def stored_table(file: str, name: str) -> str:
    """A table of a file in `examples/results/`, as Markdown."""
    tables = json.loads((RESULTS / file).read_text(encoding="utf-8"))["tables"]
    if name not in tables:
        raise ValueError(f"examples/results/{file} has no table '{name}'; it has {sorted(tables)}")
    return markdown_table(tables[name]["columns"], tables[name]["rows"], rule="---") + "\n"


def with_stored_tables(page: str) -> str:
    """The page's text with every table as it is stored."""
    return PLACE.sub(lambda place: f"{place[1]}\n{stored_table(place[2], place[3])}\n{place[4]}", page)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where a page would change")
    args = parser.parse_args()
    changed = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        page = path.read_text(encoding="utf-8")
        written = with_stored_tables(page)
        if written != page:
            changed.append(path.relative_to(ROOT))
            if not args.check:
                path.write_text(written, encoding="utf-8")
    verb = "differs" if args.check else "written"
    print("\n".join(f"{verb}: {path}" for path in changed) or "all tables are as stored")
    return int(args.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
