"""Scores as probabilities: the few numbers that turn a checkpoint's logits into them, kept in its configuration.

`fit_calibration` (modeling_bmdetr/calibrating.py) fits them on validation rows; the model applies them when it answers.
They hold for the weights they were fitted for, which a fingerprint recognises.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

MIN_ROWS = 50
CERTAIN = 1e-6  # scores closer to 0 or 1 count as this close, so that their logit is finite
FINGERPRINT_SIZE = 4
_LARGEST = torch.finfo(torch.float32).max
FINGERPRINT_TOLERANCE = 0.02  # what half precision changes is far less, other weights far more


@dataclass(frozen=True)
class Calibration:
    """Logistic regressions on logits, and the weights and rows they were fitted for.

    Attributes:
        score: (slope of the score's logit, slope of the presence logit, offset) of the logit of "this span overlaps a
            described moment with an IoU of at least 0.5"; None if not fitted. Slopes of the score are above 0, so that
            no ranking within a query changes.
        presence: (slope, offset) of the logit of "the video shows what the query says"; None if not fitted.
        fingerprint: Of the weights, see `weights_fingerprint`.
        rows, absent_rows: How many rows it was fitted on, and how many of them have no moment.
        notes: By `score` and `presence`, why a part was not fitted, or what else is to be known of its rows.
    """

    score: tuple[float, float, float] | None
    presence: tuple[float, float] | None
    fingerprint: tuple[float, ...]
    rows: int
    absent_rows: int
    notes: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as `BMDetrConfig.calibration` holds them."""
        plain = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Calibration":
        """The reverse of `to_dict`.

        Raises:
            ValueError: a field is missing or unknown, or numbers are not as many as expected, finite, and above 0 where
                they must be.
        """
        names = cls.__dataclass_fields__
        if not isinstance(values, Mapping) or set(values) != set(names):
            received = sorted(map(str, values)) if isinstance(values, Mapping) else repr(values)
            raise ValueError(f"a calibration has the fields {sorted(names)}, received {received}")
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, (list, tuple)) else value for name, value in values.items()
        }
        for name, size in (("score", 3), ("presence", 2), ("fingerprint", FINGERPRINT_SIZE)):
            numbers = fields[name]
            if numbers is None and name != "fingerprint":
                continue
            if not isinstance(numbers, tuple) or len(numbers) != size or not all(map(_is_finite, numbers)):
                raise ValueError(f"`{name}` of a calibration must be {size} finite numbers, received {values[name]}")
            if name != "fingerprint" and numbers[0] <= 0:
                raise ValueError(
                    f"the first number of `{name}` of a calibration must be above 0, received {numbers[0]}"
                )
        for name in ("rows", "absent_rows"):
            count = fields[name]
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise ValueError(f"`{name}` of a calibration must be a number of rows, received {count!r}")
        notes = fields["notes"]
        if not isinstance(notes, Mapping) or not all(isinstance(part, str) for item in notes.items() for part in item):
            raise ValueError(f"`notes` of a calibration must be texts by name, received {notes!r}")
        return cls(**fields)

    def require_weights(self, model: nn.Module) -> None:
        """Raise if the weights are not those that this was fitted for.

        Raises:
            ValueError: they are others.
        """
        found = weights_fingerprint(model)
        if any(abs(a - b) > FINGERPRINT_TOLERANCE for a, b in zip(found, self.fingerprint, strict=True)):
            raise ValueError(
                "the calibration in the configuration was fitted for other weights than these, so its probabilities "
                "would be made up: fit it again (`bmdetr calibrate`), or set `config.calibration` to None"
            )

    def apply(self, scores: Tensor, presence_logits: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Calibrated scores and presence; what was not fitted stays as it is (presence: None).

        Args:
            scores: `(batch, queries)` in [0, 1].
            presence_logits: `(batch,)`, or None.
        """
        presence = None
        if self.score is not None:
            slope, presence_slope, offset = self.score
            logits = slope * torch.logit(scores.float(), eps=CERTAIN) + offset
            if presence_logits is not None:
                logits = logits + presence_slope * presence_logits.float()[:, None]
            scores = logits.sigmoid()
        if self.presence is not None and presence_logits is not None:
            presence = (self.presence[0] * presence_logits.float() + self.presence[1]).sigmoid()
        return scores, presence


def _is_finite(value: Any) -> bool:
    """Whether a value is a number, and one that float32 holds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def weights_fingerprint(model: nn.Module) -> tuple[float, ...]:
    """Four numbers that other weights do not share, the same at any precision up to a few thousandths: sums of the
    weights under patterns of signs, over the root of their sum of squares."""
    sums, squares = torch.zeros(FINGERPRINT_SIZE, dtype=torch.float64), 0.0
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().flatten().to("cpu", torch.float64)
        place = torch.arange(len(values)) + sum(map(ord, name))
        for k in range(FINGERPRINT_SIZE):
            signs = 1 - 2 * ((place * (2 * k + 3) // 7) % 2)
            sums[k] += (values * signs).sum()
        squares += float(values.square().sum())
    return tuple((sums / math.sqrt(max(squares, 1e-12))).tolist())


def as_calibration(values: "Calibration | Mapping[str, Any] | None") -> Calibration | None:
    """A calibration from what a configuration holds."""
    return values if values is None or isinstance(values, Calibration) else Calibration.from_dict(values)


def calibration_lines(calibration: Calibration | None) -> Sequence[str]:
    """What users are told of a checkpoint's calibration."""
    if calibration is None:
        return ["not calibrated: a score is what the model ranks by, and no probability (`bmdetr calibrate`)"]
    rows = f"{calibration.rows} rows, {calibration.absent_rows} of them absent"
    lines = []
    for name in ("score", "presence"):
        note = calibration.notes.get(name, "")
        state = f"calibrated on {rows}" if getattr(calibration, name) is not None else "not calibrated"
        lines.append(f"{name}: {state}{f' ({note})' if note else ''}")
    return lines
