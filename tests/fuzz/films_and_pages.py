"""Entry points that open films and show answers: decoding, cutting, encoding, and the page of strangers over HTTP."""

import atexit
import io
import json
import math
import os
import urllib.error
import urllib.request
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
from app_world import make_checkpoint, make_pipeline, make_video
from entry_points import ANSWER, EntryPoint, require_answer, scratch
from factories import write_pictures
from hostile_values import anything, arrays, damaged, mutated, nested, numbers, words
from hypothesis import strategies as st

from modeling_bmdetr.contract_bmdetr import clip_count
from modeling_bmdetr.cutting import cut_clip
from modeling_bmdetr.pipeline_bmdetr import MomentRetrievalPipeline
from modeling_bmdetr.timeline import answers_html, error_html
from modeling_bmdetr.video_bmdetr import probe_video

FILM_S = 3.0
CODECS = {".mp4": "libx264", ".mov": "mpeg4", ".mkv": "libx264", ".ts": "libx264", ".avi": "mpeg4", ".flv": "libx264"}


@cache
def pipe() -> MomentRetrievalPipeline:
    """Its encoders need no weights."""
    return make_pipeline(make_checkpoint(scratch() / "films_model", long_video="window"))


@cache
def _films() -> dict[str, bytes]:
    """A short film in each container, by its suffix."""
    films = {}
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    for suffix, codec in CODECS.items():
        films[suffix] = write_pictures(scratch() / f"film{suffix}", pictures, 8, codec).read_bytes()
    return films


def _film_files() -> st.SearchStrategy:
    return st.one_of([st.tuples(st.just(suffix), damaged(content)) for suffix, content in _films().items()])


def _written(case: tuple[str, bytes]) -> Path:
    path = scratch() / f"asked{case[0]}"
    path.write_bytes(case[1])
    return path


def _encode_film(case: tuple[str, bytes]) -> None:
    path = _written(case)
    encoded = pipe().encode_video(path)
    assert np.isfinite(encoded.features).all()
    assert encoded.duration_s == probe_video(path).duration_s
    assert len(encoded.features) == clip_count(encoded.duration_s, pipe().processor.contract.clip_length)
    require_answer(pipe()(encoded, "a square")["moments"], encoded.duration_s)


def _encode_frames(case: tuple[Any, dict[str, Any]]) -> None:
    video, options = case
    answers = pipe()(video, "a square", **options)
    for answer in answers if isinstance(answers, list) else [answers]:
        require_answer(answer["moments"], answer["duration"])


def _frames() -> st.SearchStrategy:
    """Decoded frames that are right, and arrays of any kind in their place."""
    fitting = st.tuples(st.integers(1, 9), st.integers(1, 20), st.integers(1, 20), st.integers(0, 9)).map(
        lambda case: np.random.default_rng(case[3]).integers(0, 256, (*case[:3], 3), dtype=np.uint8)
    )
    kinds = [list, torch.from_numpy, lambda video: video / 255, lambda video: video.astype(np.int64)]
    several = [lambda video: [video, video], lambda video: {"video": video}, lambda video: io.BytesIO(bytes(video))]
    converted = st.tuples(fitting, st.sampled_from([*kinds, *several])).map(lambda case: case[1](case[0]))
    options = st.fixed_dictionaries({"fps": st.just(4) | st.just(2.5) | numbers | anything})
    return st.tuples(fitting | converted | arrays | anything, options | st.just({}))


def _cut(case: tuple[tuple[str, bytes], tuple[Any, Any], str]) -> None:
    film, (start_s, end_s), suffix = case
    path, out = _written(film), scratch() / f"cut{suffix}"
    out.unlink(missing_ok=True)
    try:
        cut_clip(path, start_s, end_s, out)
    except (ValueError, TypeError, OSError):
        assert not out.exists(), "a part of a clip stays"
        raise
    finally:
        assert not [name for name in os.listdir(scratch()) if name.startswith(".")], "litter"
    wanted_s = min(end_s, probe_video(path).duration_s) - start_s
    assert abs(probe_video(out).duration_s - wanted_s) < 0.3


def _cuts() -> st.SearchStrategy:
    whole = st.one_of([st.just(film) for film in _films().items()])
    within = st.tuples(st.floats(0, FILM_S), st.floats(0.1, FILM_S)).map(lambda case: (case[0], case[0] + case[1]))
    times = st.floats(0, FILM_S) | numbers | anything
    suffixes = st.sampled_from([".mp4", ".mp4", ".mkv", ".mov", ".xyz", ""])
    return st.tuples(whole | _film_files(), within | st.tuples(times, times), suffixes)


# -------------------------------------------------------------------------------------------------------------- pages


class _Page(HTMLParser):
    """Elements that the answers' page may have; what a visitor or a file name adds must be text."""

    allowed = {"div", "section", "span", "button", "ul", "li", "small", "svg", "polyline", "a"}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.allowed, f"<{tag}>"
        for name, value in attrs:
            assert not name.startswith("on"), f"{name} of <{tag}>"
            assert name != "href" or str(value).startswith("data:"), value


def _show(case: tuple[Any, str]) -> None:
    answers, name = case
    _Page().feed(answers_html(answers, name))
    _Page().feed(error_html(name))


def _shown() -> st.SearchStrategy:
    """Answers as a pipeline gives them, about whatever was asked and whatever the film is called."""
    texts = words | st.just("<img src=x onerror=alert(1)>") | st.just("'\"></div><script>")
    times = st.fixed_dictionaries({"start": st.floats(0, 1e6), "end": st.floats(0, 1e6), "score": st.floats(0, 1)})
    asked = st.builds(
        lambda query, moments, duration_s: [{**ANSWER, "query": query, "moments": moments, "duration": duration_s}],
        *(texts, st.lists(times, max_size=3), st.floats(1e-3, 1e6)),
    )
    return st.tuples(asked, texts)


@cache
def _page() -> str:
    """The address of a page that is served on loopback."""
    from modeling_bmdetr.demo import DemoLimits, build_demo, launch_demo

    os.environ["GRADIO_TEMP_DIR"] = str(scratch() / "uploads")
    limits = DemoLimits(minutes=1.0, sentences=3)
    demo = build_demo(pipe(), limits=limits)
    for function in demo.fns.values():
        if function.name == "find":
            function.fn = _watched(function.fn)
    atexit.register(demo.close)
    return launch_demo(demo, limits=limits)


_raw: list[BaseException] = []


def _watched(find: Any) -> Any:
    """The function of the page; Gradio tells nobody of errors that are not meant for visitors, so they are kept."""

    def told(*arguments: Any) -> Any:
        try:
            return find(*arguments)
        except Exception as error:
            if type(error).__name__ != "Error":  # Gradio's, made of a sentence
                _raw.append(error)
            raise

    return told


@cache
def _uploaded() -> dict[str, Any]:
    """What the page calls a film that was uploaded to it."""
    return upload("film.mp4", make_video(scratch() / "film.mp4", FILM_S).read_bytes())


def upload(name: str, content: bytes) -> dict[str, Any]:
    head = f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    kind = {"Content-Type": "multipart/form-data; boundary=edge"}
    places = json.loads(_request("upload", head + content + b"\r\n--edge--\r\n", kind))
    return {"path": places[0], "meta": {"_type": "gradio.FileData"}}


def _request(place: str, body: bytes | None = None, kind: dict[str, str] | None = None) -> bytes:
    request = urllib.request.Request(f"{_page()}gradio_api/{place}", body, kind or {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        _require_discreet(error.read().decode(errors="replace"))
        raise ValueError(f"HTTP {error.code}") from error


def _require_discreet(said: str) -> None:
    for secret in ("Traceback", "site-packages", str(Path(__file__).parent), "modeling_bmdetr/"):
        assert secret not in said, f"{secret} in {said[:500]}"


def _ask_page(case: tuple[bytes | None, Any]) -> None:
    content, inputs = case
    if content is not None:
        inputs = [upload("film.mp4", content), *inputs[1:]]
    body = json.dumps({"data": inputs}).encode()
    event = json.loads(_request("call/find", body, {"Content-Type": "application/json"}))["event_id"]
    said = _request(f"call/find/{event}").decode()
    _require_discreet(said)
    assert not _raw, repr(_raw.pop())
    kind, data = (line.partition(": ")[2] for line in said.strip().splitlines()[-2:])
    if kind == "error":
        raise ValueError(data)
    assert kind == "complete", said
    for answer in json.loads(data)[0]["answers"]:
        assert all(map(math.isfinite, answer["saliency"]))
        require_answer(answer["moments"], answer["duration"])


def _asked_of_page() -> st.SearchStrategy:
    inputs = mutated([_uploaded(), ["a square"], 2], nested)
    sentences = st.tuples(st.just(_uploaded()), words | st.lists(words | nested, max_size=5), numbers | nested).map(
        list
    )
    films = st.tuples(damaged((scratch() / "film.mp4").read_bytes()), st.just([None, ["a square"], 2]))
    return st.tuples(st.none(), inputs | sentences | nested) | films


def films_and_pages() -> dict[str, EntryPoint]:
    """All of them by name."""
    return {
        "film_files": EntryPoint(_film_files(), _encode_film, 2),
        "frames": EntryPoint(_frames(), _encode_frames, 2),
        "cut_clip": EntryPoint(_cuts(), _cut, 4),
        "answers_html": EntryPoint(_shown(), _show),
        "page": EntryPoint(st.deferred(_asked_of_page), _ask_page, 8),
    }
