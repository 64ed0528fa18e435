"""What an encoder is: a video to one row a clip, a sentence to one row a token, and a description of how.

An own encoder subclasses `VideoEncoder` or `TextEncoder` and is made known by `register_video_encoder` or
`register_text_encoder` of `encoders_bmdetr.py`.
"""

import itertools
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from .contract_bmdetr import clip_times
from .video_bmdetr import iter_frames, probe_video

Video: TypeAlias = str | os.PathLike | np.ndarray


class VideoEncoder(ABC):
    """Turns a video into one row a clip.

    Attributes:
        name: the name it is built by.
        dim: values a row.
        frames_per_clip: frames sampled from each clip, at the centres of equal parts of it.
        clips_per_batch: clips whose frames are held and encoded at once.
        frame_size, interpolation: how frames are resized while decoding, as `iter_frames` takes it.
    """

    name: str
    dim: int
    frames_per_clip: int
    clips_per_batch: int = 16
    frame_size: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"

    def encode_video(
        self,
        video: Video,
        clip_length_s: float,
        *,
        fps: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Encodes a whole video, holding the frames of one batch at a time.

        Args:
            video: path of a video file, or decoded frames `(frames, height, width, 3)` uint8 RGB at a constant rate.
            clip_length_s: seconds a clip; `clip_count` in `contract_bmdetr.py` is the rule for the last one.
            fps: frame rate of decoded frames; not for a file, whose frames carry their times.
            progress: called with (clips done, clips in all) after each batch.

        Returns:
            `(clips, dim)` float32, not normalised.

        Raises:
            FileNotFoundError, ValueError: see `iter_frames`; and if frames have a wrong shape or type, or `fps` is
                missing or superfluous.
        """
        clips, frames = _sampled_frames(video, clip_length_s, fps, self)
        rows: list[np.ndarray] = []
        done = 0
        while batch := list(itertools.islice(frames, self.clips_per_batch * self.frames_per_clip)):
            rows.append(self._encode_clips(batch))
            done += len(rows[-1])
            if progress is not None:
                progress(done, clips)
        return np.concatenate(rows).astype(np.float32, copy=False)

    @abstractmethod
    def _encode_clips(self, frames: list[np.ndarray]) -> np.ndarray:
        """Rows `(clips, dim)` of `clips x frames_per_clip` frames, each `(height, width, 3)` uint8."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Name, width and the options that change the rows, as plain JSON types."""


class TextEncoder(ABC):
    """Turns sentences into one row a token.

    Attributes:
        name: the name it is built by.
        dim: values a row.
    """

    name: str
    dim: int

    def encode_text(self, sentences: Sequence[str], max_tokens: int = 32) -> list[np.ndarray]:
        """Encodes sentences; each keeps its first `max_tokens` rows.

        Returns:
            one `(tokens, dim)` float32 array a sentence, in the order given, not normalised; at least one row each.

        Raises:
            TypeError: if `sentences` is a single string.
            ValueError: if a sentence is empty or blank, or `max_tokens` is less than 1.
        """
        if isinstance(sentences, str):
            raise TypeError(f"sentences must be a list of strings, got one string; pass [{sentences!r}].")
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {max_tokens}.")
        for index, sentence in enumerate(sentences):
            if not isinstance(sentence, str):
                raise TypeError(f"sentences[{index}] must be a string, got {type(sentence).__name__}.")
            if not sentence.strip():
                raise ValueError(f"sentences[{index}] is empty; describe the moment in a few words.")
        return self._encode_sentences(list(sentences), max_tokens)

    @abstractmethod
    def _encode_sentences(self, sentences: list[str], max_tokens: int) -> list[np.ndarray]:
        """Rows of checked sentences, one `(tokens, dim)` float32 array each."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Name, width and the options that change the rows, as plain JSON types."""


def require_at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}.")


def _sampled_frames(
    video: Video, clip_length_s: float, fps: float | None, encoder: VideoEncoder
) -> tuple[int, Iterator[np.ndarray]]:
    """Number of clips, and the frames of all clips in order, `frames_per_clip` each."""
    if isinstance(video, np.ndarray):
        if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8 or not len(video):
            raise ValueError(
                f"frames must be a (frames, height, width, 3) uint8 array with at least one frame, got "
                f"{video.dtype} {video.shape}; scale to 0..255 and put the channels last."
            )
        if fps is None or not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps must be the frame rate of the frames given, got {fps!r}.")
        times_s = clip_times(len(video) / fps, clip_length_s, encoder.frames_per_clip)
        shown = np.minimum((times_s.ravel() * fps).astype(int), len(video) - 1)
        return len(times_s), (video[index] for index in shown)
    if fps is not None:
        raise ValueError(f"fps belongs to decoded frames only, got {fps} for {video}; the file carries its own times.")
    times_s = clip_times(probe_video(video).duration_s, clip_length_s, encoder.frames_per_clip)
    frames = iter_frames(video, times_s.ravel(), size=encoder.frame_size, interpolation=encoder.interpolation)
    return len(times_s), (frame for _, frame in frames)
