"""Validation: every problem of every row, with its line and field."""

import pytest
from factories import make_row
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_bmdetr.data import RowFile, validate_rows
from modeling_bmdetr.data.rows.schema import ROW_FIELDS


def row(**changes):
    """Two windows, one of them short, in a video of 20 s."""
    return make_row(**{"relevant_windows": [[2.0, 6.0], [10.0, 12.0]], **changes})


def test_good_rows_have_no_problems():
    rows = [
        row(),
        row(qid=2, neg_query_ids=["q1"], query="Another", video="videos/v1.mp4"),
        row(qid="3", query="c", relevant_clip_ids=[1, 2], saliency_scores=[[1, 2, 3], [4, 3, 2]]),
        row(qid="4", query="d", relevant_clip_ids=None, saliency_scores=None, neg_query_ids=None, video=None),
        row(qid="5", query="whole video", relevant_windows=[[0, 20.0004]]),
    ]
    report = validate_rows(rows, clip_length_s=2.0)
    assert report.problems == []
    assert report.ok
    assert "5 rows, 0 errors, 0 warnings" in report.format()


ERRORS = {
    "qid missing": ({"qid": ...}, "qid", "is missing"),
    "qid float": ({"qid": 1.5}, "qid", "received 1.5"),
    "qid bool": ({"qid": True}, "qid", "received True"),
    "qid empty": ({"qid": " "}, "qid", "cannot name a file"),
    "qid a path": ({"qid": "a/b"}, "qid", "cannot name a file"),
    "vid missing": ({"vid": ...}, "vid", "is missing"),
    "vid integer": ({"vid": 12}, "vid", "expected a string, received 12"),
    "query empty": ({"query": "  "}, "query", "is empty"),
    "duration missing": ({"duration": ...}, "duration", "is missing"),
    "duration text": ({"duration": "20"}, "duration", "received '20'"),
    "duration zero": ({"duration": 0}, "duration", "above 0"),
    "duration NaN": ({"duration": float("nan")}, "duration", "above 0"),
    "windows missing": ({"relevant_windows": ...}, "relevant_windows", "is missing; expected"),
    "absent with clips, as a tuple": (
        {"relevant_windows": (), "relevant_clip_ids": [1]}, "relevant_clip_ids", "nothing is relevant"
    ),
    "absent with clips": (
        {"relevant_windows": [], "relevant_clip_ids": [1]}, "relevant_clip_ids", "nothing is relevant"
    ),
    "absent kind no name": ({"relevant_windows": [], "absent_kind": 3}, "absent_kind", "expected a name, received 3"),
    "absent kind of a moment": ({"absent_kind": "unrelated"}, "absent_kind", "relevant_windows has some"),
    "windows flat": ({"relevant_windows": [2, 6]}, "relevant_windows", "write [[2, 6]]"),
    "windows text": ({"relevant_windows": "2-6"}, "relevant_windows", "received '2-6'"),
    "window of three": ({"relevant_windows": [[1, 2, 3]]}, "relevant_windows[0]", "expected [start, end]"),
    "window infinite": ({"relevant_windows": [[1, float("inf")]]}, "relevant_windows[0]", "expected [start, end]"),
    "window reversed": ({"relevant_windows": [[0, 1], [6, 2]]}, "relevant_windows[1]", "is reversed"),
    "window negative": ({"relevant_windows": [[-1, 2]]}, "relevant_windows[0]", "begins before 0"),
    "clips not integers": ({"relevant_clip_ids": [0.5]}, "relevant_clip_ids", "expected integers"),
    "clip twice": ({"relevant_clip_ids": [1, 1]}, "relevant_clip_ids", "names a clip twice"),
    "clip past the end": ({"relevant_clip_ids": [10]}, "relevant_clip_ids", "20.0 s hold 10 clips of 2.0 s"),
    "scores without clips": ({"saliency_scores": [[1]]}, "saliency_scores", "needs relevant_clip_ids"),
    "scores too few": (
        {"relevant_clip_ids": [1, 2], "saliency_scores": [[1]]}, "saliency_scores", "1 entries for 2"
    ),
    "annotators differ": (
        {"relevant_clip_ids": [1, 2], "saliency_scores": [[1], [1, 2]]}, "saliency_scores", "as many annotators"
    ),
    "scores flat": ({"relevant_clip_ids": [1], "saliency_scores": [3]}, "saliency_scores", "one list"),
    "scores text": ({"relevant_clip_ids": [1], "saliency_scores": [["a"]]}, "saliency_scores", "finite numbers"),
    "negative unknown": ({"neg_query_ids": ["q9"]}, "neg_query_ids", "not in these rows: q9"),
    "negative is itself": ({"neg_query_ids": ["q1"]}, "neg_query_ids", "names the query itself"),
    "too few weights": (
        {"neg_query_ids": ["q0"], "neg_query_weights": []},
        "neg_query_weights",
        "for each of 1 `neg_query_ids`",
    ),
    "negative twice": ({"neg_query_ids": ["q0", "q0"]}, "neg_query_ids", "names a query more than once"),
    "weight above 1": ({"neg_query_ids": ["q0"], "neg_query_weights": [1.5]}, "neg_query_weights", "in [0, 1]"),
    "negatives not a list": ({"neg_query_ids": "q0"}, "neg_query_ids", "expected a list of qids"),
    "video not a path": ({"video": 3}, "video", "expected a path"),
    "duration of hundreds of digits": ({"duration": 10**400}, "duration", "expected a number of seconds"),
    "duration of a million years": ({"duration": 1e13, "relevant_clip_ids": [1]}, "duration", "at most 1,000,000"),
    "window of hundreds of digits": ({"relevant_windows": [[0, 10**400]]}, "relevant_windows[0]", "[start, end]"),
    "score of hundreds of digits": (
        {"relevant_clip_ids": [1], "saliency_scores": [[10**400]]}, "saliency_scores", "finite numbers"
    ),
    "qid again": ({"qid": "q0"}, "qid", "already used on line 10"),
    "other duration": ({"vid": "v0"}, "duration", "line 10 gives video v0 8.0 s"),
}  # fmt: skip

WARNINGS = {
    "window without length": ({"relevant_windows": [[2, 2]]}, "relevant_windows[0]", "has no length"),
    "window past the end": ({"relevant_windows": [[18, 21.5]]}, "relevant_windows[0]", "ends 1.50 s past the end"),
    "window wholly past": ({"relevant_windows": [[20, 21]]}, "relevant_windows[0]", "lies wholly past the end"),
    "window twice": ({"relevant_windows": [[2, 3], [2, 3]]}, "relevant_windows[1]", "is given twice"),
    "blanks": ({"query": " A  door"}, "query", "has extra white space"),
    "misspelt field": ({"relevant_window": []}, "relevant_window", "did you mean 'relevant_windows'?"),
}


@pytest.mark.parametrize(
    ("severity", "case"),
    [("error", case) for case in ERRORS.values()] + [("warning", case) for case in WARNINGS.values()],
    ids=[*ERRORS, *WARNINGS],
)
def test_each_problem_is_found_alone_with_its_line(severity, case):
    changes, field, text = case
    other = row(qid="q0", vid="v0", duration=8.0, relevant_windows=[[0.0, 1.0]])
    file = RowFile([other, row(**changes)], line_numbers=[10, 30], integer_qids=frozenset(), source="two.jsonl")
    report = validate_rows(file, clip_length_s=2.0)
    assert [(problem.severity, problem.line, problem.field) for problem in report.problems] == [(severity, 30, field)]
    assert text in report.problems[0].message
    assert report.ok == (severity == "warning")


def test_a_repeated_row_is_a_warning_that_names_the_first():
    report = validate_rows([row(), row(qid="q2")])
    assert [str(problem) for problem in report.problems] == [
        "warning: line 2, qid q2: repeats line 1: the same video, query and windows"
    ]


def test_every_problem_of_every_row_is_reported():
    report = validate_rows([row(duration=-1, query=""), row(vid=3, relevant_windows=[[4, 1], "x"]), "text"])
    found = [(problem.line, problem.field) for problem in report.errors]
    assert found == [
        (1, "query"), (1, "duration"), (2, "vid"), (2, "relevant_windows[0]"), (2, "relevant_windows[1]"), (3, ""),
        (2, "qid"),
    ]  # fmt: skip
    assert report.format(limit=2).splitlines()[2] == f"... and {len(report.problems) - 2} more"
    assert report.to_dict()["problems"][0]["line"] == 1
    with pytest.raises(ValueError, match=r"7 errors in 3 rows:(\n  .*;){3}\n  and 4 more\n.* lists all"):
        report.raise_for_errors()


def test_labels_are_optional_where_asked():
    assert validate_rows([row(relevant_windows=...)], require_windows=False).ok
    assert not validate_rows([row(relevant_windows=[[3, 1]])], require_windows=False).ok


def test_no_rows_are_refused():
    assert validate_rows([]).errors[0].message == "there are no rows"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text("ab /", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=2),
    max_leaves=6,
)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    rows=st.lists(
        st.fixed_dictionaries({}, optional=dict.fromkeys([*ROW_FIELDS, "extra"], JSON)),
        max_size=4,
    )
)  # fmt: skip
def test_validation_reports_and_never_fails(rows):
    report = validate_rows(rows, clip_length_s=2.0)
    assert report.rows == len(rows)
    assert len(report.format().splitlines()) >= 1
    for entry in rows:
        if not {"qid", "vid", "query", "duration", "relevant_windows"} <= set(entry):
            assert not report.ok
