"""The page as a Space runs it: the file alone in a folder, as `app.py`, with videos to choose from."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from app_world import make_checkpoint, make_pipeline, make_video

SCRIPT = Path(__file__).parents[2] / "examples" / "demo_app.py"


@pytest.mark.slow
def test_the_app_serves_the_page_and_answers(tmp_path):
    pytest.importorskip("gradio")
    from gradio_client import Client, handle_file

    model = make_checkpoint(tmp_path / "model", long_video="window")
    film = make_video(tmp_path / "space" / "videos" / "film.mp4", 5.0)
    shutil.copy(SCRIPT, tmp_path / "space" / "app.py")
    environment = {**os.environ, "BMDETR_MODEL": str(model), "GRADIO_TEMP_DIR": str(tmp_path / "gradio")}
    environment["PYTHONPATH"] = os.pathsep.join([str(SCRIPT.parents[1]), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "app.py"]
    with subprocess.Popen(command, cwd=tmp_path / "space", env=environment, stdout=subprocess.PIPE, text=True) as app:
        try:
            address = next(line.strip() for line in app.stdout if line.startswith("http"))
            assert address.startswith("http://127.0.0.1:"), "outside a Space this machine alone is served"
            client = Client(address, verbose=False)
            found = client.predict(handle_file(str(film)), ["a red box"], 2, api_name="/find")["answers"][0]
        finally:
            app.kill()
    wanted = make_pipeline(model)(film, "a red box", top_k=1)["moments"][0]
    assert found["moments"][0] == {name: pytest.approx(value, abs=1e-4) for name, value in wanted.items()}
