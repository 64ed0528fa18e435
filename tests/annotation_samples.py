"""Two small videos, and the folder of the annotations of them that the importers are to read."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

SAMPLES = Path(__file__).parent / "fixtures" / "annotations"
DURATIONS_S = {"dance": 42.0, "kitchen": 61.0}


def write_video(path: Path, duration_s: float, fps: int = 2) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.time_base = 32, 32, Fraction(1, fps)
        for index in range(round(duration_s * fps)):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), index % 255, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
