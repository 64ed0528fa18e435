"""What an encoder is: a video to one row per clip, a sentence to one row per token, and a description of how.

An own encoder subclasses `VideoEncoder` or `TextEncoder` and is made known by `register_video_encoder` or
`register_text_encoder` of `encoders_bmdetr.py`.
"""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from .contract_bmdetr import clip_times, join_rows
from .video_bmdetr import FramePlan, Video, open_video

logger = logging.getLogger(__name__)

# They are held at once, and a contract may come from a stranger.
MOST_FRAMES_PER_CLIP = 1024
Progress: TypeAlias = Callable[[int, int], None]
Opened: TypeAlias = Callable[[str, float], int | None]


@dataclass
class EncodedVideo:
    """A video encoded once, to be asked many queries.

    Attributes:
        features: `(clips, dim)` float32, raw rows of one video encoder or of several side by side.
        duration_s: Length of the video in seconds.
        name: What messages call it.
    """

    features: np.ndarray
    duration_s: float
    name: str = "the video"


class VideoEncoder(ABC):
    """Turns a video into one row per clip.

    Attributes:
        name: the name it is built by.
        dim: values per row.
        frames_per_clip: frames sampled from each clip, see `clip_times`.
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
        progress: Progress | None = None,
    ) -> EncodedVideo:
        """Encodes a whole video; see [`encode_video`], which this calls for one encoder.

        A subclass that needs more than the frames of single clips overrides this.
        """
        return _encode_in_one_pass(video, [self], clip_length_s, fps, progress)

    def clip_times(self, duration_s: float, clip_length_s: float, fps: float) -> np.ndarray:  # noqa: ARG002
        """Seconds at which frames are sampled, `(clips, frames_per_clip)`, increasing in reading order.

        A subclass that follows another rule than [`clip_times`] of the feature contract overrides this; `fps` is the
        average frame rate of the video. Of several encoders side by side, the fewest clips count.
        """
        return clip_times(duration_s, clip_length_s, self.frames_per_clip)

    @abstractmethod
    def _encode_clips(self, frames: list[np.ndarray]) -> np.ndarray:
        """Rows `(clips, dim)` of `clips x frames_per_clip` frames, each `(height, width, 3)` uint8."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Name, width and the options that change the rows, as plain JSON types; `things` as the contract has it."""


class TextEncoder(ABC):
    """Turns sentences into one row per token.

    Attributes:
        name: the name it is built by.
        dim: values per row.
    """

    name: str
    dim: int

    def encode_text(self, sentences: Sequence[str], max_tokens: int = 32, padding: bool = False) -> list[np.ndarray]:
        """Encodes sentences; each keeps its first `max_tokens` rows, and a warning names those that are longer.

        Args:
            padding: whether rows of padding follow those of real tokens, as in some published features; for encoders
                that have such rows.

        Returns:
            one `(tokens, dim)` float32 array per sentence, in the order given, not normalised; at least one row each.

        Raises:
            TypeError: if `sentences` is a single string.
            ValueError: if a sentence is empty or blank, `max_tokens` is less than 1, or the encoder has no rows of
                padding and they are asked for.
        """
        if isinstance(sentences, str):
            raise TypeError(f"sentences must be a list of strings, received one string; pass [{sentences!r}]")
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, received {max_tokens}.")
        for index, sentence in enumerate(sentences):
            if not isinstance(sentence, str):
                raise TypeError(f"sentences[{index}] must be a string, received {type(sentence).__name__}.")
            if not sentence.strip():
                raise ValueError(f"sentences[{index}] is empty; describe the moment in a few words.")
        rows = self._encode_sentences(list(sentences), max_tokens + 1)
        cut = [sentence for sentence, row in zip(sentences, rows, strict=True) if len(row) > max_tokens]
        if cut:
            logger.warning(
                f"{len(cut)} of {len(sentences)} sentences have more than {max_tokens} tokens; only the first "
                f"{max_tokens} are read, and what follows changes nothing: {cut[0][:200]!r}"
            )
        if padding:
            rows = self._encode_padded(list(sentences))
        return [row[:max_tokens] for row in rows]

    @abstractmethod
    def _encode_sentences(self, sentences: list[str], max_tokens: int) -> list[np.ndarray]:
        """Rows of checked sentences, one `(tokens, dim)` float32 array each."""

    def _encode_padded(self, sentences: list[str]) -> list[np.ndarray]:  # noqa: ARG002
        """Rows of checked sentences with those of padding, the same number for each."""
        raise ValueError(f"the text encoder {self.name!r} has no rows of padding, which text_rows='all' asks for.")

    def project(self, sentences: Sequence[str]) -> np.ndarray:  # noqa: ARG002
        """Sentences in a space that they share with images, `(sentences, width)` float32; for towers such as CLIP's.

        Raises:
            ValueError: the encoder has no such space.
        """
        raise ValueError(f"the text encoder {self.name!r} has no space that sentences share with images.")

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Name, width and the options that change the rows, as plain JSON types."""


def split_words(sentences: Sequence[str]) -> list[list[str]]:
    """The words of each sentence, in lower case and without punctuation.

    Raises:
        ValueError: a sentence holds no word.
    """
    words = [re.findall(r"\w+", sentence.lower()) for sentence in sentences]
    for index, found in enumerate(words):
        if not found:
            raise ValueError(f"sentences[{index}] holds no word, received {sentences[index]!r}; describe the moment.")
    return words


def require_at_least_one(**counts: int) -> None:
    """Refuses counts below 1, and clips of more frames than are held at once."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, received {count}.")
        if name == "frames_per_clip" and count > MOST_FRAMES_PER_CLIP:
            raise ValueError(f"{name} must be at most {MOST_FRAMES_PER_CLIP}, received {count}.")


def encode_video(
    video: Video,
    encoders: Sequence[VideoEncoder],
    clip_length_s: float,
    *,
    fps: float | None = None,
    progress: Progress | None = None,
    opened: Opened | None = None,
    decode_threads: int = 0,
) -> EncodedVideo:
    """Encodes a whole video with one or several encoders, in one opening of the file and one pass over its frames.

    Each encoder gets the frames at its own times and in its own size. A thread decodes one batch ahead of the encoder
    that is at work, and no further: the frames of two batches, and one begun per encoder, are the most that is held.

    Args:
        video: path of a video file, or decoded frames `(frames, height, width, 3)` uint8 RGB at a constant rate.
        encoders: whose rows stand side by side, in this order. One that overrides `encode_video` is asked by itself.
        clip_length_s: seconds per clip; `clip_count` in `contract_bmdetr.py` is the rule for the last one.
        fps: frame rate of decoded frames; not for a file, whose frames carry their times.
        progress: called with (clips done, clips in all) after each batch of the slowest encoder.
        opened: called with the video's name and duration before a frame is decoded; may return a number of clips, after
            which the video is left alone.
        decode_threads: see [`VideoFile`].

    Returns:
        The rows, `(clips, sum of dim)` float32, not normalised, and the duration of the video.

    Raises:
        FileNotFoundError, ValueError: see `VideoFile`; and if frames have a wrong shape or type, or `fps` is missing or
            superfluous.
    """
    if all(type(encoder).encode_video is VideoEncoder.encode_video for encoder in encoders):
        return _encode_in_one_pass(video, encoders, clip_length_s, fps, progress, opened, decode_threads)
    several = [encoder.encode_video(video, clip_length_s, fps=fps, progress=progress) for encoder in encoders]
    return replace(several[0], features=join_rows([one.features for one in several]))


def _encode_in_one_pass(
    video: Video,
    encoders: Sequence[VideoEncoder],
    clip_length_s: float,
    fps: float | None,
    progress: Progress | None,
    opened: Opened | None = None,
    decode_threads: int = 0,
) -> EncodedVideo:
    with open_video(video, fps, decode_threads) as source:
        most = opened(source.name, source.duration_s) if opened is not None else None
        times_s = [one.clip_times(source.duration_s, clip_length_s, source.fps)[:most] for one in encoders]
        plans = [
            FramePlan(times.ravel(), encoder.frame_size, encoder.interpolation)
            for times, encoder in zip(times_s, encoders, strict=True)
        ]
        # One array, since small ones that stay between large ones that go break up the memory of a long film.
        rows = [np.empty((len(times), one.dim), np.float32) for times, one in zip(times_s, encoders, strict=True)]
        done = [0] * len(encoders)
        batches = _batches(source.frames(plans), encoders, [len(times) for times in times_s])
        # While a batch is encoded here, the next one is decoded there. Its thread ends before the file is closed.
        with ThreadPoolExecutor(1, "decoding") as decoding:
            ahead = decoding.submit(next, batches, None)
            while (batch := ahead.result()) is not None:
                ahead = decoding.submit(next, batches, None)
                index, frames = batch
                first, done[index] = done[index], done[index] + len(frames) // encoders[index].frames_per_clip
                rows[index][first : done[index]] = encoders[index]._encode_clips(frames)
                if progress is not None and done[index] == min(done):
                    progress(done[index], len(times_s[index]))
        return EncodedVideo(join_rows(rows), source.duration_s, source.name)


def _batches(
    frames: Iterable[tuple[int, float, np.ndarray]], encoders: Sequence[VideoEncoder], clips: Sequence[int]
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """The index of an encoder and the frames of its next `clips_per_batch` clips, as they become complete."""
    waiting: list[list[np.ndarray]] = [[] for _ in encoders]
    left = list(clips)
    for index, _, frame in frames:
        waiting[index].append(frame)
        batch_clips = min(encoders[index].clips_per_batch, left[index])
        if len(waiting[index]) == batch_clips * encoders[index].frames_per_clip:
            yield index, waiting[index]
            waiting[index] = []
            left[index] -= batch_clips
