"""What is a qid, and the one form in which qids are compared."""

import numpy as np
import pytest

from modeling_bmdetr.data.rows.qids import canonical_qid, restore_qid_types


@pytest.mark.parametrize(
    ("qid", "expected"), [(7, "7"), ("7", "7"), (7.0, "7"), (np.int32(7), "7"), ("a b", "a b"), (0, "0"), (-1, "-1")]
)
def test_canonical_qid(qid, expected):
    assert canonical_qid(qid) == expected


@pytest.mark.parametrize("qid", [7.5, float("nan"), True, None, ["7"], b"7"])
def test_other_types_are_no_qid(qid):
    with pytest.raises(TypeError, match="qid must be a string or an integer"):
        canonical_qid(qid)


def test_empty_qid():
    with pytest.raises(ValueError, match="qid is the empty string"):
        canonical_qid("")


def test_qids_get_their_type_back():
    predictions = [{"qid": "2", "vid": "x"}, {"qid": 1}, {"qid": "c"}]
    restored = restore_qid_types(predictions, [{"qid": "1"}, {"qid": 2}, {"qid": "c"}])
    assert restored == [{"qid": 2, "vid": "x"}, {"qid": "1"}, {"qid": "c"}]
    assert predictions[0]["qid"] == "2"
    with pytest.raises(ValueError, match="qid 'd' is in predictions but not in ground_truth"):
        restore_qid_types([{"qid": "d"}], [{"qid": 1}])
