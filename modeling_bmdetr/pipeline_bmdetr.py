"""A video file and sentences in, ranked moments in seconds out."""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Pipeline
from transformers.utils import logging

from .contract_bmdetr import clip_count, pad_rows, prepare_text_features, prepare_video_features, time_axis_s
from .encoder_interface_bmdetr import EncodedVideo, Video
from .processing_bmdetr import BMDetrProcessor, check_selection, named_moments
from .video_bmdetr import is_one_video
from .windows_bmdetr import mean_over_windows, merge_windows, presence_over_windows, window_starts

logger = logging.get_logger(__name__)

_SELECTION = ("top_k", "score_threshold", "nms_threshold", "min_presence")


class MomentRetrievalPipeline(Pipeline):
    """Finds the moments that sentences describe.

    ```python
    pipe = pipeline("temporal-grounding", model="someone/bmdetr-qvhighlights", trust_remote_code=True)
    pipe("kitchen.mp4", "she opens the door")["moments"][0]      # {"start": 12.1, "end": 15.8, "score": 0.93}
    video = pipe.encode_video("kitchen.mp4")                     # decoded and encoded once
    answers = pipe(video, ["she opens the door", "a dog barks"])
    ```

    The encoders are those that the checkpoint's feature contract names. Each answer is a dict:
        query: the sentence;
        moments: dicts `start`, `end` (s) and `score`, best first; the score is the probability that the span overlaps a
            described moment with an IoU of at least 0.5;
        calibrated: whether score and presence are such probabilities; if false, no calibration was fitted, and they
            are only what the model ranks by (`bmdetr calibrate`);
        presence: the probability that the video shows what the sentence says at all, where the model tells; of several
            windows as `presence_over_windows` has it;
        saliency: a value for each clip, higher where the clip matters more to the query; unbounded;
        frame_probabilities, frame_attention: p (Eq. 6) and o (Eq. 7) for each clip, where the model has them;
        duration, clip_length: seconds;
        searched: start and end (s) of the part of the video that was searched, all of it unless it was truncated.
    """

    _load_processor = True  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    processor: BMDetrProcessor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError(
                "`processor` is missing: pass the one saved with the model, or BMDetrProcessor(model.config)"
            )
        self.processor.contract.require_equal(self.model.config.feature_contract, "the processor", "the model")

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves the processor and the model with all that goes with it; `kwargs` as the model's `save_pretrained`."""
        self.processor.save_pretrained(save_directory)
        self.model.save_pretrained(save_directory, **kwargs)

    def __call__(  # type: ignore[override]
        self,
        video: Any,
        query: str | Sequence[str] | None = None,
        *,
        text_features: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answers one query with a dict, a list of queries with a list of dicts.

        Args:
            video: Path of a video file, its bytes, an open binary file, decoded frames `(frames, height, width, 3)` as
                array, tensor or list (with `fps`), or the result of `encode_video`. A dict `{"video": ..., "query":
                ...}` is accepted too, and what columns of videos of `datasets` hold. A list of any of these gives a
                list with one answer for each; a generator or a data set gives a generator, which asks for the next
                videos when their answers are wanted.
            query: A sentence, or a list of them.
            text_features: Raw rows `(tokens, dim)` for each query, where they were encoded elsewhere; the sentences
                then only name the answers.
            fps: Frame rate of decoded frames.
            top_k: At most so many moments per answer (5).
            score_threshold: Leaves out moments that score less (0).
            nms_threshold: Temporal IoU above which the weaker of two moments is left out (None: keep all).
            long_video: Overrides the contract for a video of more than `max_clips` clips: `window`, `truncate` or
                `resample`.
            min_presence: Gives no moments where presence is lower (0).
            query_batch_size: Pairs of a window and a query the model sees at once (32).
            batch_size: Of several videos, how many are encoded before the model sees their pairs together (1).
        """
        videos = _several(video)
        if videos is None:
            inputs, is_alone = _inputs(video, query, text_features)
            answers = super().__call__(inputs, **kwargs)
            return answers[0] if is_alone else answers
        if isinstance(video, Sequence) and not video:
            raise ValueError("`video` is an empty list: pass at least one video")
        answers = self._answer_several((_inputs(one, query, text_features) for one in videos), **kwargs)
        return list(answers) if isinstance(video, Sequence) else answers

    def _answer_several(
        self,
        asked: Iterator[tuple[dict[str, Any], bool]],
        batch_size: int | None = None,
        num_workers: int | None = None,  # noqa: ARG002  (decoding has threads of its own)
        **kwargs: Any,
    ) -> Iterator[Any]:
        """The answers about several videos, in their order; `batch_size` videos are held at once."""
        size = (self._batch_size or 1) if batch_size is None else batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"`batch_size` must be a whole number of at least 1, received {size!r}")
        own = (self._preprocess_params, self._forward_params, self._postprocess_params)
        preprocess, forward, postprocess = (
            {**before, **now} for before, now in zip(own, self._sanitize_parameters(**kwargs), strict=True)
        )
        while group := list(itertools.islice(asked, size)):
            prepared = [self.preprocess(inputs, **preprocess) for inputs, _ in group]
            with self.device_placement(), torch.inference_mode():
                outputs = self.forward_together(prepared, **forward)
            for (_, is_alone), output in zip(group, outputs, strict=True):
                answers = self.postprocess(output, **postprocess)
                yield answers[0] if is_alone else answers

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Sorts arguments by step; what a call leaves out keeps the value the pipeline was made with."""
        steps = (("fps", "long_video"), ("query_batch_size",), _SELECTION)
        if unknown := sorted(set(kwargs).difference(*steps)):
            raise TypeError(f"unknown arguments {unknown}; expected some of {sorted(sum(steps, ()))}")
        kwargs = {
            name: x for name, x in kwargs.items() if x is not None or name not in ("score_threshold", "min_presence")
        }
        selection = {name: kwargs[name] for name in steps[2] if kwargs.get(name) is not None}
        if not 0 <= (least := selection.pop("min_presence", 0.0)) <= 1:
            raise ValueError(f"`min_presence` must lie in [0, 1], received {least!r}")
        check_selection(**selection)
        size = kwargs.get("query_batch_size", 1)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"`query_batch_size` must be a whole number of at least 1, received {size!r}")
        if kwargs.get("long_video") not in (None, "window", "truncate", "resample"):
            raise ValueError(
                f"`long_video` must be 'window', 'truncate' or 'resample', received {kwargs['long_video']!r}"
            )
        preprocess, forward, postprocess = ({k: kwargs[k] for k in names if k in kwargs} for names in steps)
        return preprocess, forward, postprocess

    @property
    def is_calibrated(self) -> bool:
        """Whether scores are probabilities: a calibration was fitted for these weights."""
        calibration = self.model.config.calibration
        return calibration is not None and calibration["score"] is not None

    def encode_video(
        self, video: Video, fps: float | None = None, progress: Any = None, long_video: str | None = None
    ) -> EncodedVideo:
        """Decodes and encodes a video once; the result stands for the video in later calls.

        Where only the beginning of a long video will be searched, a warning says so before it is decoded.

        Args:
            video, fps: As in a call.
            progress: Called with (clips done, clips in all).
            long_video: What later calls will be asked for; with `truncate` no more is encoded than they read.
        """
        contract = self.processor.contract

        def opened(name: str, duration_s: float) -> int | None:
            if (long_video or contract.long_video) != "truncate":
                return None
            if clip_count(duration_s, contract.clip_length) > contract.max_clips:
                logger.warning(
                    f"{name} lasts {duration_s:.1f} s, and this checkpoint reads {contract.max_clips} clips of "
                    f"{contract.clip_length:g} s: only the first {contract.max_clips * contract.clip_length:.1f} s are "
                    'searched. Pass long_video="window" to search all of it.'
                )
            return contract.max_clips if long_video == "truncate" else None

        return self.processor.encode_video(video, fps=fps, progress=progress, opened=opened)

    def preprocess(  # type: ignore[override]
        self, inputs: dict[str, Any], fps: float | None = None, long_video: str | None = None
    ) -> dict[str, Any]:
        """Windows of raw clips, which take no memory of their own, and prepared tokens of every query."""
        video = inputs["video"]
        if not isinstance(video, EncodedVideo):
            video = self.encode_video(video, fps=fps, long_video=long_video or self.processor.contract.long_video)
        contract = self.processor.contract
        mode = long_video or contract.long_video
        clips, longest = len(video.features), contract.max_clips
        if clips > 1.5 * clip_count(video.duration_s, contract.clip_length) + 2:
            logger.warning(
                f"{video.name} lasts {video.duration_s:g} s and has {clips} clips of {contract.clip_length:g} s: its "
                "features are of another video or clip length, and times of its answers are wrong"
            )
        starts = window_starts(clips, longest) if mode == "window" else [0]
        windows = [video.features if mode == "resample" else video.features[i : i + longest] for i in starts]
        lengths = [min(len(window), longest) for window in windows]
        prepared = replace(contract, long_video="resample" if mode == "resample" else "truncate")
        prepare_video_features(windows[0], prepared)  # refuses features that are none before a sentence is encoded
        text_features = inputs.get("text_features")
        if text_features is None:
            text_features = self.processor.encode_text(inputs["queries"])
        clip_s = time_axis_s(lengths[0], video.duration_s, prepared) / lengths[0]
        return {
            "windows": windows,
            "starts": starts,
            "lengths": lengths,
            "prepared": prepared,
            "texts": [prepare_text_features(np.asarray(row), contract) for row in text_features],
            "queries": inputs["queries"],
            "duration_s": video.duration_s,
            "clip_s": clip_s,
            "searched_s": min(video.duration_s, (starts[-1] + lengths[-1]) * clip_s),
        }

    def _forward(self, model_inputs: dict[str, Any], query_batch_size: int = 32) -> dict[str, Any]:  # type: ignore[override]
        return self.forward_together([model_inputs], query_batch_size)[0]

    def forward_together(self, several: Sequence[dict[str, Any]], query_batch_size: int = 32) -> list[dict[str, Any]]:
        """The model on every pair of a window and a query of several videos, in batches.

        No window is prepared before its batch.

        Args:
            several: What `preprocess` returned of each video.
            query_batch_size: Pairs at once.

        Returns:
            The same dicts, with the `results` of their pairs.
        """
        pairs = [
            (i, window, query)
            for i, inputs in enumerate(several)
            for window in range(len(inputs["windows"]))
            for query in range(len(inputs["texts"]))
        ]
        results: list[list[dict[str, Tensor]]] = [[] for _ in several]
        for start in range(0, len(pairs), query_batch_size):
            chunk = pairs[start : start + query_batch_size]
            clips = {
                (i, window): prepare_video_features(several[i]["windows"][window], several[i]["prepared"])
                for i, window in {pair[:2] for pair in chunk}
            }
            video_features, video_mask = pad_rows([clips[i, window] for i, window, _ in chunk])
            text_features, text_mask = pad_rows([several[i]["texts"][query] for i, _, query in chunk])
            inputs = {
                "video_features": video_features.to(self.device, self.model.dtype),
                "video_mask": video_mask.to(self.device),
                "text_features": text_features.to(self.device, self.model.dtype),
                "text_mask": text_mask.to(self.device),
            }
            outputs = self.model(**inputs)
            for row, (i, window, _) in enumerate(chunk):
                real = len(clips[i, window])
                result = {name: outputs[name][row].float().cpu() for name in ("scores", "pred_spans")}
                for name in ("saliency_scores", "frame_probabilities"):
                    if outputs.get(name) is not None:
                        result[name] = outputs[name][row, :real].float().cpu()
                if outputs.get("presence") is not None:
                    result["presence"] = outputs["presence"][row].float().cpu()
                results[i].append(result)
        return [{**inputs, "results": found} for inputs, found in zip(several, results, strict=True)]

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: dict[str, Any],
        top_k: int | None = 5,
        score_threshold: float = 0.0,
        nms_threshold: float | None = None,
        min_presence: float = 0.0,
    ) -> list[dict[str, Any]]:
        """Moments of all windows of a query in one ranking, on the time axis of the whole video."""
        lengths, starts, clip_s = model_outputs["lengths"], model_outputs["starts"], model_outputs["clip_s"]
        duration_s, answers, queries = model_outputs["duration_s"], [], model_outputs["queries"]
        axes_s = torch.tensor([length * clip_s for length in lengths])
        limits_s = torch.tensor([duration_s - start * clip_s for start in starts])
        for i, query in enumerate(queries):
            results = model_outputs["results"][i :: len(queries)]
            scores, spans = (torch.stack([result[name] for result in results]) for name in ("scores", "pred_spans"))
            found = self.processor.decode(scores, spans, torch.tensor(lengths), limits_s, axes_s)
            overlap = self.processor.nms_threshold if nms_threshold is None else nms_threshold
            ranked = merge_windows(list(found), [start * clip_s for start in starts], overlap, most=top_k)
            ranked = ranked[ranked[:, 2] >= score_threshold]
            presence = None
            if "presence" in results[0]:
                presence = float(presence_over_windows(torch.stack([result["presence"] for result in results])))
            if presence is not None and presence < min_presence:
                ranked = ranked[:0]
            answer = {
                "query": query,
                "moments": named_moments(ranked),
                "calibrated": self.is_calibrated,
                **({} if presence is None else {"presence": presence}),
                "saliency": mean_over_windows([result["saliency_scores"] for result in results], starts).tolist(),
                "duration": duration_s,
                "searched": [0.0, model_outputs["searched_s"]],
                "clip_length": clip_s,
            }
            if "frame_probabilities" in results[0]:
                p = mean_over_windows([result["frame_probabilities"] for result in results], starts)
                answer["frame_probabilities"] = p.tolist()
                answer["frame_attention"] = p.softmax(dim=0).tolist()
            answers.append(answer)
        return answers


def _several(videos: Any) -> Iterator[Any] | None:
    """One after the other, of a list, a generator or a data set; None for a single video."""
    if is_one_video(videos) or isinstance(videos, Mapping) or hasattr(videos, "__array__"):
        return None
    if isinstance(videos, Iterable):
        return iter(videos)
    if hasattr(videos, "__getitem__") and hasattr(videos, "__len__"):  # data sets of PyTorch
        return (videos[i] for i in range(len(videos)))
    return None


def _inputs(video: Any, query: Any, text_features: Sequence[Any] | None) -> tuple[dict[str, Any], bool]:
    """What `preprocess` takes of one video and its sentences, and whether there is one sentence that is no list."""
    if isinstance(video, Mapping) and not is_one_video(video):
        if "video" not in video:
            raise ValueError(f"a dict of inputs has the keys `video` and `query`, received {sorted(video)}")
        video, query = video["video"], video.get("query", query)
    if query is None:
        raise ValueError("`query` is missing: pass a sentence, or a list of sentences")
    queries = [query] if isinstance(query, str) else list(query) if isinstance(query, Iterable) else [query]
    if not queries:
        raise ValueError("`query` is an empty list: pass at least one sentence")
    if wrong := [one for one in queries if not isinstance(one, str)]:
        raise TypeError(f"`query` must be a sentence or a list of them, received {wrong[0]!r}")
    if text_features is not None and len(text_features) != len(queries):
        raise ValueError(
            f"`text_features` must hold rows for each query, received {len(text_features)} for {len(queries)}"
        )
    return {"video": video, "queries": queries, "text_features": text_features}, isinstance(query, str)
