"""With the library: trains, saves, pushes, and fails to push."""

import contextlib
import io
import runpy
import sys
from pathlib import Path

from factories import CONTRACT, make_model, make_trainer
from huggingface_hub import HfApi
from reporting import ARGUMENTS, REPORT, outcome, set_faults, write_report
from safetensors.torch import load_file, save_file
from shared_case import SENTENCES, VIDEO_FPS, frames, numbers
from transformers import pipeline

from modeling_bmdetr import BMDetrProcessor, FeatureContract, MomentRetrievalPipeline
from modeling_bmdetr.encoders_bmdetr import HashedWordTextEncoder, PixelGridVideoEncoder

FOLDER = Path(ARGUMENTS["folder"])
EXAMPLE = Path(ARGUMENTS["repository"]) / "examples" / "push_to_hub.py"
VIDEO_CONTRACT = FeatureContract(
    video_encoders=(PixelGridVideoEncoder(grid=8, frames_per_clip=3, raster=1).spec(),),
    text_encoder=HashedWordTextEncoder(dim=8).spec(),
    max_clips=6,
    long_video="window",
)


def train_and_push() -> str:
    trainer = make_trainer(
        FOLDER / "trained",
        hub_model_id="tester/trained",
        push_to_hub=True,
        hub_strategy="every_save",
        hub_token=ARGUMENTS["token"],
    )
    trainer.processor.nms_threshold = 0.5
    trainer.train()
    commit = trainer.push_to_hub(dataset={"name": "Tiny", "split": "eval"}, license="mit", language="en", tags="tiny")
    outcome("trained numbers", lambda: numbers(trainer.model))
    REPORT["history"] = trainer.state.log_history
    REPORT["best step"] = trainer.state.best_global_step
    return commit.commit_url


def run_example(name: str, *arguments: str) -> None:
    """The script as a user runs it: its exit code and what it prints."""
    printed, complaints = io.StringIO(), io.StringIO()
    sys.argv = [str(EXAMPLE), *arguments]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaints):
        try:
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        except SystemExit as end:
            REPORT[name] = {"code": end.code}
    REPORT[name] |= {"out": printed.getvalue(), "err": complaints.getvalue()}


def push_models() -> None:
    model, other = (make_model(seed, VIDEO_CONTRACT).eval() for seed in (0, 1))
    pipe = MomentRetrievalPipeline(model, processor=BMDetrProcessor(model.config), device="cpu")
    outcome("answers", lambda: pipe(frames(), SENTENCES, fps=VIDEO_FPS))
    outcome("numbers", lambda: numbers(model))
    outcome("other numbers", lambda: numbers(other))
    outcome("push", lambda: model.push_to_hub("tester/video", private=True, commit_message="A model of videos"))
    outcome("branch", lambda: other.push_to_hub("tester/video", revision="other"))
    outcome("save and push", lambda: model.save_pretrained(FOLDER / "saved", push_to_hub=True, repo_id="tester/saved"))
    outcome("save pipeline", lambda: pipe.save_pretrained(FOLDER / "pipeline"))
    # Without an owner the name is the account's. The card that is there was edited by hand: it stays.
    card = b"---\nlicense: mit\n---\nEdited by hand.\n"
    HfApi().upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="tester/saved")
    outcome("push again", lambda: model.push_to_hub("saved"))

    outcome("wrong token", lambda: model.push_to_hub("tester/never", token="hf_wrong"))
    outcome("other owner", lambda: model.push_to_hub("someone/never"))
    set_faults(drop={"path": "/commit/", "times": 99})
    outcome("commit dropped", lambda: model.push_to_hub("tester/interrupted"))
    outcome("second commit dropped", lambda: other.push_to_hub("tester/saved"))
    set_faults(drop={"path": "/_lfs/", "times": 99})
    outcome("weights dropped", lambda: make_model(2, VIDEO_CONTRACT).push_to_hub("tester/interrupted"))
    set_faults(drop={"path": "/_lfs/", "times": 1})
    outcome("weights dropped once", lambda: make_model(3, VIDEO_CONTRACT).push_to_hub("tester/retried"))
    set_faults()
    outcome("offline pipeline", lambda: type(pipeline("temporal-grounding", str(FOLDER / "saved"))).__module__)


def run_examples() -> None:
    saved, results = FOLDER / "saved", FOLDER / "trained" / "results.json"
    run_example("example", str(saved), "tester/example", "--private", "--results", str(results), "--license", "mit")
    run_example("example keeps card", str(saved), "tester/saved", "--keep-card", "--message", "Same card")
    run_example("example, wrong token", str(saved), "tester/never", "--token", "hf_wrong")
    run_example("example, no checkpoint", str(FOLDER), "tester/never")
    weights = load_file(saved / "model.safetensors")
    broken = FOLDER / "broken"
    make_model(0, VIDEO_CONTRACT).save_pretrained(broken)
    del weights["class_head.bias"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    run_example("example, weight missing", str(broken), "tester/never")
    content = (saved / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[: len(content) // 2])
    run_example("example, weights cut off", str(broken), "tester/never")
    (broken / "model.safetensors").write_bytes(content)
    BMDetrProcessor(CONTRACT).save_pretrained(broken)
    run_example("example, other processor", str(broken), "tester/never")


outcome("trainer", train_and_push)
push_models()
run_examples()
write_report()
