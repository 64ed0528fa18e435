"""What `bench.py` works on: random features as released, random predictions, and a folder of videos with a model."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from speed_sides import ENCODERS, PACKED_DIR, TEXT_DIM, TEXT_DIR, VIDEO_DIRS

CLIP_LENGTH_S, ANNOTATED_CLIPS, ANNOTATED_CLIP_S = 1.0, 75, 2
SENTENCES = ("a red circle slides to the left", "the blue star grows", "a green square jumps", "the triangle leaves")


def write_features(folder: Path, options: Namespace) -> None:
    """Rows and features in the layout and width of the released Charades-STA ones, and the packed store of them."""
    from modeling_bmdetr import BMDetrConfig
    from modeling_bmdetr.data import FeatureStore, pack_features, read_rows

    rng = np.random.default_rng(0)
    for name, width in VIDEO_DIRS.items():
        (folder / name).mkdir()
        for video in range(options.videos):
            features = rng.standard_normal((options.clips, width), dtype=np.float32)
            np.savez(folder / name / f"v{video}.npz", features=features)
    (folder / TEXT_DIR).mkdir()
    for qid in range(options.queries):
        text = rng.standard_normal((options.tokens, TEXT_DIM), dtype=np.float32)
        np.savez(folder / TEXT_DIR / f"qid{qid}.npz", last_hidden_state=text)
    rows = random_rows(options.queries, options.videos, options.clips, rng)
    for name, part in (("train", rows), ("test", rows[: options.eval_queries])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)), encoding="utf-8")
    config = BMDetrConfig.released(video_dim=sum(VIDEO_DIRS.values()), text_dim=TEXT_DIM, **ENCODERS)
    store = FeatureStore.from_files(
        [folder / name for name in VIDEO_DIRS], folder / TEXT_DIR, contract=config.feature_contract
    )
    pack_features(store, folder / PACKED_DIR, rows=read_rows(folder / "train.jsonl"), progress=False)


def random_rows(queries: int, videos: int, clips: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """One moment a query, on whole seconds, so that both sides have the same foreground clips; as negative queries
    those of the same video whose moment overlaps by an IoU below 0.5."""
    of_video = np.concatenate([np.arange(videos), rng.integers(videos, size=queries - videos)])
    longest = max(3, clips // 2)
    starts = rng.integers(0, clips - longest, size=queries)
    ends = starts + rng.integers(2, longest, size=queries)
    rows = []
    for qid in range(queries):
        shared = np.minimum(ends, ends[qid]) - np.maximum(starts, starts[qid])
        covered = np.maximum(ends, ends[qid]) - np.minimum(starts, starts[qid])
        negatives = np.flatnonzero((of_video == of_video[qid]) & (shared < 0.5 * covered))
        rows.append(
            {
                "qid": qid,
                "vid": f"v{of_video[qid]}",
                "query": f"query number {qid}",
                "duration": float(clips),
                "relevant_windows": [[float(starts[qid]), float(ends[qid])]],
                "neg_query_ids": negatives.tolist(),
            }
        )
    return rows


def random_submission(queries: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Predictions with highlights, and annotations in the shape of QVHighlights' validation split: one to four moments
    a query, rated by three annotators."""
    rng, predictions, annotations = np.random.default_rng(0), [], []
    duration_s = ANNOTATED_CLIPS * ANNOTATED_CLIP_S
    for qid in range(queries):
        moments = rng.choice([1, 2, 3, 4], p=[0.55, 0.25, 0.12, 0.08])
        bounds = np.sort(rng.choice(ANNOTATED_CLIPS + 1, size=2 * moments, replace=False)).reshape(-1, 2)
        clips = np.concatenate([np.arange(start, end) for start, end in bounds])
        name = {"qid": qid, "query": f"query {qid}", "vid": f"video_{qid}"}
        annotations.append(
            {
                **name,
                "duration": duration_s,
                "relevant_windows": (ANNOTATED_CLIP_S * bounds).tolist(),
                "relevant_clip_ids": clips.tolist(),
                "saliency_scores": rng.integers(0, 5, (len(clips), 3)).tolist(),
            }
        )
        windows = np.column_stack([np.sort(rng.uniform(0, duration_s, (10, 2)), axis=1), -np.sort(-rng.random(10))])
        saliency = rng.normal(size=ANNOTATED_CLIPS).round(4).tolist()
        predictions.append(
            {**name, "pred_relevant_windows": windows.round(4).tolist(), "pred_saliency_scores": saliency}
        )
    return predictions, annotations


def write_videos(folder: Path, number: int) -> list[Path]:
    """Rendered videos of moving shapes, of about half a minute each."""
    from dataset_scripts.moving_shapes import render_moving_shapes

    render_moving_shapes(folder, num_videos={"train": 0, "val": 0, "test": number}, progress=False)
    return sorted((folder / "test").glob("*.mp4"))


def write_model(folder: Path) -> Path:
    """A model of the quickstart's size with weightless encoders. It is not trained: weights do not change times."""
    from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval, BMDetrProcessor
    from modeling_bmdetr.encoders_bmdetr import build_text_encoder, build_video_encoder

    video, text = build_video_encoder("pixel-grid"), build_text_encoder("hashed-words")
    config = BMDetrConfig(
        video_dim=video.dim,
        text_dim=text.dim,
        video_encoders=[{**video.spec(), "dim": video.dim}],
        text_encoder={**text.spec(), "dim": text.dim},
        clip_length=CLIP_LENGTH_S,
        max_clips=75,
        hidden_size=128,
        encoder_layers=2,
        decoder_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
    )
    BMDetrForMomentRetrieval(config).save_pretrained(folder)
    BMDetrProcessor(config.feature_contract).save_pretrained(folder)
    return folder
