"""What the tests of the model share: forms to try, recorded calls, comparison of two views."""

from typing import Any

from torch import nn

VIEW_FIELDS = (
    *("logits", "pred_spans", "frame_probabilities", "frame_attention", "positive_probabilities"),
    *("negative_probabilities", "saliency_scores", "video_embeds", "text_embeds", "last_hidden_state"),
)
FORMS = [
    {},
    {"decoder_memory": "attended", "frame_attention_scale": "literal", "alignment_pooling": "gated"},
    {"background_aware": False},
    {"learnable_spans": False, "endpoint_features": False},
]


class Calls:
    """Records what modules are given and return."""

    def __init__(self, *modules: nn.Module):
        self.inputs: list[tuple[Any, ...]] = []
        self.outputs: list[Any] = []
        self.handles = [m.register_forward_hook(self.record, with_kwargs=True) for m in modules]

    def record(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        self.inputs.append((*args, *kwargs.values()))
        self.outputs.append(output)

    def __enter__(self) -> "Calls":
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def assert_same_view(
    actual: Any, expected: Any, rows: slice = slice(None), video_len: int | None = None, without: str = ""
) -> None:
    """Every field of one view but `without`, over `rows` and the clips that both hold."""
    for name in VIEW_FIELDS:
        got, want = actual.get(name), expected.get(name)
        if name == without or (got is None and want is None):
            continue
        assert got is not None, name
        assert want is not None, name
        want = want[rows]
        if name.endswith(("probabilities", "attention", "scores")):
            got, want = got[..., :video_len], want[..., :video_len]
        difference = (got - want).abs().max().item()
        assert got.shape == want.shape, name
        assert difference < 5e-6, f"{name} differs by {difference}"
