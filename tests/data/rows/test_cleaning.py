"""Cleaning: each rule is applied where it applies, and counted."""

import pytest
from factories import make_row
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_bmdetr.data import (
    CleaningRules,
    clean_rows,
    validate_rows,
)


def row(**changes):
    """Two windows, one of them short, in a video of 20 s."""
    return make_row(**{"relevant_windows": [[2.0, 6.0], [10.0, 12.0]], **changes})


def dirty_rows():
    return [
        row(qid="clean"),
        row(qid="reversed", relevant_windows=[[9, 4]]),
        row(qid="empty", relevant_windows=[[5, 5]]),
        row(qid="over", relevant_windows=[[18, 25], [1, 2]]),
        row(qid="beyond", relevant_windows=[[30, 21]]),
        row(qid="blanks", query=" A  door opens. "),
        row(qid="copy"),
        row(qid="unlabelled", query="?", relevant_windows=None),
    ]


def test_the_default_rules_keep_every_row_and_swap_reversed_windows():
    rows = dirty_rows()
    cleaned, report = clean_rows(rows)
    assert [entry["qid"] for entry in cleaned] == [entry["qid"] for entry in rows]
    windows = {entry["qid"]: entry["relevant_windows"] for entry in cleaned}
    assert windows["reversed"] == [[4.0, 9.0]]
    assert windows["beyond"] == [[21.0, 30.0]]
    assert windows["over"] == [[18.0, 25.0], [1.0, 2.0]]
    assert windows["unlabelled"] is None
    assert cleaned[5]["query"] == "A door opens."
    assert report.counts() == {
        "rows": 8, "windows": 11, "reversed": 2, "zero_length": 1, "past_end": 2, "wholly_past_end": 1,
        "duplicates": 1, "duplicates_once_cleaned": 1, "white_space": 1,
        "dropped_rows": 0, "dropped_windows": 0, "clipped_windows": 0,
    }  # fmt: skip
    assert report.examples["reversed"] == ["v1 [9, 4]", "v1 [30, 21]"]
    assert "wholly past end: 1 (v1 [30, 21])" in report.format()
    assert rows == dirty_rows(), "the rows given must not change"


def test_rows_are_dropped_and_windows_clipped_on_request_and_counted():
    strict = CleaningRules(past_end="clip", zero_length="drop", duplicates="drop")
    cleaned, report = clean_rows(dirty_rows(), strict)
    assert [entry["qid"] for entry in cleaned] == ["clean", "reversed", "over", "unlabelled"]
    assert cleaned[2]["relevant_windows"] == [[18.0, 20.0], [1.0, 2.0]]
    counts = report.counts()
    assert (counts["dropped_rows"], counts["dropped_windows"], counts["clipped_windows"]) == (4, 2, 1)
    _, default = clean_rows(dirty_rows())
    found = ("windows", "reversed", "zero_length", "past_end", "duplicates", "white_space")
    assert [counts[kind] for kind in found] == [default.counts()[kind] for kind in found]


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match="past_end must be one of keep, clip, received 'cut'"):
        CleaningRules(past_end="cut")


TIMES = st.floats(0, 40, allow_nan=False).map(lambda value: round(value, 1))


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    windows=st.lists(st.lists(st.lists(TIMES, min_size=2, max_size=2), min_size=1, max_size=3), min_size=1, max_size=5)
)
def test_cleaned_rows_are_valid_and_clean(windows):
    rows = [row(qid=str(index), relevant_windows=entry) for index, entry in enumerate(windows)]
    cleaned, _ = clean_rows(rows, CleaningRules(past_end="clip", zero_length="drop", duplicates="drop"))
    if cleaned:
        report = validate_rows(cleaned)
        assert all("is given twice" in problem.message for problem in report.problems), report.format()
    again, second = clean_rows(cleaned)
    assert again == cleaned
    assert not second.reversed + second.zero_length + second.past_end + second.duplicates
