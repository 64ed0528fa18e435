"""Tables in the pages are those of the stored results."""

import sys

import pytest
import results_tables


def test_every_page_shows_the_stored_tables(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["results_tables.py", "--check"])
    assert results_tables.main() == 0, capsys.readouterr().out


def test_a_page_that_shows_something_else_is_found_and_mended(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "examples" / "results"
    results.mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (results / "r.json").write_text('{"tables": {"t": {"columns": ["a", "b"], "rows": [["1", "2 ± 3"]]}}}')
    page = "before\n<!-- results: r.json t -->\n| a | b |\n<!-- end -->\nafter\n"
    (tmp_path / "docs" / "page.md").write_text(page)
    (tmp_path / "README.md").write_text("no table\n")
    monkeypatch.setattr(results_tables, "ROOT", tmp_path)
    monkeypatch.setattr(results_tables, "RESULTS", results)
    for arguments, code in (["--check"], 1), ([], 0), (["--check"], 0):
        monkeypatch.setattr(sys, "argv", ["results_tables.py", *arguments])
        assert results_tables.main() == code
    written = (tmp_path / "docs" / "page.md").read_text(encoding="utf-8")
    assert "\n\n| a | b |\n|---|---|\n| 1 | 2 ± 3 |\n\n<!-- end -->" in written
    assert written.startswith("before")
    assert written.endswith("after\n")


def test_a_table_that_is_not_stored_is_named() -> None:
    with pytest.raises(ValueError, match="no table 'nothing'"):
        results_tables.stored_table("ablations.json", "nothing")
