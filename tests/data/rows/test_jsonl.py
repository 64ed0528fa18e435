"""Rows in files: reading with every fault named, writing whole or not at all."""

import json

import numpy as np
import pytest
from factories import make_row, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_bmdetr.data import RowFile, read_rows, write_rows
from modeling_bmdetr.data.rows.jsonl import read_jsonl, write_jsonl


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


@pytest.mark.parametrize("read", [read_rows, read_jsonl])
def test_a_missing_file_is_named(tmp_path, read):
    for path in (tmp_path / "nowhere.jsonl", tmp_path):
        with pytest.raises(FileNotFoundError, match=str(path)):
            read(path)


def test_rows_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [row(qid="a")])
    before = path.read_text()
    with pytest.raises(ValueError, match="every row must have a `qid`"):
        write_rows(path, [row(qid="b"), {"vid": "no qid"}])
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    write_rows(link, [row(qid="c")])
    assert not link.is_symlink()
    assert read_rows(link)[0]["qid"] == "c"
    assert path.read_text() == before


# Files of any objects: submissions, reports


def test_jsonl_round_trip(tmp_path):
    rows = [{"qid": 7, "query": "öffnet die Tür"}, {"qid": "7b", "pred_relevant_windows": [[0.5, 2, -1e-9]]}]
    path = tmp_path / "new" / "rows.jsonl"
    write_jsonl(rows, path)
    assert read_jsonl(path) == rows
    assert [type(row["qid"]) for row in read_jsonl(str(path))] == [int, str]
    assert path.read_bytes().endswith(b"\n")


def test_numpy_values_are_written(tmp_path):
    write_jsonl([{"qid": np.int64(3), "scores": np.array([0.5, 1.0], np.float32), "x": np.float64(2)}], tmp_path / "a")
    assert read_jsonl(tmp_path / "a") == [{"qid": 3, "scores": [0.5, 1.0], "x": 2.0}]


@pytest.mark.parametrize(
    ("value", "error"), [(float("nan"), ValueError), (np.array([np.inf]), ValueError), ({1}, TypeError)]
)
def test_a_row_that_cannot_be_written_leaves_the_file_alone(tmp_path, value, error):
    path = tmp_path / "rows.jsonl"
    path.write_text("before")
    with pytest.raises(error, match=r"rows\[1\] \(qid 'b'\) cannot be written as JSON"):
        write_jsonl([{"qid": "a"}, {"qid": "b", "value": value}], path)
    assert path.read_text() == "before"


@pytest.mark.parametrize("row", [None, "q1", 5, ["q1"], {}, {"qid": True}, {"qid": 1.5}, {"qid": ""}, {"qid": [1]}])
def test_what_is_no_row_is_not_written(tmp_path, row):
    path = tmp_path / "rows.jsonl"
    path.write_text("before")
    with pytest.raises((TypeError, ValueError), match=r"must be a mapping|`qid`|qid"):
        write_rows(path, [make_row(), row])
    assert path.read_text() == "before"


def test_a_value_that_is_nested_too_deeply_is_not_written(tmp_path):
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        write_jsonl([{"qid": "a", "value": nested}], tmp_path / "rows.jsonl")


def test_windows_line_ends_byte_order_mark_and_trailing_blank_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"qid": 1}\r\n{"qid": 2}\r\n\r\n  \n')
    assert read_jsonl(path) == [{"qid": 1}, {"qid": 2}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "rows.jsonl is empty"),
        (b"\n\n", "rows.jsonl is empty"),
        (b'{"qid": 1}\n{"qid": 2\n', "rows.jsonl:2 is not JSON"),
        (b'{"qid": 1}\n\n{"qid": 2}\n', "rows.jsonl:2 is blank"),
        (b'{"qid": 1}\n[1, 2]\n', "rows.jsonl:2 expected a JSON object, received list"),
        (b"7\n", "rows.jsonl:1 expected a JSON object, received int"),
        (b'[{"qid": 1}]\n', "looks like one JSON array"),
        (b'[\n{"qid": 1}\n]\n', "looks like one JSON document"),
        (b'{"qid": NaN}\n', "rows.jsonl:1 .*NaN is not a JSON number"),
        (b'{"score": -Infinity}\n', "rows.jsonl:1 .*-Infinity is not a JSON number"),
        (b"\xff{}\n", "rows.jsonl:1 is not UTF-8 text"),
        ('{"qid": 1}'.encode("utf-16"), "rows.jsonl:1 is UTF-16 text: save the file as UTF-8"),
        (b'{"a":' * 100000, "rows.jsonl:1 is nested too deeply"),
        (b'{"qid": ' + b"1" * 5000 + b"}", "rows.jsonl:1 is not JSON"),
        (b'{"qid": 1}\n{"qid": 2, "vid": "a", "qid": 3}\n', "rows.jsonl:2 is not JSON: an object has 'qid' twice"),
    ],
)
def test_malformed_files(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_jsonl(path)
