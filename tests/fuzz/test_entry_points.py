"""Whatever an entry point is given, it answers rightly or refuses with a documented error, within seconds.

A few inputs here and more among the slow tests, the same in every run; by hand, each time others,
`BMDETR_INPUTS=10000 pytest -m long tests/fuzz`, which prints how many there were. docs/reliability.md says
what they found.
"""

import os
import time
import warnings
from collections import Counter

import pytest
from entry_points import entry_points
from films_and_pages import films_and_pages
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, given, settings
from models_and_training import models_and_training
from rows_and_figures import rows_and_figures
from strangers_files import strangers_files

NAMES = [
    *("validate_rows", "read_rows", "import_annotations", "dataset_and_collator", "mine_negative_queries"),
    *("feature_files", "packed_store", "processor_of_features", "pipeline_options", "select", "configuration"),
    *("contract", "calibration", "evaluate_submission", "released_checkpoint", "pictures", "answers_as_text"),
    *("index_and_search", "captions", "model_files", "info", "predict", "film_files", "frames", "cut_clip"),
    *("answers_html", "model_forward", "fit_calibration", "recipes", "cleaning", "written_rows", "absent_rows"),
    *("validate_file", "extract", "pack", "statistics", "model_card", "encoders", "command_lines"),
]
# What takes seconds to start, or for each input.
SLOW = ["page", "trainer", "own_data", "exported_models"]
PACKAGES = {"page": ["gradio"], "exported_models": ["onnx", "onnxruntime", "onnxscript"]}
DOCUMENTED = (ValueError, TypeError, OSError, StrictDataclassError)


@pytest.fixture(scope="module")
def known():
    return {
        **entry_points(),
        **strangers_files(),
        **films_and_pages(),
        **models_and_training(),
        **rows_and_figures(),
    }


def check(entry, number, randomly=False):
    """Gives an entry point up to so many inputs; returns how many of them it answered and refused."""
    ends = Counter()

    @settings(
        max_examples=max(5, number // entry.cost),
        deadline=None,
        database=None,
        derandomize=not randomly,
        suppress_health_check=list(HealthCheck),
    )
    @given(entry.inputs)
    def each(value):
        started = time.process_time()
        with warnings.catch_warnings(action="ignore"):
            try:
                entry.call(value)
                ends["answered"] += 1
            except DOCUMENTED:
                ends["refused"] += 1
        assert time.process_time() - started < entry.limit_s, "takes too long"

    each()
    return ends


def test_every_entry_point_is_tried(known):
    assert set(known) == {*NAMES, *SLOW}


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_or_a_documented_error(name, known):
    assert check(known[name], 40)["answered"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, *SLOW])
def test_an_answer_or_a_documented_error_to_many_inputs(name, known):
    for package in PACKAGES.get(name, ()):
        pytest.importorskip(package)
    assert check(known[name], 600)["answered"]


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", [*NAMES, *SLOW])
def test_an_answer_or_a_documented_error_to_very_many_inputs(name, known):
    for package in PACKAGES.get(name, ()):
        pytest.importorskip(package)
    number = int(os.environ.get("BMDETR_INPUTS", "10000"))
    ends = check(known[name], number, randomly=True)
    print(f"\n{name}: {sum(ends.values())} inputs, {ends['answered']} answered, {ends['refused']} refused")
