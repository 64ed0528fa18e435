"""docs/own_data.md: its commands, as printed, on two real videos and on twelve rendered ones."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from modeling_bmdetr.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "own_data.md").read_text(encoding="utf-8")
# The default encoder is a download, and what is to be seen here needs no long training.
OFFLINE = ["--video-encoder", "pixel-grid", "--text-encoder", "hashed-words"]
SHORT = ["--override", "training.num_train_epochs=2"]
REAL = """video,start,end,sentence
kitchen.mp4,0:00,0:08,A person stands in front of the bathroom mirror.
kitchen.mp4,0:08,0:16.5,The person takes something from the cabinet.
kitchen.mp4,16,24,The person uses a hair dryer.
dance.mp4,0,4,A man stands in front of the barbell.
dance.mp4,9,14.2,The man lifts the barbell over his head.
dance.mp4,0:14,0:18,He drops the barbell to the floor.
"""
pytestmark = pytest.mark.slow


def printed_commands() -> list[list[str]]:
    """The arguments of the page's first two commands."""
    block = re.search(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    commands = [shlex.split(line) for line in block.group(1).splitlines()]
    assert [command[:2] for command in commands] == [["bmdetr", "train"], ["bmdetr", "predict"]]
    return [command[1:] for command in commands]


def run_the_page(video: str | None = None) -> dict:
    """Runs both commands in the working directory; returns the report of the first."""
    train, predict = printed_commands()
    assert main([*train, *OFFLINE, *SHORT]) == 0
    if video is not None:
        predict[1] = video
    assert main(predict) == 0
    assert Path("answer.png").stat().st_size > 10_000
    return json.loads(Path("own/model/report.json").read_text())


@pytest.mark.skipif("BMDETR_SHARED" not in os.environ, reason="BMDETR_SHARED is not set")
def test_two_real_videos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    videos = Path(os.environ["BMDETR_SHARED"]) / "videos"
    Path("own/videos").mkdir(parents=True)
    shutil.copy(videos / "charades_example.mp4", "own/videos/kitchen.mp4")
    shutil.copy(videos / "v_GGSY1Qvo990.mp4", "own/videos/dance.mp4")
    Path("own/annotations.csv").write_text(REAL)
    report = run_the_page()
    assert report["verdict"]["beats_baselines"] is not True  # nothing can be said by three queries
    assert report["data"]["sets"]["train"] == {"queries": 3, "videos": 1}
    for name in ("model", "report.md", "report.json", "recipe.yaml", "data", "features"):
        assert (Path("own/model") / name).exists()


def test_twelve_rendered_videos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (rendering,) = (code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "render_moving" in code)
    exec(compile(rendering, "docs/own_data.md", "exec"), {})
    video = Path("own/annotations.csv").read_text().splitlines()[1].split(",")[0]
    report = run_the_page(f"own/videos/{video}")
    assert report["data"]["sets"]["train"]["videos"] + report["data"]["sets"]["eval"]["videos"] == 12
    assert "baselines" in Path("own/model/report.md").read_text()
