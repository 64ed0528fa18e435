"""A training update in other forms: bfloat16, `torch.compile`, on a GPU; each in a process of its own."""

import os
from typing import Any

import torch
from bench_clock import peak_memory_mib, timed

from modeling_bmdetr import BMDetrConfig, BMDetrForMomentRetrieval
from modeling_bmdetr.processes import keep_freed_memory

FORMS = ("float32", "bfloat16", "float32, compiled", "bfloat16, compiled")
FEWER_CLIPS = 5  # of the first batch of another length, for which a model may be compiled again
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random_pairs(pairs: int, clips: int, tokens: int, training: bool = True) -> dict[str, torch.Tensor]:
    """Inputs of the released width; in training with a negative query and a shifted view of every pair."""
    inputs = {
        "video_features": torch.randn(pairs, clips, 2816),
        "video_mask": torch.ones(pairs, clips),
        "text_features": torch.randn(pairs, tokens, 512),
        "text_mask": torch.ones(pairs, tokens),
    }
    if training:
        moments = torch.tensor([0.5, 0.25]).expand(pairs, 1, 2)
        inputs |= {
            "negative_text_features": torch.randn(pairs, 1, tokens, 512),
            "negative_text_mask": torch.ones(pairs, 1, tokens),
            "shifted_frame_order": torch.arange(clips).roll(clips // 4).expand(pairs, -1),
            "labels": moments,
            "shifted_labels": moments,
        }
    return inputs


def update_of(model: torch.nn.Module, form: str, device: torch.device) -> Any:
    """A function that makes one whole update of a model on a batch, and waits for the device."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    called: Any = model
    if "compiled" in form:
        # With CUDA graphs on a GPU. `dynamic=True` ends in an error of the compiler's (torch 2.13, CPU).
        called = torch.compile(model, mode="reduce-overhead" if device.type == "cuda" else None)

    def update(inputs: dict[str, torch.Tensor]) -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=form.startswith("bfloat16")):
            loss = called(**inputs).loss
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return update


def form_of_update(given: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the first update, of the next ones, and of the first of other lengths; the peak of memory."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    keep_freed_memory()
    torch.manual_seed(0)
    device, clips, tokens = torch.device(given["device"]), given["clips"], given["tokens"]
    model = BMDetrForMomentRetrieval(BMDetrConfig.released(video_dim=2816, text_dim=512, max_clips=clips))
    update = update_of(model.train().to(device), given["form"], device)  # type: ignore[arg-type]

    def batch(length: int) -> dict[str, torch.Tensor]:
        inputs = random_pairs(given["batch_size"], length, tokens)
        return {name: value.to(device) for name, value in inputs.items()}

    whole = batch(clips)
    first = timed(lambda: update(whole))
    runs = [timed(lambda: update(whole)) for _ in range(given["repeats"])]
    other = timed(lambda: update(batch(clips - FEWER_CLIPS)))
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else peak_memory_mib()
    return {
        "first_s": first[0],
        "other_s": other[0],
        "ms": [1000 * clock for clock, _, _ in runs],
        "processor_ms": [1000 * processor for _, processor, _ in runs],
        "peak_mib": peak,
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
    }
