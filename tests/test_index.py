"""A folder of videos as an index: kept up to date, searched as the pipeline answers, never silently wrong."""

import json
import os
import shutil
import unicodedata

import pytest
import torch
from app_world import make_checkpoint, make_pipeline, make_video

from modeling_bmdetr.calibration_bmdetr import Calibration, weights_fingerprint
from modeling_bmdetr.cli import main
from modeling_bmdetr.index import CATALOG, MANIFEST, VideoIndex, read_index

QUERIES = ["the red star slides to the left", "a blue box spins"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model"), long_video="window")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Five videos; the last one is longer than the model reads at once."""
    folder = tmp_path_factory.mktemp("films")
    for i, seconds in enumerate((3.0, 4.0, 5.0, 4.0, 17.0)):
        make_video(folder / ("sub" if i % 2 else ".") / f"film {i}.mp4", seconds, seed=i)
    return folder


@pytest.fixture
def folder(films, tmp_path):
    return shutil.copytree(films, tmp_path / "films")


@pytest.fixture
def pipe(checkpoint):
    """A pipeline that counts what it encodes in `pipe.encoded`."""
    pipe = make_pipeline(checkpoint)
    encode, pipe.encoded = pipe.encode_video, []

    def counted(video, *args, **kwargs):
        pipe.encoded.append(os.fspath(video))
        return encode(video, *args, **kwargs)

    pipe.encode_video = counted
    return pipe


def found(index, query=QUERIES[0], **options):
    hits = index.search(query, **options)
    return [(hit.video, round(hit.start, 4), round(hit.end, 4), round(hit.score, 5)) for hit in hits]


def test_a_search_finds_what_the_pipeline_finds_in_each_video(pipe, folder, tmp_path):
    index = VideoIndex(tmp_path / "index", pipe)
    report = index.update(folder, dtype="float32")
    assert (report.videos, report.encoded, report.failed) == (5, 5, {})
    assert report.clips == 3 + 4 + 5 + 4 + 17
    expected = []
    for name in index.videos:
        for answer in pipe(folder / name, QUERIES, top_k=2):
            best = [(name, m["start"], m["end"], m["score"]) for m in answer["moments"]]
            expected.append((answer["query"], best))
    for query, hits in zip(QUERIES, index.search(QUERIES, top=100, per_video=2, batch_size=3), strict=True):
        assert [hit.rank_score for hit in hits] == sorted((hit.rank_score for hit in hits), reverse=True)
        wanted = [moment for asked, best in expected if asked == query for moment in best]
        received = [(hit.video, hit.start, hit.end, hit.score) for hit in hits]
        for moments in (wanted, received):  # a start of 1e-7 is one of 0
            moments.sort(key=lambda moment: (moment[0], *(round(value, 2) for value in moment[1:])))
        assert [name for name, *_ in received] == [name for name, *_ in wanted]
        numbers = [torch.tensor([values for _, *values in some]) for some in (received, wanted)]
        torch.testing.assert_close(*numbers, rtol=1e-3, atol=1e-3)


def test_top_hits_are_the_first_of_all(pipe, folder, tmp_path):
    index = VideoIndex(tmp_path / "index", pipe)
    index.update(folder)
    everything = found(index, top=100)
    assert len(everything) == 5, "one moment per video"
    assert found(index, top=2) == everything[:2]


def test_only_what_changed_is_encoded_and_what_is_gone_drops_out(pipe, folder, tmp_path):
    index = VideoIndex(tmp_path / "index", pipe)
    index.update(folder)
    pipe.encoded.clear()
    assert index.update(folder).kept == 5
    assert pipe.encoded == []

    (folder / "film 0.mp4").rename(folder / "renamed.mp4")
    os.utime(folder / "film 2.mp4", (1, 1))
    report = index.update(folder)
    assert pipe.encoded == [], "content decides, not names and times"
    assert (report.videos, report.encoded, report.kept, report.renamed, report.removed) == (5, 0, 4, 1, 0)
    assert " 0 encoded in " in str(report)
    assert " 4 kept, 1 renamed, 0 removed" in str(report)
    assert "renamed.mp4" in index.videos

    shutil.copy(folder / "renamed.mp4", folder / "copy.mp4")
    report = index.update(folder)
    assert (report.videos, report.encoded, report.kept, report.renamed, report.removed) == (6, 0, 6, 0, 0)
    (folder / "copy.mp4").unlink()
    report = index.update(folder)
    assert (report.videos, report.encoded, report.kept, report.renamed, report.removed) == (5, 0, 5, 0, 1)

    (folder / "sub" / "film 1.mp4").unlink()
    make_video(folder / "film 2.mp4", 6.0, seed=9)
    report = index.update(folder)
    assert pipe.encoded == [str(folder / "film 2.mp4")]
    assert (report.videos, report.removed, report.clips) == (4, 1, 3 + 6 + 4 + 17)
    fresh = VideoIndex(tmp_path / "fresh", pipe)
    fresh.update(folder)
    assert found(VideoIndex(tmp_path / "index", pipe), top=9) == found(fresh, top=9)


def test_space_of_removed_videos_is_given_back(pipe, folder, tmp_path):
    index = VideoIndex(tmp_path / "index", pipe)
    before = index.update(folder).bytes
    (folder / "film 4.mp4").unlink()
    after = index.update(folder)
    assert after.bytes < 0.8 * before
    assert [path.name for path in (tmp_path / "index").glob("store-*")] == ["store-1"]
    assert len(found(index)) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("finished", [0, 2, 4])
def test_killed_and_run_again_it_goes_on(finished, pipe, folder, tmp_path):
    child = os.fork()
    if child == 0:
        encode = pipe.encode_video
        pipe.encode_video = lambda video: encode(video) if len(pipe.encoded) < finished else os._exit(9)
        VideoIndex(tmp_path / "index", pipe).update(folder, progress=lambda *_: None)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    with open(tmp_path / "index" / CATALOG, "a") as journal:
        journal.write('{"path": "half a li')  # as a kill in the middle of a line leaves it

    with pytest.raises(ValueError, match="unfinished: run `bmdetr index` again"):
        VideoIndex(tmp_path / "index", pipe).search("a")
    index = VideoIndex(tmp_path / "index", pipe)
    index.update(folder)
    undisturbed = VideoIndex(tmp_path / "undisturbed", pipe)
    undisturbed.update(folder)
    assert found(index, top=9) == found(undisturbed, top=9)
    assert not list(tmp_path.rglob("*.unfinished*"))


def test_an_interrupted_run_keeps_what_it_encoded(pipe, folder, tmp_path):
    encode = pipe.encode_video

    def interrupted(video):
        if len(pipe.encoded) == 3:
            raise KeyboardInterrupt
        return encode(video)

    pipe.encode_video = interrupted
    with pytest.raises(KeyboardInterrupt):
        VideoIndex(tmp_path / "index", pipe).update(folder)
    pipe.encode_video, pipe.encoded[:] = encode, []
    report = VideoIndex(tmp_path / "index", pipe).update(folder)
    assert (report.encoded, report.kept, len(pipe.encoded)) == (2, 3, 2)


def test_broken_videos_are_listed_and_the_others_go_on(pipe, folder, tmp_path):
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "empty.MP4").touch()
    (folder / "._film.mp4").write_bytes(b"what a Mac leaves")
    (folder / "notes.txt").write_text("no video either")
    report = VideoIndex(tmp_path / "index", pipe).update(folder)
    assert sorted(report.failed) == ["broken.mp4", "empty.MP4"]
    assert report.videos == 5
    assert str(report).count("\n") == 2, "one line each"


def test_odd_file_names_are_found(pipe, tmp_path):
    names = [unicodedata.normalize("NFD", "Küche é.mp4"), "a:b.mp4", "cam-1.mp4", "cam-2.mp4", "new\nline.mp4"]
    names.append(os.fsdecode(b"latin-\xe9.mp4"))
    (tmp_path / "films").mkdir()
    for seed, name in enumerate(names):
        make_video(tmp_path / "made.mp4", 2.0, seed=seed).rename(tmp_path / "films" / name)
    index = VideoIndex(tmp_path / "index", pipe)
    report = index.update(tmp_path / "films")
    assert report.failed == {}
    assert sorted(hit.video for hit in index.search("a")) == sorted(names)


def test_an_empty_folder_is_an_empty_index(pipe, tmp_path):
    (tmp_path / "films").mkdir()
    index = VideoIndex(tmp_path / "index", pipe)
    assert index.update(tmp_path / "films").videos == 0
    assert index.search("a") == []


@pytest.fixture(scope="module")
def index_folder(checkpoint, films, tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexed") / "index"
    VideoIndex(folder, make_pipeline(checkpoint), "model A").update(films)
    return folder


class TestRefusals:
    def test_another_contract(self, index_folder, tmp_path):
        other = make_pipeline(make_checkpoint(tmp_path / "other", clip_length=2.0))
        with pytest.raises(
            ValueError, match=r"(?s)made with model A\) do not fit model B.*clip_length: 2.0 against 1.0"
        ):
            VideoIndex(index_folder, other, "model B")

    def test_other_weights_until_the_index_is_run_with_them(self, index_folder, films, tmp_path):
        other = make_pipeline(make_checkpoint(tmp_path / "other", seed=1, long_video="window"))
        index = VideoIndex(shutil.copytree(index_folder, tmp_path / "index"), other, "model B")
        with pytest.raises(ValueError, match="was made with model A, and model B has other weights"):
            index.search("a")
        assert index.update(films).kept == 5
        assert len(index.search("a")) == 5

    def test_another_folder(self, index_folder, pipe, folder):
        with pytest.raises(ValueError, match="is the index of"):
            VideoIndex(index_folder, pipe).update(folder)

    def test_a_folder_that_holds_something_else(self, pipe, films, tmp_path):
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(ValueError, match="neither an index nor empty"):
            VideoIndex(tmp_path, pipe).update(films)

    def test_a_missing_folder_and_a_missing_index(self, pipe, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            VideoIndex(tmp_path / "index", pipe).update(tmp_path / "missing")
        with pytest.raises(ValueError, match="is no index: make one"):
            VideoIndex(tmp_path / "index", pipe).search("a")

    @pytest.mark.parametrize("damage", ["[]", "{", '{"format": "bmdetr-index", "version": 99}', '{"format": 1}'])
    def test_a_damaged_index(self, damage, tmp_path):
        (tmp_path / MANIFEST).write_text(damage)
        with pytest.raises(ValueError, match="damaged or of another version"):
            read_index(tmp_path)

    def test_whoever_searches_is_told_which_model_an_index_names(self, index_folder, tmp_path, capsys):
        """Somebody else made it: what it names is looked up on the Hub, which learns of it."""
        index = shutil.copytree(index_folder, tmp_path / "index")
        manifest = json.loads((index / MANIFEST).read_text())
        (index / MANIFEST).write_text(json.dumps({**manifest, "model": "somebody/model"}))
        assert main(["search", str(index), "a red box"]) == 2
        said = capsys.readouterr().err
        assert "the index names the model somebody/model, looked up on the Hub, which learns of it" in said

    @pytest.mark.parametrize(
        "change",
        [
            {"model": 5},
            {"model": None},
            {"complete": "no"},
            {"contract": {}},
            {"dtype": "float8"},
            {"store": "../store-0"},
        ],
    )
    def test_an_edited_index(self, change, index_folder, tmp_path):
        manifest = json.loads((index_folder / MANIFEST).read_text())
        (tmp_path / MANIFEST).write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ValueError, match="damaged or of another version: its"):
            read_index(tmp_path)

    @pytest.mark.parametrize(
        "entry",
        [
            '"key": "ab"',
            '"key": "ab", "duration_s": -1',
            '"key": 3, "duration_s": 2.0',
            f'"key": "ab", "duration_s": {10**400}',
        ],
    )
    def test_a_damaged_catalogue(self, entry, index_folder, pipe, tmp_path):
        index = VideoIndex(shutil.copytree(index_folder, tmp_path / "index"), pipe)
        with open(tmp_path / "index" / CATALOG, "a") as journal:
            journal.write(f'{{"path": "a.mp4", "size": 1, {entry}}}\n')
        with pytest.raises(ValueError, match=r"line 6, is damaged: the video 'a\.mp4'.*Make the index again"):
            index.search("a")

    def test_numbers_and_sentences(self, index_folder, pipe):
        index = VideoIndex(index_folder, pipe)
        for options in ({"top": 0}, {"per_video": -1}, {"batch_size": 0}):
            with pytest.raises(ValueError, match="must be at least 1"):
                index.search("a", **options)
        for query in ("", [], ["a", " "]):
            with pytest.raises(ValueError, match="empty"):
                index.search(query)


def test_uncalibrated_scores_are_said_to_be_so_once(pipe, folder, tmp_path, package_log):
    index = VideoIndex(tmp_path / "index", pipe, "model A")
    index.update(folder)
    assert "model A is not calibrated: its scores of different videos are not comparable" in package_log.text
    index.search("a")
    index.search("b")
    assert package_log.text.count("model A is not calibrated") == 1


def test_a_checkpoint_with_its_calibration_and_without_it(checkpoint, folder, tmp_path, package_log):
    """With it, moments are ranked by score times the odds of presence; without it, by score times the mean p inside."""
    pipe = make_pipeline(checkpoint)
    pipe.model.config.calibration = Calibration(
        (1.0, 0.5, -0.2), (2.0, 0.1), weights_fingerprint(pipe.model), rows=60, absent_rows=10
    ).to_dict()
    index = VideoIndex(tmp_path / "index", pipe, "model A")
    index.update(folder)
    calibrated = index.search(QUERIES[0])
    assert [hit.rank_score for hit in calibrated] == sorted((hit.rank_score for hit in calibrated), reverse=True)
    for hit in calibrated:
        assert 0 < hit.presence < 1
        assert hit.rank_score == pytest.approx(hit.score * hit.presence / (1 - hit.presence))
    assert "not calibrated" not in package_log.text

    pipe.model.config.calibration = None
    stripped = VideoIndex(tmp_path / "index", pipe, "model A").search(QUERIES[0])
    assert len(stripped) == 5
    assert [hit.rank_score for hit in stripped] == sorted((hit.rank_score for hit in stripped), reverse=True)
    for hit in stripped:
        (answer,) = pipe([index.video(hit.video)], QUERIES[0], top_k=1)
        p = answer["frame_probabilities"]
        covered = [value for clip, value in enumerate(p) if hit.start <= clip + 0.5 < hit.end]
        assert hit.rank_score == pytest.approx(hit.score * sum(covered) / len(covered), rel=1e-3)
    assert package_log.text.count("model A is not calibrated") == 1


def test_the_commands(checkpoint, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "broken.mp4").write_bytes(b"no video")
    model = os.path.relpath(checkpoint, tmp_path)
    assert main(["index", "films", "--out", "films.index", "--model", model]) == 1
    assert "5 encoded" in (said := capsys.readouterr().out)
    assert said.count("broken.mp4") == 2, "its line names the file"
    monkeypatch.chdir(folder)
    code = main(["search", str(tmp_path / "films.index"), *QUERIES, "--top", "3", "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    answers = json.loads(captured.out)["answers"]
    assert [answer["query"] for answer in answers] == QUERIES
    assert [len(answer["hits"]) for answer in answers] == [3, 3]
    assert main(["search", str(tmp_path / "films.index"), QUERIES[0]]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert main(["search", str(tmp_path), "a"]) == 2
    assert "is no index" in capsys.readouterr().err
