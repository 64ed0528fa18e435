"""Small features in the published layouts, shared by the tests of feature stores."""

import numpy as np

from modeling_bmdetr.contract_bmdetr import FeatureContract
from modeling_bmdetr.data import FeatureStore

SLOWFAST, CLIP, TEXT = 6, 4, 5
CONTRACT = FeatureContract(
    video_encoders=({"name": "slowfast", "dim": SLOWFAST}, {"name": "clip", "dim": CLIP}),
    text_encoder={"name": "clip-text", "dim": TEXT},
    clip_length=2.0,
    max_tokens=8,
)
VIDS = ["AO8RW", "NUsG9BgSes0_210.0_360.0"]


def values(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def make_rows(qids=("0", "1", "2")):
    sentences = ["a man opens a door", "she reads", "a man opens a door"]
    return [
        {"qid": qid, "vid": VIDS[int(qid) % 2], "query": sentences[int(qid)], "duration": 10.0 + 2 * (int(qid) % 2)}
        for qid in qids
    ]


def write_folders(tmp_path):
    """Two video folders of different lengths, and text features of three queries, as published."""
    for name in ("slowfast", "clip", "text"):
        (tmp_path / name).mkdir()
    for number, vid in enumerate(VIDS):
        np.savez(tmp_path / "slowfast" / f"{vid}.npz", features=values(6 + number, SLOWFAST))
        np.save(tmp_path / "clip" / f"{vid}.npy", values(5 + number, CLIP).astype(np.float16))
    for qid, tokens in (("0", 7), ("1", 4), ("2", 7)):
        np.savez(tmp_path / "text" / f"qid{qid}.npz", last_hidden_state=values(tokens, TEXT), pooler_output=values(3))
    return tmp_path


def open_files(folders, contract=CONTRACT, **options):
    return FeatureStore.from_files(
        [folders / "slowfast", folders / "clip"], folders / "text", contract=contract, **options
    )


def assert_same_store(left, right, rows, tolerance=0.0):
    for row in rows:
        np.testing.assert_allclose(left.video(row["vid"]), right.video(row["vid"]), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(left.text(row["qid"]), right.text(row["qid"]), rtol=tolerance, atol=tolerance)
        assert left.num_clips(row["vid"]) == right.num_clips(row["vid"])
