"""The feature contract, and all that follows from it: a video's clips and their times, rows prepared for the model.

Only writing files is below this room: training, processor, pipeline, stores and metrics follow the rules written here.
Nothing but NumPy is needed to import it.
"""

import itertools
import json
import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, get_args, get_origin

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

# A last clip shorter than this share of a clip is not worth a row of its own: containers round durations up.
SHORTEST_LAST_CLIP = 0.1
# No video has more clips, no sentence more tokens, and no encoder looks at more frames of one: more is a mistake, or
# meant to fill the memory.
MAX_CLIPS, MAX_FRAMES = 1_000_000, 10_000_000


@dataclass(frozen=True)
class FeatureContract:
    """What a model expects of its features: who made them, how they lie in time, and how they are prepared.

    The contract is part of [`BMDetrConfig`], is stored beside every feature store, and is compared wherever a
    checkpoint, a store and an input meet. An encoder is described by a dict with at least `name` and `dim`
    (values per row); its other entries are the options that change its output. Where its rows are equal parts that
    describe one thing each, in the same way, `things` says how many.

    Attributes:
        video_encoders: Encoders whose rows (one per clip) are concatenated, in this order.
        text_encoder: Encoder whose rows (one per token) represent a sentence.
        clip_length: Seconds a clip covers.
        max_clips: Longest video in clips; `long_video` says what happens to a longer one.
        max_tokens: Longest sentence in tokens; the rest is cut.
        long_video: `truncate` keeps the first `max_clips` clips, `resample` mean-pools the whole video to them,
            `window` slides over the video at inference and truncates in training.
        normalize_video: L2-normalise each video encoder's rows before concatenation.
        normalize_text: L2-normalise the text rows.
        endpoint_features: The model appends the clip's start and end, as fractions of the video, to its features.
        text_rows: `to_end_of_text` keeps the rows of real tokens, `all` keeps padding rows as released features do.
    """

    video_encoders: tuple[dict[str, Any], ...] = ()
    text_encoder: dict[str, Any] | None = None
    clip_length: float | int = 1.0
    max_clips: int = 75
    max_tokens: int = 32
    long_video: Literal["truncate", "resample", "window"] = "truncate"
    normalize_video: bool = True
    normalize_text: bool = True
    endpoint_features: bool = True
    text_rows: Literal["to_end_of_text", "all"] = "to_end_of_text"

    def __post_init__(self):
        if not isinstance(self.video_encoders, (list, tuple)):
            raise ValueError(f"`video_encoders` must be a list of dicts, received {self.video_encoders!r}")
        object.__setattr__(self, "video_encoders", tuple(_plain_encoder(encoder) for encoder in self.video_encoders))
        if self.text_encoder is not None:
            object.__setattr__(self, "text_encoder", _plain_encoder(self.text_encoder))
        for name, field in self.__dataclass_fields__.items():
            value = getattr(self, name)
            if field.type is bool and not isinstance(value, bool):
                raise ValueError(f"`{name}` must be True or False, received {value!r}")
            if field.type is int and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"`{name}` must be a whole number of at least 1, received {value!r}")
            if field.type is int and value > MAX_CLIPS:
                raise ValueError(f"`{name}` must be at most {MAX_CLIPS}, received {value!r}")
            if get_origin(field.type) is Literal and value not in (choices := get_args(field.type)):
                raise ValueError(f"`{name}` must be one of {choices}, received {value!r}")
        length = self.clip_length
        if not is_number(length) or length <= 0:
            raise ValueError(f"`clip_length` must be a positive number of seconds, received {length!r}")

    @property
    def video_dim(self) -> int:
        """Values per clip over all video encoders."""
        return sum(encoder["dim"] for encoder in self.video_encoders)

    @property
    def text_dim(self) -> int:
        """Values per token, 0 when no text encoder is named."""
        return self.text_encoder["dim"] if self.text_encoder else 0

    @property
    def things_per_clip(self) -> int:
        """Equal parts of a row that describe one thing each, as its only video encoder states by `things`; else 1."""
        if len(self.video_encoders) != 1:
            return 1  # what several encoders say of a thing lies apart
        things = self.video_encoders[0].get("things", 1)
        is_count = isinstance(things, int) and not isinstance(things, bool) and 1 <= things < max(self.video_dim, 2)
        if is_count and self.video_dim % things == 0:
            return things
        logger.warning(
            "`things` of the video encoder '%s' must divide its %d values into parts of more than one, received %r: "
            "each clip is read as a whole",
            *(self.video_encoders[0]["name"], self.video_dim, things),
        )
        return 1

    def to_dict(self) -> dict[str, Any]:
        """The contract as plain JSON types."""
        return {**asdict(self), "video_encoders": [dict(encoder) for encoder in self.video_encoders]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FeatureContract":
        """The contract from `to_dict`'s result; an unknown entry is an error."""
        known = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping):
            raise ValueError(f"a feature contract is a dict with some of {sorted(known)}, received {values!r}")
        if unknown := sorted(map(str, set(values) - known)):
            raise ValueError(f"unknown entries in the feature contract: {unknown}; expected some of {sorted(known)}")
        return cls(**values)

    def _differences(self, other: "FeatureContract", names: Iterable[str]) -> list[str]:
        """A line for each of these entries that differs; encoders are compared where both sides name them."""
        lines = []
        for name in names:
            mine, theirs = getattr(self, name), getattr(other, name)
            unnamed = name in ("video_encoders", "text_encoder") and not (mine and theirs)
            if mine != theirs and not unnamed:
                lines.append(f"{name}: {describe_encoders(mine)} against {describe_encoders(theirs)}")
        return lines

    def mismatches(self, other: "FeatureContract") -> list[str]:
        """What differs, among the entries that decide the feature values themselves, one line each."""
        lines = self._differences(other, ("video_encoders", "text_encoder", "clip_length", "text_rows"))
        if self.normalize_video and not self.video_encoders and len(other.video_encoders) > 1:
            # Each encoder's part is normalised by itself, and nothing here says where the parts end.
            theirs = [{"name": encoder["name"], "dim": encoder["dim"]} for encoder in other.video_encoders]
            lines.append(
                f"video_encoders: not named, against {describe_encoders(other.video_encoders)}, whose parts are "
                f"normalised one by one; name them in the configuration, as in `video_encoders={theirs}`"
            )
        return lines

    def require_equal(self, other: "FeatureContract", own_name: str, other_name: str) -> None:
        """Raises `ValueError`, naming both sides and the remedy, unless both say the same of preparation and time.

        Encoders are compared where both name them.
        """
        if lines := self._differences(other, self.__dataclass_fields__):
            raise ValueError(
                f"the feature contracts of {own_name} and {other_name} differ:\n  "
                + "\n  ".join(lines)
                + "\nTake the processor that was saved with the model, or make one from its configuration: "
                "BMDetrProcessor(model.config)."
            )

    def require_match(self, other: "FeatureContract", own_name: str, other_name: str) -> None:
        """Raises `ValueError`, naming both sides and the remedy, unless features of `other` fit this contract."""
        if lines := self.mismatches(other):
            raise ValueError(
                f"the features of {other_name} do not fit {own_name}:\n  "
                + "\n  ".join(lines)
                + f"\nExtract the features again with the encoders and clip length of {own_name}, "
                f"or use a checkpoint trained on those of {other_name}."
            )


def _plain_encoder(encoder: Any) -> dict[str, Any]:
    """A copy as JSON gives it back, so that a stored contract equals the one it was stored from."""
    dim = encoder.get("dim") if isinstance(encoder, dict) else None
    is_width = isinstance(dim, int) and not isinstance(dim, bool) and 1 <= dim <= MAX_CLIPS
    if not is_width or not isinstance(encoder.get("name"), str):
        raise ValueError(
            "an encoder of the feature contract is a dict with at least `name` (str) and `dim` (values per row, a "
            f"whole number from 1 to {MAX_CLIPS}), received {encoder!r}"
        )
    try:
        return json.loads(json.dumps(encoder, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"an encoder of the feature contract must be JSON ({error}), received {encoder!r}") from error


def describe_encoders(value: Any) -> str:
    """Encoders by name and width for messages; anything else as it is."""
    if isinstance(value, dict):
        options = ", ".join(f"{k}={v!r}" for k, v in sorted(value.items()) if k not in ("name", "dim"))
        return f"{value['name']} ({value['dim']} wide{', ' + options if options else ''})"
    if isinstance(value, tuple):
        return " + ".join(describe_encoders(item) for item in value)
    return repr(value)


# Clips and times


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that float64 holds: not NaN, infinite, or an integer beyond it; not True or False."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def clip_count(duration_s: float, clip_length_s: float) -> int:
    """Number of clips that a video of `duration_s` seconds is cut into: the one rule that everything else follows.

    `max(1, ceil(duration_s / clip_length_s - 0.1))`: the last clip may be partial, but a rest shorter than a tenth of a
    clip is dropped. A 30.7 s video has 31 clips of 1 s and 16 of 2 s; a 150.05 s video has 75 clips of 2 s.

    Raises:
        ValueError: if either argument is not a positive, finite number, or there are more than `MAX_CLIPS` clips.
    """
    for name, value in (("duration_s", duration_s), ("clip_length_s", clip_length_s)):
        if not 0 < value <= sys.float_info.max:
            raise ValueError(f"{name} must be a positive number of seconds, received {value!r}")
    clips = duration_s / clip_length_s
    if clips > MAX_CLIPS:
        raise ValueError(
            f"{duration_s:g} s are {clips:.3g} clips of {clip_length_s:g} s, and a video has at most {MAX_CLIPS:,}: "
            "check both, which are in seconds"
        )
    # Rounded, so that a duration which went through float32 has as many clips as before.
    return max(1, math.ceil(round(clips - SHORTEST_LAST_CLIP, 4)))


def clip_times(duration_s: float, clip_length_s: float, frames_per_clip: int = 1) -> np.ndarray:
    """Times at which to sample frames: the centres of `frames_per_clip` equal parts of every clip.

    A partial last clip is divided in the same way, so every time lies inside the video.

    Returns:
        `(clips, frames_per_clip)` float64, seconds, increasing in reading order; `clips` is `clip_count(...)`.

    Raises:
        ValueError: if a length is not positive, `frames_per_clip` is less than 1, or there are more than `MAX_FRAMES`.
    """
    if frames_per_clip < 1:
        raise ValueError(f"frames_per_clip must be at least 1, received {frames_per_clip}")
    clips = clip_count(duration_s, clip_length_s)
    if clips * frames_per_clip > MAX_FRAMES:
        raise ValueError(f"{clips} clips of {frames_per_clip} frames are more than {MAX_FRAMES:,} frames of a video")
    starts_s = np.arange(clips) * float(clip_length_s)
    lengths_s = np.minimum(clip_length_s, duration_s - starts_s)
    centres = (np.arange(frames_per_clip) + 0.5) / frames_per_clip
    return starts_s[:, None] + lengths_s[:, None] * centres[None, :]


def time_axis_s(num_clips: int, duration_s: float | None, contract: FeatureContract) -> float:
    """Seconds that a video's clips span: the unit of every span, in labels, predictions and pictures alike.

    Clips times `clip_length`; the duration where the clips were resampled, since each then covers an equal share of
    the video. Clips are resampled where there would be more than `max_clips` of them: ten clips of 2 s span 20 s in a
    video of 18.6 s, and 25 s in a video of 25 s that was resampled to them.

    Args:
        num_clips: Real clips after `prepare_video_features`.
        duration_s: Seconds of the video; needed only where clips may have been resampled.

    Raises:
        ValueError: the duration is needed and missing.
    """
    if contract.long_video == "resample" and num_clips == contract.max_clips:
        if duration_s is None:
            raise ValueError(
                f"`duration_s` is missing: videos of {contract.max_clips} clips may be resampled under this "
                'checkpoint\'s feature contract (long_video="resample"), so that their clips tell nothing of seconds'
            )
        if clip_count(duration_s, contract.clip_length) != num_clips:
            return float(duration_s)
    return num_clips * contract.clip_length


# Rows


def l2_normalize(rows: np.ndarray) -> np.ndarray:
    """Rows of length one: `(n, dim)` in and out. A row of zeros stays zero."""
    rows = np.asarray(rows)
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    if not np.isfinite(lengths).all():  # squares of values above 1e19 are too large for float32
        lengths = np.linalg.norm(rows.astype(np.float64), axis=-1, keepdims=True)
    return (rows / np.maximum(lengths, 1e-5)).astype(rows.dtype, copy=False)


def check_rows(rows: np.ndarray, dim: int, what: str, made_by: str = "it was made by another encoder") -> np.ndarray:
    """`rows`, if they are `(at least one, dim)`, of any width where `dim` is 0.

    Raises:
        ValueError: they have another shape; `what` names them, and `made_by` says how they should have been made.
    """
    are_rows = rows.ndim == 2 and len(rows) > 0
    if not are_rows or (dim and rows.shape[1] != dim):
        reason = f": {made_by}" if are_rows else ""
        raise ValueError(f"{what} must have the shape (rows >= 1, {dim or 'dim'}), received {rows.shape}{reason}")
    return rows


def _finite(features: np.ndarray, modality: str) -> np.ndarray:
    if not np.isfinite(features).all():
        bad = sorted(set(np.nonzero(~np.isfinite(features))[0].tolist()))
        raise ValueError(
            f"{modality} features hold values that are not finite (NaN or infinite) in rows {bad[:5]} of "
            f"{len(features)}; extract them again"
        )
    return features


def join_rows(parts: Sequence[np.ndarray], max_rows: int | None = None) -> np.ndarray:
    """Rows of several encoders side by side: `(clips, dim_i)` each to `(clips, sum of dim_i)`.

    Encoders may differ by a clip at the end of a video; the joined rows end with the shortest, and at `max_rows`.
    """
    rows = min(len(part) for part in parts)
    rows = rows if max_rows is None else min(rows, max_rows)
    return np.concatenate([part[:rows] for part in parts], axis=1) if len(parts) > 1 else parts[0][:rows]


def prepare_video_features(features: np.ndarray, contract: FeatureContract) -> np.ndarray:
    """Raw rows of a video as the model takes them: normalised encoder by encoder, cut or resampled to `max_clips`.

    Args:
        features: `(clips, dim)`, the rows of all video encoders side by side.

    Returns:
        `(min(clips, max_clips), dim)` float32. With `long_video="resample"`, each row of a longer video is the mean
        of an equal share of its clips.

    Raises:
        ValueError: no clips, not as wide as the encoders of the contract, or values that are not finite.
    """
    widths = " + ".join(f"{encoder['name']} ({encoder['dim']})" for encoder in contract.video_encoders)
    made_by = f"extract them with {widths}, in this order"
    features = check_rows(np.asarray(features, dtype=np.float32), contract.video_dim, "video features", made_by)
    if len(features) > contract.max_clips and contract.long_video != "resample":
        features = features[: contract.max_clips]
    features = _finite(features, "video")
    if contract.normalize_video:
        edges = np.cumsum([0, *(encoder["dim"] for encoder in contract.video_encoders)])
        parts = [features[:, a:b] for a, b in itertools.pairwise(edges)] or [features]
        features = np.concatenate([l2_normalize(part) for part in parts], axis=1)
    if len(features) > contract.max_clips:
        # Cumulative sums at fractional borders give the exact mean over each share.
        borders = np.linspace(0, len(features), contract.max_clips + 1)
        sums = np.concatenate([np.zeros_like(features[:1]), np.cumsum(features, axis=0, dtype=np.float64)])
        below = np.minimum(borders.astype(int), len(features) - 1)
        at_borders = sums[below] + (borders - below)[:, None] * features[below]
        features = np.diff(at_borders, axis=0) / np.diff(borders)[:, None]
    return features.astype(np.float32, copy=False)


def prepare_text_features(features: np.ndarray, contract: FeatureContract) -> np.ndarray:
    """Raw rows of a sentence as the model takes them: cut to `max_tokens`, normalised. `(tokens, dim)` float32.

    Raises:
        ValueError: no tokens, not as wide as the encoder of the contract, or values that are not finite.
    """
    made_by = f"extract them with {(contract.text_encoder or {}).get('name')}"
    features = check_rows(np.asarray(features, dtype=np.float32), contract.text_dim, "text features", made_by)
    features = _finite(features[: contract.max_tokens], "text")
    return l2_normalize(features) if contract.normalize_text else features


def pad_rows(rows: Sequence[np.ndarray], length: int | None = None) -> "tuple[Tensor, Tensor]":
    """Arrays `(n_i, dim)` as one tensor `(rows, length, dim)` padded with 0, and its mask `(rows, length)`."""
    import torch

    length = max(len(row) for row in rows) if length is None else length
    padded = torch.zeros(len(rows), length, rows[0].shape[1])
    mask = torch.zeros(len(rows), length)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.from_numpy(np.ascontiguousarray(row))
        mask[i, : len(row)] = 1
    return padded, mask
