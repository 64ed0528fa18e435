"""Rows in files: reading with every fault named, writing whole or not at all."""

import json

import pytest
from factories import make_row, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_bmdetr.data import (
    RowFile,
    read_rows,
    write_rows,
)


def row(**changes):
    """Two windows, one of them short, in a video of 20 s."""
    return make_row(**{"relevant_windows": [[2.0, 6.0], [10.0, 12.0]], **changes})


def test_reading_keeps_line_numbers_and_turns_integer_qids_into_strings(tmp_path):
    path = tmp_path / "rows.jsonl"
    first, second = row(qid=7, neg_query_ids=["a"]), row(qid="a", neg_query_ids=[7])
    path.write_bytes(b"\xef\xbb\xbf" + f"{json.dumps(first)}\n\n  \n{json.dumps(second)}".encode())
    rows = read_rows(path)
    assert isinstance(rows, RowFile)
    assert [entry["qid"] for entry in rows] == ["7", "a"]
    assert rows[1]["neg_query_ids"] == ["7"]
    assert rows.line_numbers == [1, 4]
    assert rows.integer_qids == {"7"}


def test_written_qids_have_the_type_they_were_read_with(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", row(qid=7, neg_query_ids=["8"]), row(qid="8", neg_query_ids=[7]))
    write_rows(tmp_path / "out.jsonl", read_rows(source))
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        row(qid=7, neg_query_ids=["8"]),
        row(qid="8", neg_query_ids=[7]),
    ]


def test_fields_without_a_value_are_not_written(tmp_path):
    write_rows(tmp_path / "out.jsonl", [row(relevant_windows=None, video=None)])
    assert json.loads((tmp_path / "out.jsonl").read_text()) == row(relevant_windows=...)


QIDS = st.one_of(st.integers(0, 10**9), st.text("abc-_", min_size=1, max_size=5))


@settings(deadline=None, derandomize=True, max_examples=50)
@given(qids=st.lists(QIDS, min_size=1, max_size=8), query=st.text(min_size=1))
def test_reading_and_writing_are_inverse(tmp_path_factory, qids, query):
    folder = tmp_path_factory.mktemp("rows")
    records = [row(qid=qid, query=query) for qid in qids]
    source = write_lines(folder / "in.jsonl", *records)
    write_rows(folder / "out.jsonl", read_rows(source))
    assert [json.loads(line) for line in (folder / "out.jsonl").open(encoding="utf-8")] == records


def test_every_unreadable_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"qid": 1\n[1, 2]\n\xff\xfe\n' + json.dumps(row()).encode())
    with pytest.raises(ValueError, match="3 errors") as raised:
        read_rows(path)
    for line, text in ((1, "is not JSON"), (2, "expected a JSON object, received list"), (3, "is not UTF-8")):
        assert f"line {line}: {text}" in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        read_rows(tmp_path / "nowhere.jsonl")


def test_rows_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [row(qid="a")])
    before = path.read_text()
    with pytest.raises(KeyError):
        write_rows(path, [row(qid="b"), {"vid": "no qid"}])
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    write_rows(link, [row(qid="c")])
    assert not link.is_symlink()
    assert read_rows(link)[0]["qid"] == "c"
    assert path.read_text() == before
