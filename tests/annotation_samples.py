"""Two small videos, and the folder of the annotations of them that the importers are to read."""

from pathlib import Path

import numpy as np
from factories import write_pictures

SAMPLES = Path(__file__).parent / "fixtures" / "annotations"
DURATIONS_S = {"dance": 42.0, "kitchen": 61.0}


def write_video(path: Path, duration_s: float, fps: int = 2) -> None:
    pictures = (np.full((32, 32, 3), index % 255, np.uint8) for index in range(round(duration_s * fps)))
    write_pictures(path, pictures, fps)
