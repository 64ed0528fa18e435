"""Batches: what a row becomes, what is drawn for it, and that neither workers nor neighbours change that."""

import numpy as np
import pytest
import torch
from factories import CONTRACT, NO_DROPOUT, make_model, make_row, make_rows, make_store
from torch.utils.data import DataLoader

from modeling_bmdetr.contract_bmdetr import FeatureContract, l2_normalize
from modeling_bmdetr.data.batches.collator import MomentRetrievalCollator
from modeling_bmdetr.data.batches.examples import MomentRetrievalDataset
from modeling_bmdetr.data.batches.negative_sampling import NegativeSampler
from modeling_bmdetr.spans_bmdetr import IGNORE, spans_cxw_to_se

ROWS = make_rows(9)
STORE = make_store(ROWS)


def make_dataset(rows=ROWS, store=STORE, **options):
    return MomentRetrievalDataset(rows, store, options.pop("contract", CONTRACT), **options)


def make_collator(rows=ROWS, store=STORE, **options):
    """Maps (epoch, row) pairs to their batch."""
    dataset, collate = make_dataset(rows, store, **options), MomentRetrievalCollator()
    return lambda items: collate([dataset[item] for item in items])


def training_collator(**options):
    return make_collator(**{"negatives": NegativeSampler(ROWS, "mined"), "temporal_shifting": True, **options})


def row(**fields):
    return make_row(**{"relevant_windows": [[3.0, 7.0]], **fields})


def one_row(**fields):
    """The batch of a single row of a video of 20 s, that is ten clips."""
    options = fields.pop("options", {})
    rows = [row(**fields)]
    return make_collator(rows, make_store(rows), **options)([(0, 0)])


def test_a_row_as_tensors():
    collate = make_collator()
    index = 4
    batch = collate([(0, 0), (0, index)])
    source = ROWS[index]
    clips, tokens = STORE.video(source["vid"])[: CONTRACT.max_clips], STORE.text(source["qid"])
    torch.testing.assert_close(batch["video_features"][1, : len(clips)], torch.from_numpy(l2_normalize(clips)))
    torch.testing.assert_close(batch["text_features"][1, : len(tokens)], torch.from_numpy(l2_normalize(tokens)))
    assert batch["video_mask"][1].tolist() == [1] * len(clips) + [0] * (batch["video_mask"].shape[1] - len(clips))
    assert batch["text_mask"][1].sum() == len(tokens)
    assert batch["row_index"].tolist() == [0, index]
    assert batch["durations_s"].tolist() == [ROWS[0]["duration"], source["duration"]]
    windows = torch.tensor(source["relevant_windows"]) / (len(clips) * CONTRACT.clip_length)
    spans = spans_cxw_to_se(batch["labels"][1, : len(windows)])
    torch.testing.assert_close(spans, windows.clamp(max=1))


def test_evaluation_gives_neither_negatives_nor_a_shifted_view():
    names = set(make_collator()([(0, 0), (0, 1)]))
    assert names == {
        *("video_features", "video_mask", "text_features", "text_mask", "labels", "row_index", "durations_s"),
    }


def test_rows_without_moments():
    rows = [row(relevant_windows=None)]
    batch = make_collator(rows, make_store(rows), with_labels=False)([(0, 0)])
    assert "labels" not in batch


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([[3.0, 7.0]], [[0.15, 0.35]]),
        ([[18.0, 23.5]], [[0.9, 1.0]]),
        ([[20.0, 24.0]], []),
        ([[1.0, 2.0], [21.0, 22.0], [10.0, 12.0]], [[0.05, 0.1], [0.5, 0.6]]),
    ],
    ids=["inside", "ends late", "wholly past the end", "several"],
)
def test_windows_on_the_time_axis(windows, expected):
    labels = one_row(relevant_windows=windows)["labels"][0]
    spans = spans_cxw_to_se(labels[labels[:, 0] != IGNORE])
    torch.testing.assert_close(spans, torch.tensor(expected).reshape(-1, 2))


def test_of_too_many_moments_a_sample_is_drawn_anew_each_epoch():
    rows = [row(relevant_windows=[[float(start), start + 1.0] for start in range(0, 20, 2)])]
    collate = make_collator(rows, make_store(rows), max_moments=4)
    batches = [collate([(epoch, 0)])["labels"][0] for epoch in range(8)]
    starts = [spans_cxw_to_se(labels)[:, 0].mul(20).round().int().tolist() for labels in batches]
    assert all(len(set(drawn)) == 4 and set(drawn) <= set(range(0, 20, 2)) for drawn in starts)
    assert len(set(map(tuple, starts))) > 1


def test_saliency_is_the_sum_of_the_ratings():
    fields = {"relevant_clip_ids": [2, 3], "saliency_scores": [[1, 2, 0], [4, 4, 4]]}
    labels = one_row(**fields)["saliency_labels"]
    expected = torch.full((1, 10), IGNORE)
    expected[0, 2], expected[0, 3] = 3, 12
    torch.testing.assert_close(labels, expected)
    assert "saliency_labels" not in one_row()


def test_negative_queries_and_their_own_moments():
    collate = training_collator(num_negatives=2)
    items = [(1, index) for index in range(len(ROWS))]
    batch = collate(items)
    texts = {row["qid"]: torch.from_numpy(l2_normalize(STORE.text(row["qid"]))) for row in ROWS}
    own = 0
    for index, source in enumerate(ROWS):
        assert batch["negative_text_mask"][index].any(dim=1).all()
        for negative in range(2):
            features = batch["negative_text_features"][index, negative]
            tokens = int(batch["negative_text_mask"][index, negative].sum())
            (other,) = [
                row
                for row in ROWS
                if len(texts[row["qid"]]) == tokens and torch.equal(texts[row["qid"]], features[:tokens])
            ]
            labels = batch["negative_labels"][index, negative]
            labels = labels[labels[:, 0] != IGNORE]
            if other["vid"] != source["vid"]:
                assert not len(labels)
                continue
            assert other["qid"] in source["neg_query_ids"]
            length_s = batch["video_mask"][index].sum() * CONTRACT.clip_length
            windows = torch.tensor(other["relevant_windows"]).clamp(max=float(length_s)) / length_s
            torch.testing.assert_close(spans_cxw_to_se(labels), windows)
            own += 1
    assert 0 < own < 2 * len(ROWS)


def test_only_rows_with_one_moment_in_a_short_video_are_shifted():
    collate = training_collator(shifting_limit_s=20)
    batch = collate([(0, index) for index in range(len(ROWS))])
    in_place = torch.arange(batch["video_mask"].shape[1])
    shifted = batch["shifted_labels"][:, 0, 0] != IGNORE
    for index, source in enumerate(ROWS):
        if len(source["relevant_windows"]) != 1 or source["duration"] >= 20:
            assert not shifted[index]
        order = batch["shifted_frame_order"][index]
        assert order.sort().values.equal(in_place)
        if not shifted[index]:
            assert order.equal(in_place)
    assert 0 < shifted.sum() < len(ROWS)


def draws(batch, index):
    """What was drawn for one row of a batch, without padding."""
    clips = int(batch["video_mask"][index].sum())
    tokens = int(batch["negative_text_mask"][index, 0].sum())
    return (
        batch["shifted_frame_order"][index, :clips].tolist(),
        batch["shifted_labels"][index].tolist(),
        batch["negative_text_features"][index, 0, :tokens].tolist(),
    )


def test_draws_depend_on_seed_epoch_and_row_alone():
    collate = training_collator(seed=5)
    alone, among_others = collate([(3, 2)]), collate([(3, 0), (3, 7), (3, 2), (3, 5)])
    assert draws(alone, 0) == draws(among_others, 2)
    assert draws(training_collator(seed=5)([(3, 2)]), 0) == draws(alone, 0)

    def of_all(seed, epoch):
        batch = training_collator(seed=seed)([(epoch, index) for index in range(len(ROWS))])
        return [draws(batch, index) for index in range(len(ROWS))]

    assert of_all(5, 3) != of_all(5, 4)
    assert of_all(5, 3) != of_all(6, 3)


def test_workers_change_nothing():
    def batches(workers):
        loader = DataLoader(
            make_dataset(negatives=NegativeSampler(ROWS, "mined"), temporal_shifting=True, seed=1),
            batch_sampler=[[(2, 0), (2, 3)], [(2, 1), (2, 6), (2, 2)], [(2, 5)], [(2, 4)]],
            collate_fn=MomentRetrievalCollator(),
            num_workers=workers,
        )
        return list(loader)

    for alone, by_worker in zip(batches(0), batches(2), strict=True):
        assert alone.keys() == by_worker.keys()
        for name in alone:
            assert torch.equal(alone[name], by_worker[name]), name


def test_every_batch_has_the_same_entries():
    rows = [
        row(qid="a", vid="v"),
        row(qid="b", vid="w", relevant_windows=[[1.0, 2.0], [5.0, 9.0]]),
        row(qid="c", vid="x", duration=18.0),
    ]
    for sampler_rows in (rows, [{**source, "query": "the same"} for source in rows]):  # the latter have no negatives
        negatives = NegativeSampler(sampler_rows, "random_video")
        collate = make_collator(rows, make_store(rows), negatives=negatives, temporal_shifting=True)
        keys = [set(collate([(0, index)])) for index in range(3)]
        assert keys[0] == keys[1] == keys[2]
        assert {"shifted_labels", "shifted_frame_order", "negative_text_mask", "negative_labels"} <= keys[0]


def test_weights_of_negative_queries():
    collate = training_collator(num_negatives=2)
    items = [(0, index) for index in range(len(ROWS))]
    assert "negative_weights" not in collate(items)
    rows = [{**source, "neg_query_weights": [0.25] * len(source.get("neg_query_ids") or ())} for source in ROWS]
    batch = training_collator(num_negatives=2, negatives=NegativeSampler(rows))(items)
    assert batch["negative_weights"].shape == batch["negative_text_mask"].shape[:2]
    own = (batch["negative_labels"] != -100).flatten(2).any(dim=2)  # of the same video, so mined
    assert own.any()
    present = batch["negative_text_mask"].any(dim=2)
    expected = torch.where(own, 0.25, 1.0) * present
    assert torch.equal(batch["negative_weights"], expected)


def test_padding_in_place_of_negatives_and_shifted_views_changes_no_loss():
    rows = [row(qid="a", vid="v"), row(qid="b", vid="w", relevant_windows=[[1.0, 2.0], [5.0, 9.0]])]
    store = make_store(rows)
    negatives = NegativeSampler([{**source, "query": "the same"} for source in rows], "random_video")
    padded = make_collator(rows, store, negatives=negatives, temporal_shifting=True)([(0, 1)])
    assert not padded["negative_text_mask"].any()
    assert (padded["shifted_labels"] == IGNORE).all()
    plain = make_collator(rows, store)([(0, 1)])
    model = make_model(**NO_DROPOUT).eval()
    losses = [
        model(**{name: value for name, value in batch.items() if name not in ("row_index", "durations_s")}).loss
        for batch in (padded, plain)
    ]
    torch.testing.assert_close(losses[0], losses[1])


def test_shifting_is_off_where_nothing_can_shift(package_log):
    rows = [row(duration=90.0)]
    batch = make_collator(rows, make_store(rows), temporal_shifting=True)([(0, 0)])
    assert "shifted_frame_order" not in batch
    assert "no view is shifted" in package_log.text


def test_resampled_videos_are_measured_by_their_duration():
    contract = FeatureContract(
        video_encoders=CONTRACT.video_encoders,
        text_encoder=CONTRACT.text_encoder,
        clip_length=2.0,
        max_clips=6,
        long_video="resample",
    )
    rows = [row(duration=19.0, relevant_windows=[[9.5, 19.0]])]
    store = make_store(rows, contract=contract)
    batch = make_collator(rows, store, contract=contract)([(0, 0)])
    assert batch["video_mask"].sum() == 6
    torch.testing.assert_close(batch["labels"][0], torch.tensor([[0.75, 0.5]]))


def test_what_does_not_fit_is_refused():
    other = FeatureContract(video_encoders=({"name": "other", "dim": 6},), text_encoder=CONTRACT.text_encoder)
    with pytest.raises(ValueError, match="the feature store do not fit the model"):
        make_collator(contract=other)
    with pytest.raises(ValueError, match="make it from the same rows"):
        make_collator(negatives=NegativeSampler(ROWS[:3], "random_video"))


def test_items_of_the_data_set():
    dataset = make_dataset(negatives=NegativeSampler(ROWS, "mined"), temporal_shifting=True)
    assert len(dataset) == len(ROWS)
    example = dataset[3]
    assert example["row_index"] == 3
    assert {"video", "text", "labels", "shifted_order", "negative_texts", "negative_labels"} <= set(example)
    assert len(example["shifted_order"]) == len(example["video"])
    for same in (dataset[np.int64(3)], dataset[0, 3]):
        np.testing.assert_equal(same, example)


def test_a_collator_made_from_rows_still_works_and_says_what_to_use():
    with pytest.warns(FutureWarning, match="MomentRetrievalDataset"):
        collate = MomentRetrievalCollator(ROWS, STORE, CONTRACT)
    torch.testing.assert_close(collate([(0, 1), (0, 4)]), make_collator()([(0, 1), (0, 4)]))


def test_rows_of_numpy_pandas_and_parquet_are_taken():
    fields = {"relevant_clip_ids": [2, 3], "saliency_scores": [[1, 2, 0], [4, 4, 4]], "neg_query_ids": ["7"]}
    rows = [row(qid="1", **fields), row(qid="7", query="another")]
    as_arrays = [
        {
            **rows[0],
            "qid": np.float64(1.0),
            "duration": np.float32(20),
            "relevant_windows": np.array([np.array([3.0, 7.0])], dtype=object),
            "relevant_clip_ids": np.array([2.0, 3.0]),
            "saliency_scores": np.array(fields["saliency_scores"]),
            "neg_query_ids": np.array([7.0]),
            "video": float("nan"),
        },
        {**rows[1], "qid": np.int64(7), **dict.fromkeys(fields, float("nan"))},
    ]
    store = make_store(rows)
    batches = []
    for given in (rows, as_arrays):
        dataset = MomentRetrievalDataset(given, store, CONTRACT)
        assert dataset.rows[0]["neg_query_ids"] == ["7"]
        assert dataset.rows[1].get("neg_query_ids") is None
        batches.append(MomentRetrievalCollator()([dataset[0], dataset[1]]))
    torch.testing.assert_close(batches[1], batches[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"relevant_windows": [[7.0, 3.0]]}, "reversed"),
        ({"relevant_windows": [[-1.0, 5.0]]}, "begins before 0"),
        ({"relevant_windows": [[float("nan"), 5.0]]}, "expected .start, end. in seconds"),
        ({"relevant_clip_ids": [-1], "saliency_scores": [[3.0]]}, "expected integers from 0"),
        ({"relevant_clip_ids": [10], "saliency_scores": [[3.0]]}, "clip 10 is past the end"),
        ({"relevant_clip_ids": [1, 2], "saliency_scores": [[3.0], [1.0, 2.0]]}, "as many annotators for every clip"),
        ({"relevant_clip_ids": [1], "saliency_scores": [[float("nan")]]}, "finite numbers only"),
        ({"duration": float("nan")}, "expected a number of seconds"),
        ({"qid": 1.5}, "expected a string or an integer"),
    ],
)
def test_rows_with_errors_are_refused_by_qid(fields, message):
    rows = [row(qid="fine"), row(**fields)]
    with pytest.raises(ValueError, match=message) as error:
        make_dataset(rows, make_store([rows[0]]))
    assert "`rows` (counted from 1) has 1 error" in str(error.value)
    assert "qid" in fields or "qid q1" in str(error.value)


def test_rows_of_the_wrong_kind_are_refused():
    class Frame(list):
        iloc = None

    for wrong, message in ((Frame(), "to_dict"), ("rows.jsonl", "received str"), ([["a"]], "row 0 of `rows`")):
        with pytest.raises(TypeError, match=message):
            make_dataset(wrong)
