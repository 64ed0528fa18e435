"""The page: its limits and messages, its answers over HTTP, and the page itself in a browser."""

import json
import os
import shutil
import time
import urllib.request
from pathlib import Path

import pytest
from app_world import make_checkpoint, make_pipeline, make_video

from modeling_bmdetr.demo import DemoLimits, MomentFinder, build_demo, launch_demo, uploaded

ABSENT = "an elephant sings"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("films") / "film.mp4", 8.0)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """A pipeline that says of one sentence that the video does not show it, and counts what it encodes."""
    pipe = make_pipeline(make_checkpoint(tmp_path_factory.mktemp("model"), long_video="window"))
    answer, encode, pipe.encoded = type(pipe).__call__, pipe.encode_video, []

    class Telling(type(pipe)):
        def __call__(self, video, query=None, **options):
            answers = answer(self, video, query, **options)
            return [{**a, "presence": 0.03 if a["query"] == ABSENT else 0.9, "calibrated": True} for a in answers]

    def counted(video, **options):
        pipe.encoded.append(os.fspath(video))
        return encode(video, **options)

    pipe.__class__, pipe.encode_video = Telling, counted
    return pipe


class TestMomentFinder:
    def test_a_video_is_encoded_once_whatever_its_name(self, pipe, film, tmp_path):
        finder, before = MomentFinder(pipe), len(pipe.encoded)
        first = finder.find(film, "a red box\n\n a dog barks ")
        again = finder.find(shutil.copy(film, tmp_path / "copy.mp4"), ["a red box", "a dog barks"])
        assert len(pipe.encoded) == before + 1
        assert [answer["query"] for answer in first] == ["a red box", "a dog barks"]
        assert first == again

    def test_only_so_many_videos_are_kept(self, pipe, tmp_path):
        finder = MomentFinder(pipe, DemoLimits(kept_videos=2))
        films = [make_video(tmp_path / f"{seed}.mp4", 1.0, seed=seed) for seed in range(3)]
        for path in films:
            finder.encode(path)
        before = len(pipe.encoded)
        finder.encode(films[2])
        finder.encode(films[0])
        assert pipe.encoded[before:] == [str(films[0])]

    @pytest.mark.parametrize(
        ("limits", "text", "message"),
        [
            ({}, " \n ", "write what to look for"),
            ({}, [3], "a sentence is a text"),
            ({}, 5, "a sentence is a text"),
            ({}, {"a": 1}, "a sentence is a text"),
            ({"sentences": 2}, "a\nb\nc", "3 sentences are too many: up to 2"),
            ({"letters": 9}, "a" * 10, "a sentence of 10 letters is too long: up to 9"),
            ({"minutes": 0.1}, "a", "lasts 0:08, and up to 0:06 are taken"),
            ({"upload_mb": 0}, "a", "up to 0 MB are taken"),
        ],
    )
    def test_limits_are_said(self, limits, text, message, pipe, film):
        with pytest.raises(ValueError, match=message):
            MomentFinder(pipe, DemoLimits(**limits)).find(film, text)

    def test_progress_is_told(self, pipe, film):
        told = []
        MomentFinder(pipe).encode(film, lambda done, total: told.append((done, total)))
        assert told[-1] == (8, 8)

    def test_a_missing_or_broken_video(self, pipe, tmp_path):
        (tmp_path / "broken.mp4").write_bytes(b"no video")
        with pytest.raises(ValueError, match="choose or upload a video"):
            MomentFinder(pipe).find(None, "a")
        with pytest.raises(ValueError, match=r"broken\.mp4"):
            MomentFinder(pipe).find(tmp_path / "broken.mp4", "a")


def test_only_uploads_are_videos_of_the_page(tmp_path):
    """Links out of the folder of uploads, and what is no name of a file, are refused as well."""
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (tmp_path / "private.mp4").touch()
    (uploads / "film.mp4").touch()
    (uploads / "link.mp4").symlink_to(tmp_path / "private.mp4")
    assert uploaded({"path": str(uploads / "film.mp4")}, uploads) == str(uploads / "film.mp4")
    inside, outside = str(uploads / "link.mp4"), str(uploads / ".." / "private.mp4")
    for video in (inside, outside, str(tmp_path / "private.mp4"), "film.mp4", "\0", ["film.mp4"], None):
        with pytest.raises(ValueError, match=r"none of those that were uploaded|null byte"):
            uploaded({"path": video}, uploads)
    for video in (None, 5, [], "film.mp4", {}):
        with pytest.raises(ValueError, match="none of those that were uploaded"):
            uploaded(video, uploads)


@pytest.fixture(scope="module")
def address(pipe, film, tmp_path_factory):
    """The page, served on a loopback port."""
    pytest.importorskip("gradio")
    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("gradio"))
    limits = DemoLimits(minutes=1.0, sentences=3)
    demo = build_demo(pipe, model_name="tiny", examples=[film], limits=limits)
    yield launch_demo(demo, limits=limits)
    demo.close()
    del os.environ["GRADIO_TEMP_DIR"]


@pytest.mark.slow
class TestOverHttp:
    def test_only_this_machine_is_served(self, address):
        assert address.startswith("http://127.0.0.1:")
        assert urllib.request.urlopen(address, timeout=30).status == 200

    def test_a_client_gets_what_the_pipeline_answers(self, address, pipe, film):
        from gradio_client import Client, handle_file

        client = Client(address, verbose=False)
        result = client.predict(handle_file(str(film)), ["a red box", ABSENT], 2, api_name="/find")
        expected = MomentFinder(pipe).find(film, ["a red box", ABSENT], top=2)
        assert result["answers"] == json.loads(json.dumps(expected))
        assert result["answers"][1]["presence"] == 0.03

    def test_errors_are_words_for_a_client_too(self, address, tmp_path):
        from gradio_client import Client, handle_file
        from gradio_client.exceptions import AppError

        (tmp_path / "broken.mp4").write_bytes(b"no video")
        client = Client(address, verbose=False)
        with pytest.raises(AppError, match=r"cannot read the video broken\.mp4"):
            client.predict(handle_file(str(tmp_path / "broken.mp4")), ["a"], 2, api_name="/find")

    @pytest.mark.parametrize("top", ["many", None, True])
    def test_a_number_of_moments_that_is_none(self, address, film, top):
        from gradio_client import Client, handle_file
        from gradio_client.exceptions import AppError

        with pytest.raises(AppError, match="top is the number of moments"):
            Client(address, verbose=False).predict(handle_file(str(film)), ["a"], top, api_name="/find")

    @pytest.mark.parametrize("mark", [{"meta": {"_type": "gradio.FileData"}}, {"meta": {}}, {}])
    @pytest.mark.parametrize("kind", ["video", "text", "missing"])
    def test_no_file_of_the_server_is_opened_or_told_of(self, address, tmp_path, kind, mark):
        """Whatever lies beside the uploads is refused alike, so that nobody learns what is there.

        Gradio itself looks only at files that whoever asks has marked as such.
        """
        from gradio_client import Client

        private = tmp_path / "private.mp4"
        if kind == "video":
            make_video(private, 2.0)
        elif kind == "text":
            private.write_text("a password")
        file = {"path": str(private), **mark}
        request = urllib.request.Request(
            f"{address}gradio_api/call/find",
            json.dumps({"data": [file, ["a"], 2]}).encode(),
            {"Content-Type": "application/json"},
        )
        event = json.loads(urllib.request.urlopen(request, timeout=30).read())["event_id"]
        answer = urllib.request.urlopen(f"{address}gradio_api/call/find/{event}", timeout=60).read().decode()
        assert "event: error" in answer
        assert "moments" not in answer
        assert "cannot read the video" not in answer
        assert "No such file" not in answer
        assert Client(address, verbose=False).view_api(print_info=False, return_format="dict")["named_endpoints"]

    def test_a_clip_does_not_stay_among_the_temporary_files(self, pipe, film, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        page = build_demo(pipe)
        cut = next(function.fn for function in page.fns.values() if function.name == "cut")
        clips = [Path(update["value"]).stat().st_size for update in cut(str(film), "1.000 3.000")]
        assert len(clips) == 1
        assert not list(tmp_path.rglob("*.mp4"))


@pytest.fixture
def page(address):
    """The page in a headless browser."""
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=[*FLAGS, "--disable-background-networking"])
        page = browser.new_page(viewport={"width": 1280, "height": 900}, accept_downloads=True)
        page.set_default_timeout(120_000)
        page.goto(address, wait_until="domcontentloaded")
        page.wait_for_selector("#bm-player input[type=file]", state="attached")
        yield page
        browser.close()


def upload(page, path: Path) -> None:
    page.set_input_files("#bm-player input[type=file]", str(path))
    page.wait_for_selector("#bm-player video")


def ask(page, sentences: str) -> None:
    page.fill("#bm-text textarea", sentences)
    page.click("#bm-find")


@pytest.mark.slow
class TestInABrowser:
    def test_upload_ask_click_and_the_player_jumps(self, page, film):
        upload(page, film)
        ask(page, "a red box")
        page.wait_for_selector(".bm-moment")
        player = page.locator("#bm-player video")
        moments = page.locator(".bm-moment")
        wanted = [float(moments.nth(i).get_attribute("data-seek")) for i in range(moments.count())]
        latest = wanted.index(max(wanted))
        assert player.evaluate("video => video.currentTime") == 0
        moments.nth(latest).click()
        at = "time => Math.abs(document.querySelector('video').currentTime - time) < 0.1"
        page.wait_for_function(at, arg=max(wanted))
        page.wait_for_function("() => parseFloat(getComputedStyle(document.querySelector('.bm-now')).left) > 0")
        track = page.locator(".bm-curve").first.bounding_box()
        page.mouse.click(track["x"] + track["width"] / 2, track["y"] + 10)
        page.wait_for_function(at, arg=4.0)

    def test_an_absent_sentence_is_said_to_be_absent(self, page, film):
        upload(page, film)
        ask(page, f"a red box\n{ABSENT}")
        page.wait_for_selector(".bm-absent")
        notes = page.locator(".bm-note").all_inner_texts()
        assert notes == ["in this video (presence 0.90)", "probably not in this video (presence 0.03)"]
        assert "not calibrated" not in page.locator("#bm-answers").inner_text()

    def test_a_broken_file_and_a_missing_sentence_are_said(self, page, film, tmp_path):
        upload(page, film)
        ask(page, " ")
        page.wait_for_selector(".bm-error")
        assert "write what to look for" in page.locator(".bm-error").inner_text()
        broken = tmp_path / "broken.mp4"
        broken.write_bytes(film.read_bytes()[:600])
        page.reload(wait_until="domcontentloaded")
        page.wait_for_selector("#bm-player input[type=file]", state="attached")
        page.set_input_files("#bm-player input[type=file]", str(broken))
        page.wait_for_timeout(2000)
        ask(page, "a red box")
        page.wait_for_selector(".bm-error")
        words = page.locator(".bm-error").inner_text()
        assert "cannot read the video broken.mp4" in words
        assert "/" not in words.split("broken.mp4")[0], "no folder of the server is shown"

    def test_json_csv_and_a_clip_are_downloaded(self, page, film, tmp_path):
        upload(page, film)
        ask(page, "a red box")
        page.wait_for_selector(".bm-moment")
        with page.expect_download() as download:
            page.click("a[download='answers.json']")
        answers = json.loads(Path(download.value.path()).read_text())
        assert answers["video"] == "film.mp4"
        page.click("#bm-cut input")
        page.locator("ul[role=listbox] li").first.click()
        page.wait_for_selector("#bm-clip")
        with page.expect_download() as download:
            page.click("#bm-clip")
        from modeling_bmdetr.video_bmdetr import probe_video

        moment = answers["answers"][0]["moments"][0]
        download.value.save_as(tmp_path / "clip.mp4")
        lasts = probe_video(tmp_path / "clip.mp4").duration_s
        assert lasts == pytest.approx(moment["end"] - moment["start"], abs=0.3)

    def test_nothing_sticks_out_of_a_narrow_window(self, page, film):
        page.set_viewport_size({"width": 380, "height": 800})
        upload(page, film)
        ask(page, "a red box that has a rather long sentence about what it does and where it goes, " * 3)
        page.wait_for_selector(".bm-moment")
        time.sleep(1)
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
