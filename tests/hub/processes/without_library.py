"""Where only torch, transformers and NumPy are installed: loads the code from a folder and from the Hub."""

import importlib.util
import re
from pathlib import Path

import numpy as np
from huggingface_hub import hf_hub_download
from reporting import ARGUMENTS, outcome, write_report
from shared_case import LABELS, SENTENCES, VIDEO_FPS, frames, inputs, numbers
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

FOLDER, TASK, TRUST = Path(ARGUMENTS["folder"]), "temporal-grounding", {"trust_remote_code": True}
OTHERS = ("modeling_bmdetr", "av", "scipy", "PIL", "accelerate", "datasets", "evaluate", "sentence_transformers")


def saved_again(name: str, thing) -> list[str]:
    thing.save_pretrained(FOLDER / name)
    return sorted(path.name for path in (FOLDER / name).iterdir())


def run_card(repository: str) -> list[dict[str, float]]:
    """The first example of the model card, on features as it describes them."""
    card = Path(hf_hub_download(repository, "README.md")).read_text()
    code = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0]
    video_dim, text_dim = (int(re.search(rf"\({rows}, (\d+)\)", code)[1]) for rows in ("clips", "tokens"))
    np.save("video.npy", np.ones((5, video_dim), np.float32))
    np.save("sentence.npy", np.ones((3, text_dim), np.float32))
    names: dict = {}
    exec(code, names)
    return names["moments"]


def refuse(place: str, name: str) -> None:
    """Nobody said that the code is trusted, and there is nobody to ask."""
    outcome(f"{place}: config not trusted", lambda: AutoConfig.from_pretrained(name))
    outcome(f"{place}: model not trusted", lambda: AutoModel.from_pretrained(name))
    outcome(f"{place}: processor not trusted", lambda: AutoProcessor.from_pretrained(name))
    outcome(f"{place}: pipeline not trusted", lambda: pipeline(TASK, model=name))


def use(place: str, name: str):
    """Loads a checkpoint in every way, uses it, and saves it again."""
    model = AutoModel.from_pretrained(name, **TRUST)
    pipe = pipeline(TASK, model=name, device="cpu", **TRUST)
    parts = (model, pipe, pipe.model, pipe.processor)
    outcome(f"{place}: modules", lambda: [type(part).__module__ for part in parts])
    outcome(f"{place}: config", lambda: AutoConfig.from_pretrained(name, **TRUST).to_dict()["max_clips"])
    outcome(f"{place}: processor", lambda: AutoProcessor.from_pretrained(name, **TRUST).to_dict())
    outcome(f"{place}: numbers", lambda: numbers(model))
    outcome(f"{place}: answers", lambda: pipe(frames(), SENTENCES, fps=VIDEO_FPS))
    outcome(f"{place}: model saved again", lambda: saved_again(f"{place} model", model))
    outcome(f"{place}: pipeline saved again", lambda: saved_again(f"{place} pipeline", pipe))
    outcome(f"{place}: config shown", lambda: str(pipe.model.config))
    return model, pipe


PLACES = {"folder": ARGUMENTS["local"], "hub": "tester/video"}
outcome("importable", lambda: [name for name in OTHERS if importlib.util.find_spec(name)])
for place, name in PLACES.items():
    refuse(place, name)
for place, name in PLACES.items():
    model, pipe = use(place, name)
outcome("task inferred", lambda: type(pipeline(model=ARGUMENTS["local"], **TRUST)).__name__)
outcome("branch", lambda: numbers(AutoModel.from_pretrained("tester/video", revision="other", **TRUST)))
cached = {"local_files_only": True, **TRUST}
outcome("from the cache", lambda: numbers(AutoModel.from_pretrained("tester/video", **cached)))
outcome("video file", lambda: pipe(ARGUMENTS["video"], SENTENCES))
outcome("several moments", lambda: model(**inputs(model), labels=LABELS).loss.item())
outcome("one moment", lambda: model(**inputs(model), labels=LABELS[:, :1]).loss.item())
outcome("card", lambda: run_card("tester/trained"))
outcome("push", lambda: model.push_to_hub("tester/again"))
outcome("pushed again", lambda: numbers(AutoModel.from_pretrained("tester/again", **TRUST)))
write_report()
