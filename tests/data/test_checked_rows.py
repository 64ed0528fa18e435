"""What training counts and refuses before it starts."""

import numpy as np
import pytest
from factories import CONTRACT, make_rows

from modeling_bmdetr.contract_bmdetr import FeatureContract
from modeling_bmdetr.data import add_absent_rows, clean_rows, mine_negative_queries
from modeling_bmdetr.data.rows.checked import checked_rows


def check(rows, **options):
    return checked_rows(rows, "train_rows", CONTRACT, **{"training": True, **options})


def rows_with(*windows):
    """Rows of videos of 20 s, each with the given windows."""
    return [
        {"qid": f"q{i}", "vid": f"v{i}", "query": f"a sentence {i}", "duration": 20.0, "relevant_windows": given}
        for i, given in enumerate(windows)
    ]


def test_what_is_clipped_and_skipped_is_counted_with_qids(package_log):
    rows = rows_with([[3.0, 7.0]], [[15.0, 23.0]], [[4000.0, 7000.0], [1.0, 2.0]], [[5.0, 5.0]])
    assert check(rows) == rows
    assert "1 of 5 windows of `train_rows` end past their video, or what the model sees of it" in package_log.text
    assert "such as of qid ['q1']" in package_log.text
    assert "2 of 5 windows of `train_rows` lie wholly past it or have no length, and are skipped" in package_log.text
    assert "['q2', 'q3']" in package_log.text


def test_what_a_truncated_video_does_not_show_is_counted_as_well(package_log):
    contract = FeatureContract(**{**CONTRACT.to_dict(), "max_clips": 5})  # 10 s of 20
    checked_rows(rows_with([[3.0, 7.0]], [[8.0, 12.0]], [[14.0, 16.0]]), "rows", contract, training=True)
    assert "1 of 3 windows of `rows` end past" in package_log.text
    assert "1 of 3 windows of `rows` lie wholly past" in package_log.text


def test_nothing_is_said_of_good_rows(package_log):
    check(make_rows(), reads_negatives=True)
    assert not package_log.text


def test_training_on_nothing_is_refused():
    with pytest.raises(ValueError, match=r"none of 2 windows of `train_rows` lies inside its video .* qid q0.*seconds"):
        check(rows_with([[3000.0, 7000.0]], [[4000.0, 9000.0]]))


def test_errors_are_refused_with_all_qids():
    rows = rows_with([[7.0, 3.0]], [[1.0, 2.0]], [], [[1.0, float("nan")]])
    rows[2]["relevant_windows"] = None
    with pytest.raises(ValueError, match=r"`train_rows` .* has 3 errors in 4 rows") as error:
        check(rows)
    for part in ("qid q0,", "qid q2,", "qid q3,", "reversed", "is missing", "nan"):
        assert part in str(error.value)
    assert len(check([rows[1], rows[2]], training=False)) == 2  # rows without labels can be predicted


def test_rows_that_describe_nothing_are_trained_on():
    assert len(check(rows_with([[1.0, 2.0]], []))) == 2


def test_negatives_are_looked_at_only_where_they_are_read():
    rows = [{**row, "neg_query_ids": ["elsewhere"]} for row in rows_with([[1.0, 2.0]])]
    assert check(rows)[0]["neg_query_ids"] == ["elsewhere"]
    with pytest.raises(ValueError, match="names 1 qids that are not in these rows: elsewhere"):
        check(rows, reads_negatives=True)


def test_checked_rows_are_not_checked_again():
    rows = check(make_rows())
    assert check(rows) is rows


def test_lists_within_lists_without_end_are_refused():
    windows: list = []
    windows.append(windows)
    with pytest.raises(ValueError, match="row 1 of `rows` is nested too deeply"):
        checked_rows([*make_rows(1)[:1], {**make_rows(1)[0], "relevant_windows": windows}], "rows", CONTRACT)


@pytest.mark.parametrize(
    "tool",
    [
        lambda rows: mine_negative_queries(rows, encoder="hashed-words", progress=False)[0],
        lambda rows: add_absent_rows(rows, share=1.0)[0],
        lambda rows: clean_rows(rows)[0],
    ],
    ids=["mining", "absent rows", "cleaning"],
)
def test_tools_take_rows_of_parquet_as_those_of_a_file(tool):
    rows = make_rows(40)
    arrays = [{**row, "relevant_windows": np.array(row["relevant_windows"], dtype=object)} for row in rows]
    assert tool(iter(arrays)) == tool(rows)
