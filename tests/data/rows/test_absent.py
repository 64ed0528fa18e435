"""Absent queries: by rule from other videos, from published files, and through validation, cleaning and batches."""

import json

import numpy as np
import pytest
from factories import make_row

from modeling_bmdetr.contract_bmdetr import FeatureContract
from modeling_bmdetr.data import (
    FeatureStore,
    MomentRetrievalDataset,
    add_absent_rows,
    clean_rows,
    pack_features,
    read_absent_rows,
    validate_rows,
)
from modeling_bmdetr.data.rows.absent import content_words

ROWS = [
    make_row(qid="a", vid="kitchen", query="A person opens the fridge."),
    make_row(qid="b", vid="kitchen", query="She is cooking soup."),
    make_row(qid="c", vid="hall", query="The person opened a door."),
    make_row(qid="d", vid="hall", query="A dog barks."),
    make_row(qid="e", vid="garden", query="He waters some flowers."),
    make_row(qid="f", vid="garden", query="Nobody knows.", relevant_windows=None),
]


def save_features(path, value, key):
    """Five rows of four equal values, as published files hold them."""
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **{key: np.full((5, 4), value, np.float32)})


def test_content_words():
    assert (
        content_words("A person is opening the doors.") == content_words("The person opened a door") == {"open", "door"}
    )


def test_sentences_come_from_other_videos_and_share_no_word():
    rows, report = add_absent_rows(ROWS, share=1.0, seed=3)
    assert rows[: len(ROWS)] == ROWS
    absent = rows[len(ROWS) :]
    assert (report.rows, report.added, report.without_partner) == (6, len(absent), 5 - len(absent))
    assert report.added == 5  # the unlabelled row gets none
    assert "5 absent rows added to 6 rows (seed 3)" in str(report)
    for row in absent:
        assert row["relevant_windows"] == []
        assert row["absent_kind"] == "unrelated"
        said = [content_words(other["query"]) for other in ROWS if other["vid"] == row["vid"]]
        assert not content_words(row["query"]) & frozenset().union(*said)
        assert row["query"] in {other["query"] for other in ROWS if other["vid"] != row["vid"]}
    assert validate_rows(rows, require_windows=False).ok
    assert add_absent_rows(ROWS, share=1.0, seed=3)[0] == rows
    assert add_absent_rows(ROWS, share=1.0, seed=4)[0] != rows
    assert len(add_absent_rows(ROWS, share=0.4)[0]) == len(ROWS) + 2


def test_a_video_that_has_no_foreign_sentence_is_counted():
    twins = [make_row(qid=vid, vid=vid, query="A dog barks.") for vid in ("x", "y")]
    rows, report = add_absent_rows(twins, share=1.0)
    assert rows == twins
    assert report.without_partner == 2
    with pytest.raises(ValueError, match=r"`share` must lie in \[0, 1\], received 2"):
        add_absent_rows(twins, share=2)


def test_published_negatives(tmp_path):
    published = [
        {"qid": 7, "query": "A", "duration": 150, "vid": "v", "relevant_windows": [[2, 8]]},
        {"qid": 7, "query": "A", "duration": 150, "vid": "w", "relevant_windows": [[0, 0]]}
        | {"relevant_clip_ids": [], "saliency_scores": [[]]},
        {"qid": 7, "query": "A", "duration": 150, "vid": "x", "relevant_windows": [[0, 0]]},
        {"qid": 8, "query": "B", "duration": 150, "vid": "w", "relevant_windows": []},
        {"qid": 9, "query": "C", "duration": 150, "vid": "w", "relevant_windows": [[0, 0], [1, 4]]},
    ]
    path = tmp_path / "negatives.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in published))
    rows = read_absent_rows(path, kind="in_domain")
    assert [row["qid"] for row in rows] == ["7", "7_absent", "7_absent2", "8", "9"]
    assert [row["relevant_windows"] for row in rows] == [[[2, 8]], [], [], [], [[0, 0], [1, 4]]]
    assert [row.get("absent_kind") for row in rows] == [None, "in_domain", "in_domain", "in_domain", None]
    assert [row.get("text_qid") for row in rows] == [None, "7", "7", None, None]
    assert validate_rows(rows).ok


@pytest.mark.parametrize("fields", [{}, {"qid": None}, {"qid": [1]}, {"qid": True}])
def test_published_rows_without_a_qid_are_refused_by_line(tmp_path, fields):
    path = tmp_path / "negatives.jsonl"
    odd = {"qid": "q1", "relevant_windows": 5}  # which validation names
    path.write_text("\n".join(json.dumps(row) for row in (make_row(), odd, fields)))
    with pytest.raises(ValueError, match=r"negatives\.jsonl.*:3|line 3|negatives\.jsonl:3"):
        read_absent_rows(path)


def test_absent_rows_have_the_text_features_of_the_sentence_they_borrow(tmp_path):
    """Published features, one file for each qid, need none for the rows that a rule added; nor do a packed copy and
    extraction, which sees the sentence once."""
    for index, row in enumerate(ROWS):
        save_features(tmp_path / "text" / f"qid{row['qid']}.npz", 10 + index, "last_hidden_state")
        save_features(tmp_path / "video" / f"{row['vid']}.npz", 0, "features")
    contract = FeatureContract(clip_length=2.0, normalize_text=False)
    store = FeatureStore.from_files(tmp_path / "video", tmp_path / "text", contract=contract)
    rows, _ = add_absent_rows(ROWS, share=1.0, seed=3)
    store.require(rows)
    packed = pack_features(store, tmp_path / "packed", rows=rows, progress=False)
    assert packed.query_ids == sorted(row["qid"] for row in ROWS)
    values = {row["query"]: 10 + index for index, row in enumerate(ROWS)}
    absent = [index for index, row in enumerate(rows) if row["relevant_windows"] == []]
    for features in (store, packed):
        dataset = MomentRetrievalDataset(rows, features, features.contract)
        for index in absent:
            assert (dataset.text(index) == values[rows[index]["query"]]).all()
    assert {row["text_qid"] for row in rows[len(ROWS) :]} <= {row["qid"] for row in ROWS}


@pytest.mark.parametrize("borrowed", ["", 1.5, ["a"]])
def test_a_text_qid_that_names_no_query_is_an_error(borrowed):
    report = validate_rows([make_row(text_qid=borrowed)])
    assert [problem.field for problem in report.errors] == ["text_qid"]


def test_validation_and_cleaning_keep_absent_rows():
    rows = [make_row(), make_row(qid="q2", query="Nothing of it.", relevant_windows=[], absent_kind="unrelated")]
    assert not validate_rows(rows).problems
    cleaned, report = clean_rows(rows)
    assert cleaned == rows
    assert report.dropped_rows == 0
