"""A web page for one model: a video and sentences in, moments on a time line under the player out.

Gradio shows the page and offers the same answers over HTTP (`/find`). Strangers may use it: what is uploaded, how long
it lasts and how many wait have limits, and a fault is a sentence on the page.
"""

import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from .cutting import cut_clip
from .index import content_key
from .packages_bmdetr import needed_module
from .pipeline_bmdetr import EncodedVideo, MomentRetrievalPipeline
from .timeline import CSS, answers_html, clock, error_html
from .video_bmdetr import probe_video

if TYPE_CHECKING:
    import gradio

logger = logging.get_logger(__name__)

# Moments that score less, or overlap a better one by more, tell a visitor nothing.
SHOWN_FROM, SHOWN_APART = 0.05, 0.5
NO_GRADIO = "the page needs Gradio: pip install gradio"
TITLE = "Find moments in a video"
# The player follows a click on anything that stands for a time, and the time line follows the player.
SCRIPT = """
const player = () => document.querySelector('#bm-player video');
element.addEventListener('click', (event) => {
  const place = event.target.closest('[data-seek]');
  const track = event.target.closest('.bm-track');
  const video = player();
  if (!video || !(place || track)) return;
  let time;
  if (place) {
    time = parseFloat(place.dataset.seek);
  } else {
    const box = track.getBoundingClientRect();
    time = (event.clientX - box.left) / box.width * parseFloat(track.dataset.duration);
  }
  video.currentTime = time;
  video.scrollIntoView({ block: 'nearest', behavior: 'smooth' });
});
document.addEventListener('timeupdate', (event) => {
  if (event.target !== player()) return;
  for (const track of element.querySelectorAll('.bm-track')) {
    const share = Math.min(1, event.target.currentTime / parseFloat(track.dataset.duration));
    track.querySelector('.bm-now').style.left = 'calc(' + 100 * share + '% - 1px)';
  }
}, true);
"""


@dataclass(frozen=True)
class DemoLimits:
    """What one visitor may ask for.

    Attributes:
        upload_mb: Size of a video.
        minutes: Length of a video.
        sentences: Sentences asked at once.
        letters: Letters of a sentence.
        waiting: Requests that wait; further ones are told to come back.
        kept_videos: Encoded videos that stay in memory for further questions.
    """

    upload_mb: int = 500
    minutes: float = 60.0
    sentences: int = 10
    letters: int = 500
    waiting: int = 20
    kept_videos: int = 8


class MomentFinder:
    """Answers for a page: checks limits, encodes a video once, keeps it for further questions.

    Args:
        pipe: The pipeline that answers.
        limits: What may be asked.
    """

    def __init__(self, pipe: MomentRetrievalPipeline, limits: DemoLimits | None = None) -> None:
        self.pipe, self.limits = pipe, limits or DemoLimits()
        self._kept: OrderedDict[str, EncodedVideo] = OrderedDict()
        self._lock = threading.Lock()

    def encode(self, path: str | os.PathLike, progress: Callable[[int, int], None] | None = None) -> EncodedVideo:
        """The encoded video, from memory if it was asked for before.

        Raises:
            ValueError: it is too large, too long, or cannot be read.
        """
        megabytes = os.path.getsize(path) / 1e6
        if megabytes > self.limits.upload_mb:
            raise ValueError(f"this video has {megabytes:.0f} MB, and up to {self.limits.upload_mb} MB are taken here")
        key = content_key(Path(path))
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        duration_s = probe_video(path).duration_s
        if duration_s > 60 * self.limits.minutes:
            raise ValueError(
                f"this video lasts {clock(duration_s)}, and up to {clock(60 * self.limits.minutes)} are taken here: "
                "cut out the part that you want to search"
            )
        video = self.pipe.encode_video(path, progress=progress)
        video.name = Path(path).name
        with self._lock:
            self._kept[key] = video
            while len(self._kept) > self.limits.kept_videos:
                self._kept.popitem(last=False)
        return video

    def sentences(self, text: str | Sequence[str] | None) -> list[str]:
        """The sentences of a text, one per line, or of a list.

        Raises:
            ValueError: there is none, or there are too many or too long ones.
        """
        lines = text.splitlines() if isinstance(text, str) else text or ()
        if not isinstance(lines, list | tuple) or not all(isinstance(line, str) for line in lines):
            raise ValueError("a sentence is a text: pass a list of texts")
        lines = [line.strip() for line in lines if line.strip()]
        if not lines:
            raise ValueError("write what to look for: one sentence per line")
        if len(lines) > self.limits.sentences:
            raise ValueError(f"{len(lines)} sentences are too many: up to {self.limits.sentences} at once")
        longest = max(map(len, lines))
        if longest > self.limits.letters:
            raise ValueError(f"a sentence of {longest} letters is too long: up to {self.limits.letters}")
        return lines

    def find(
        self,
        path: str | os.PathLike | None,
        text: str | Sequence[str] | None,
        top: int = 5,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[dict[str, Any]]:
        """The answers of the pipeline to sentences about a video; of moments that overlap, the best is kept.

        Raises:
            ValueError: what is missing, too much, or cannot be read.
        """
        if not path:
            raise ValueError("choose or upload a video first")
        sentences = self.sentences(text)
        video = self.encode(path, progress)
        return self.pipe(video, sentences, top_k=top, score_threshold=SHOWN_FROM, nms_threshold=SHOWN_APART)


def build_demo(
    pipe: MomentRetrievalPipeline,
    *,
    model_name: str = "",
    examples: Sequence[str | os.PathLike] = (),
    limits: DemoLimits | None = None,
) -> "gradio.Blocks":
    """The page, to be launched by `launch_demo`, or in a Space by its own `launch`.

    Args:
        pipe: The pipeline that answers.
        model_name: Shown under the title.
        examples: Videos to choose from.
        limits: What a visitor may ask for.

    Raises:
        ImportError: Gradio is not installed.
    """
    gr = needed_module("gradio", NO_GRADIO)
    finder = MomentFinder(pipe, limits)
    allowed = finder.limits

    def ask(path: str | None, text: str, progress: Any = gr.Progress()) -> tuple[Any, Any, Any]:  # noqa: B008
        def tell(done: int, total: int) -> None:
            progress((done, total), desc="encoding the video", unit="clips")

        try:
            answers = finder.find(path, text, progress=tell)
        except (ValueError, OSError) as error:
            return error_html(_in_words(error, path)), gr.update(choices=[], value=None, visible=False), _no_clip(gr)
        choices = [
            (f"{clock(m['start'], 1)} – {clock(m['end'], 1)}  {answer['query']}", f"{m['start']:.3f} {m['end']:.3f}")
            for answer in answers
            for m in answer["moments"]
        ]
        shown = gr.update(choices=choices, value=None, visible=bool(choices))
        return answers_html(answers, Path(str(path)).name), shown, _no_clip(gr)

    def cut(path: str | None, moment: str | None) -> Iterator[Any]:
        if not (path and moment):
            yield _no_clip(gr)
            return
        with tempfile.TemporaryDirectory() as folder:  # Gradio keeps a copy of the clip, for as long as of the video
            try:
                start_s, end_s = (float(part) for part in moment.split())
                out = Path(folder) / f"{Path(path).stem[:60]}_{start_s:.1f}-{end_s:.1f}s.mp4"
                cut_clip(path, start_s, end_s, out)
            except (ValueError, OSError) as error:
                raise gr.Error(_in_words(error, path), duration=None, print_exception=False) from error
            yield gr.update(value=str(out), visible=True)

    def find(video: Any, sentences: list[str], top: int = 5) -> dict[str, Any]:
        """Moments in a video for each of the sentences: the answers of the pipeline, as JSON."""
        path = None
        try:
            path = uploaded(video, demo.GRADIO_CACHE)
            if not isinstance(top, int) or isinstance(top, bool):
                raise ValueError(f"top is the number of moments of each sentence, received {top!r}")
            return {"answers": finder.find(path, sentences, top=max(1, min(top, 50)))}
        except (ValueError, OSError) as error:
            raise gr.Error(_in_words(error, path), print_exception=False) from error

    find.__annotations__["video"] = gr.FileData  # Gradio reads from it what the endpoint takes

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as demo:
        about = f"Model: {model_name}. " if model_name else ""
        limit = f"Up to {allowed.upload_mb} MB and {clock(60 * allowed.minutes)}; mp4 plays everywhere."
        gr.Markdown(f"# {TITLE}\n{about}{limit}")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                video = gr.Video(label="Video", sources=["upload"], elem_id="bm-player", height=360, buttons=[])
            with gr.Column(scale=2, min_width=320):
                text = gr.Textbox(
                    label="What to look for",
                    placeholder="she opens the door\na dog barks",
                    info=f"one sentence per line, up to {allowed.sentences}",
                    lines=4,
                    elem_id="bm-text",
                )
                button = gr.Button("Find moments", variant="primary", elem_id="bm-find")
                moment = gr.Dropdown(label="Cut out a moment", choices=[], visible=False, elem_id="bm-cut")
                clip = gr.DownloadButton("Download the clip", visible=False, elem_id="bm-clip")
                if examples:
                    several = [[str(path)] for path in examples]
                    gr.Examples(several, inputs=[video], label="Videos to choose from", examples_per_page=8)
        shown = gr.HTML(css_template=CSS, js_on_load=SCRIPT, elem_id="bm-answers", min_height=80)
        # The encoder and the model take all cores: one request at a time.
        one_at_a_time: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
        asked: dict[str, Any] = {
            "inputs": [video, text],
            "outputs": [shown, moment, clip],
            "show_progress_on": shown,
            "api_visibility": "private",
        }
        button.click(ask, **asked, **one_at_a_time)
        moment.change(cut, [video, moment], clip, api_visibility="private")
        video.change(
            lambda: ("", gr.update(choices=[], value=None, visible=False), _no_clip(gr)),
            outputs=[shown, moment, clip],
            api_visibility="private",
            queue=False,
        )
        gr.api(find, api_name="find", **one_at_a_time)
    demo.queue(max_size=allowed.waiting, api_open=True)
    return demo


def launch_demo(
    demo: "gradio.Blocks",
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    limits: DemoLimits | None = None,
) -> str:
    """Serves the page in the background, for this machine alone unless `host` says otherwise; returns its address.

    Args:
        demo: What `build_demo` made.
        host: Interface to listen on; `0.0.0.0` lets others in.
        port: The first free one from 7860 when left out.
        limits: Those that the page was built with.
    """
    gr = needed_module("gradio", NO_GRADIO)
    fonts = ["system-ui", "sans-serif"]
    _, address, _ = demo.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=f"{(limits or DemoLimits()).upload_mb}mb",
        footer_links=["api"],
        ssr_mode=False,
        theme=gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"]),  # nothing is fetched
    )
    return address


def uploaded(video: Any, folder: str | os.PathLike) -> str:
    """The place of a video among the uploads, which lie in `folder`; Gradio checks only what is marked as a file.

    Raises:
        ValueError: it is another file of the server, there or not.
    """
    path = video.get("path") if isinstance(video, dict) else getattr(video, "path", None)
    if not isinstance(path, str) or not Path(path).resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError("the video is none of those that were uploaded here: upload it first")
    return path


def _no_clip(gr: Any) -> Any:
    return gr.update(value=None, visible=False)


def _in_words(error: Exception, path: Any = None) -> str:
    """What an error says to a visitor: one paragraph, with the name of the video instead of where it lies here."""
    message = " ".join(str(error).split()) or type(error).__name__
    return message.replace(str(path), Path(path).name) if path else message
