"""With the library, and with a cache of its own: loads what was pushed, and fails to load what is broken."""

from pathlib import Path

import torch
from huggingface_hub import constants
from reporting import ARGUMENTS, outcome, set_faults, write_report
from shared_case import SENTENCES, VIDEO_FPS, frames, numbers
from transformers import AutoModel, AutoProcessor, pipeline

from modeling_bmdetr import BMDetrForMomentRetrieval


def load(name: str, **options) -> BMDetrForMomentRetrieval:
    return BMDetrForMomentRetrieval.from_pretrained(name, **options)


def cached_files(name: str) -> list[str]:
    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    return sorted(path.name for path in folder.glob("snapshots/*/*"))


outcome("trained", lambda: numbers(load("tester/trained")))
outcome("auto", lambda: AutoModel.from_pretrained("tester/trained").__class__.__module__)
outcome("processor", lambda: AutoProcessor.from_pretrained("tester/trained").to_dict())
outcome("half", lambda: str(load("tester/trained", dtype=torch.bfloat16, device_map="cpu").dtype))
outcome("answers", lambda: pipeline("temporal-grounding", "tester/video")(frames(), SENTENCES, fps=VIDEO_FPS))
outcome("branch", lambda: numbers(load("tester/video", revision="other")))
outcome("commit", lambda: numbers(load("tester/video", revision=ARGUMENTS["commit"])))
outcome("saved", lambda: numbers(load("tester/saved")))
outcome("from the cache", lambda: numbers(load("tester/saved", local_files_only=True)))

outcome("missing repository", lambda: load("tester/never"))
outcome("missing branch", lambda: load("tester/video", revision="never"))
outcome("interrupted upload", lambda: load("tester/interrupted"))
outcome("private without token", lambda: load("tester/video", token=False, cache_dir="empty"))
outcome("wrong token", lambda: load("tester/video", token="hf_wrong", cache_dir="empty"))

set_faults(cut_download={"suffix": "model.safetensors", "times": 1})
outcome("cut once", lambda: numbers(load("tester/retried")))
set_faults(cut_download={"suffix": "model.safetensors", "times": 99})
outcome("cut", lambda: load("tester/example"))
outcome("files after the cut", lambda: cached_files("tester/example"))
set_faults()
outcome("after the cut", lambda: numbers(load("tester/example")))

for broken in ARGUMENTS["broken"]:
    outcome(broken, lambda name=broken: load(name))
write_report()
