"""The page as a Space, or on your own machine.

    python examples/demo_app.py                                     # the model of `make quickstart`
    BMDETR_MODEL=someone/bmdetr-qvhighlights python examples/demo_app.py

For a Space with the Gradio SDK: this file as `app.py`, a `requirements.txt` with the package's repository and its
extras `video` and `demo` (`modeling-bmdetr[video,demo] @ git+https://...`),
the model's name in the variable `BMDETR_MODEL`, and mp4 files to choose from in a folder `videos`, if there are any.
"""

import os
from pathlib import Path

from modeling_bmdetr import BMDetrForMomentRetrieval, BMDetrProcessor, MomentRetrievalPipeline
from modeling_bmdetr.demo import build_demo, launch_demo

MODEL = os.environ.get("BMDETR_MODEL", "outputs/quickstart/model")
VIDEOS = Path(os.environ.get("BMDETR_VIDEOS", "videos"))
# Inside a Space the page must be seen from outside.
HOST = "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1"


def main() -> None:
    model = BMDetrForMomentRetrieval.from_pretrained(MODEL)
    pipe = MomentRetrievalPipeline(model, processor=BMDetrProcessor.from_pretrained(MODEL))
    demo = build_demo(pipe, model_name=Path(MODEL).name, examples=sorted(VIDEOS.glob("*.mp4")))
    print(launch_demo(demo, host=HOST), flush=True)
    demo.block_thread()


if __name__ == "__main__":
    main()
