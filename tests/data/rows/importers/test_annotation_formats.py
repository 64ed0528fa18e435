"""Label Studio, VIA, ELAN, captions and JSONL: what their samples say, and what cannot be read is named."""

import json
import time
from contextlib import suppress

import pytest
from annotation_samples import SAMPLES

from modeling_bmdetr.data import validate_rows
from modeling_bmdetr.data.rows.importers import AnnotationError, ImportOptions, import_annotations
from modeling_bmdetr.data.rows.importers.json_text import place_in_json


def test_label_studio_counts_frames_from_one_and_includes_the_last(read):
    assert read("label_studio.json", fps=24) == {
        ("dance", "A girl spins around."): [[3.0, 9.5]],  # frames 73 to 228
        ("dance", "Leaving"): [[36.0, 40.0]],
    }


def test_label_studio_minimal_export(read):
    assert read("label_studio_min.json", fps=24) == {
        ("dance", "Bowing"): [[0.0, 1.0]],
        ("dance", "Bowing, Smiling"): [[1.0, 2.0]],
    }


def test_label_studio_needs_the_frame_rate_of_the_project(read):
    with pytest.raises(AnnotationError, match=r"line 2, column 3 \(\[0\]\): counts frames.*--fps 24"):
        read("label_studio.json")


def test_via_takes_segments_of_the_chosen_attribute_and_option_names(read):
    with pytest.raises(AnnotationError, match="2 attributes: sentence, action; choose with --attribute"):
        read("via.json")
    assert read("via.json", attribute="sentence") == {
        ("dance", "A girl spins around."): [[3.0, 9.5]],
        ("kitchen", "He washes a knife."): [[5.0, 11.0]],
    }
    assert read("via.json", attribute="action") == {("kitchen", "Washing"): [[5.0, 11.0]]}


def test_via_whose_file_has_no_name_is_told(read, tmp_path):
    project = json.loads((SAMPLES / "via.json").read_text())
    project["file"]["2"]["fname"] = -1
    (tmp_path / "own.json").write_text(json.dumps(project))
    with pytest.raises(AnnotationError, match="refers to view '2', which has no file"):
        read(tmp_path / "own.json", attribute="sentence")


def test_via_of_the_image_annotator_is_refused(read, tmp_path):
    (tmp_path / "images.json").write_text('{\n "_via_settings": {},\n "_via_img_metadata": {}}')
    with pytest.raises(AnnotationError, match=r"line 3, column 23 .*image annotator, which has no times"):
        read(tmp_path / "images.json")


def test_elan_gives_references_the_times_of_their_parent(read):
    assert read("elan.eaf", tiers=["sentences"]) == {("kitchen", "He washes a knife & dries it."): [[5.0, 11.0]]}
    assert read("elan.eaf", tiers=["translation"]) == {("kitchen", "Er wäscht ein Messer."): [[5.0, 11.0]]}


def test_elan_names_tiers_to_choose_from_and_slots_without_a_time(read):
    with pytest.raises(AnnotationError, match="3 tiers: sentences, translation, words; choose with --tier"):
        read("elan.eaf")
    with pytest.raises(AnnotationError, match="has no tier 'wrds'"):
        read("elan.eaf", tiers=["wrds"])
    with pytest.raises(AnnotationError, match="line 28, column 13: time slot 'ts3' has no time"):
        read("elan.eaf", tiers=["words"])


def test_elan_that_is_not_xml_or_not_elan(read, tmp_path):
    (tmp_path / "a.eaf").write_text("<ANNOTATION_DOCUMENT>\n  <HEADER>\n</ANNOTATION_DOCUMENT>")
    with pytest.raises(AnnotationError, match="line 3, column 3: is not XML: mismatched tag"):
        read(tmp_path / "a.eaf")
    (tmp_path / "b.eaf").write_text("<html></html>")
    with pytest.raises(AnnotationError, match="line 1, column 1: expected an ELAN document"):
        read(tmp_path / "b.eaf")


@pytest.mark.parametrize("encoding", ["UTF-D", "shift_jis"])
def test_elan_in_an_encoding_that_cannot_be_read(read, tmp_path, encoding):
    text = (SAMPLES / "elan.eaf").read_text()
    (tmp_path / "odd.eaf").write_text(text.replace("UTF-8", encoding, 1))
    with pytest.raises(AnnotationError, match=r"odd\.eaf', line 1: is in an encoding that cannot be read"):
        read(tmp_path / "odd.eaf", tiers=["sentences"])


def test_elan_with_a_shifted_video_is_refused(read, tmp_path):
    text = (SAMPLES / "elan.eaf").read_text().replace("MIME_TYPE", 'TIME_ORIGIN="1200" MIME_TYPE')
    (tmp_path / "a.eaf").write_text(text)
    with pytest.raises(AnnotationError, match="TIME_ORIGIN 1200"):
        read(tmp_path / "a.eaf", tiers=["sentences"])


def test_elan_is_about_the_first_video_it_names_not_the_sound_beside_it(read, tmp_path):
    text = (SAMPLES / "elan.eaf").read_text()
    sound = '<MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/own/kitchen.wav" TIME_ORIGIN="40" MIME_TYPE="audio/x-wav"/>'
    (tmp_path / "a.eaf").write_text(text.replace("<MEDIA_DESCRIPTOR", f"{sound}<MEDIA_DESCRIPTOR", 1))
    assert set(read(tmp_path / "a.eaf", tiers=["translation"])) == {("kitchen", "Er wäscht ein Messer.")}
    (tmp_path / "b.eaf").write_text(text.replace("kitchen.mp4", "kitchen.wav"))
    with pytest.raises(AnnotationError, match=r"line 4, column 9: './kitchen.wav' is no video; .*--video NAME"):
        read(tmp_path / "b.eaf", tiers=["translation"])
    assert read(tmp_path / "b.eaf", tiers=["translation"], video="kitchen")


@pytest.mark.parametrize(
    ("file", "first"), [("kitchen.vtt", "He washes a knife & dries it."), ("kitchen.srt", "He washes a knife.")]
)
def test_captions_are_sentences_about_the_video_named_like_the_file(read, file, first):
    assert read(file) == {("kitchen", first): [[5.0, 11.0]], ("kitchen", "The oven is opened."): [[20.5, 24.0]]}


def test_captions_of_another_video(read):
    assert set(read("kitchen.srt", video="dance")) == {
        ("dance", "He washes a knife."),
        ("dance", "The oven is opened."),
    }


def test_captions_name_line_and_column_of_a_time_that_is_none(read, tmp_path):
    (tmp_path / "kitchen.srt").write_text("1\n00:00:05,000 --> 11\nA knife.\n\n2\n0:1:2:3 -> 4\nx\n")
    with pytest.raises(AnnotationError, match=r"line 2, column 18: .*'11' \(1 more .*: line 5, column 1\)"):
        read(tmp_path / "kitchen.srt")
    (tmp_path / "kitchen.vtt").write_text("1\n00:00:05,000 --> 00:00:06,000\nA knife.\n")
    with pytest.raises(AnnotationError, match=r"line 1, column 1: .*begins with the word WEBVTT"):
        read(tmp_path / "kitchen.vtt")


def test_jsonl_keeps_its_rows_and_takes_durations_from_videos(videos):
    rows, report = import_annotations(SAMPLES / "lighthouse.jsonl", videos)
    assert [row["duration"] for row in rows] == [42, 61.0]
    assert rows[0]["saliency_scores"] == [[1, 2, 3], [2, 2, 2], [3, 3, 3]]
    assert rows[1]["relevant_windows"] == [[5.0, 11.0]]
    assert "domain" not in rows[1]
    assert report.durations_measured == 1
    assert validate_rows(rows).ok


def test_jsonl_names_the_line_that_is_no_row(read, tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"vid": "dance", "query": "x", "duration": 42, "relevant_windows": [[1, 2]]}\n{"vid"\n'
    )
    with pytest.raises(AnnotationError, match="line 2: is not JSON"):
        read(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"vid": "dance", "sentence": "x", "timestamps": ["1", 2]}\n')
    with pytest.raises(AnnotationError, match=r"line 1: expected windows"):
        read(tmp_path / "b.jsonl")


def test_several_files_of_several_formats_become_one(videos):
    rows, report = import_annotations(
        [SAMPLES / "kitchen.srt", SAMPLES / "via.json"], videos, ImportOptions(attribute="sentence")
    )
    windows = {(row["vid"], row["query"]): row["relevant_windows"] for row in rows}
    assert windows[("kitchen", "He washes a knife.")] == [[5.0, 11.0]]  # in both files, once
    assert (len(rows), report.videos, len(report.taken_for)) == (3, 2, 2)


def test_a_file_of_no_known_format_says_what_is_known(read, tmp_path):
    (tmp_path / "a.docx").write_text("")
    with pytest.raises(AnnotationError, match=r"cannot tell the format.*\.csv.*\.eaf.*--format"):
        read(tmp_path / "a.docx")
    (tmp_path / "a.json").write_text('{"rows": []}')
    with pytest.raises(AnnotationError, match="neither an export of Label Studio nor a VIA project"):
        read(tmp_path / "a.json")
    (tmp_path / "b.json").write_text('[\n{"data": }]')
    with pytest.raises(AnnotationError, match="line 2, column 10: is not JSON"):
        read(tmp_path / "b.json")


def test_places_in_json_are_those_of_the_text():
    value = {"a": [1, {"b, :]": ["x", {}]}], "c": {"d": None}}
    text = json.dumps(value, indent=2)
    lines = text.splitlines()
    for keys, shown in [(("a", 1, "b, :]", 0), '"x"'), (("c", "d"), "null"), (("a", 0), "1")]:
        line, column = (int(part.split()[1]) for part in place_in_json(text, keys).split(" (")[0].split(", "))
        assert lines[line - 1][column - 1 :].startswith(shown)
    assert place_in_json(text, ("a", 9)).startswith("line 2, column 8")  # where the way ends


DIGITS = "9" * 400


def elan(slots: str, annotations: str) -> str:
    order = f"<TIME_ORDER>{slots}</TIME_ORDER>"
    return f'<ANNOTATION_DOCUMENT><HEADER/>{order}<TIER TIER_ID="t">{annotations}</TIER></ANNOTATION_DOCUMENT>'


def label_studio(tasks: int = 1, **fields) -> str:
    regions = [{"ranges": [{"start": 1, "end": 24}], "timelinelabels": ["Bowing"]}]
    return json.dumps([{"video": "dance.mp4", "fps": 24, "regions": regions, **fields}] * tasks)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("kitchen.srt", f"1\n{DIGITS}:00:01,000 --> {DIGITS}:00:02,000\nA knife.\n", "a time such as"),
        ("a.csv", f"video,start,end,sentence\ndance,1,{DIGITS},x\n", "which is too large"),
        ("a.csv", "video,start,end,sentence\ndance,1,1e999,x\n", "which is too large"),
        ("a.json", "[" * 100_000, "is nested too deeply"),
        ("a.json", '{"v1": {}, "v2": {}, "v1": {}}', "is not JSON: an object has 'v1' twice"),
        ("a.json", label_studio(fps=-1), "not how many there are in a second"),
        ("a.json", label_studio(fps=True), "not how many there are in a second"),
        ("a.json", label_studio(fps=float("nan")), "not how many there are in a second"),
        ("a.json", label_studio(fps=0.5).replace("0.5", DIGITS), "is not JSON: an integer of 400 digits"),
        (
            "a.eaf",
            elan(
                f'<TIME_SLOT TIME_SLOT_ID="a" TIME_VALUE="{DIGITS}"/>',
                '<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="1" TIME_SLOT_REF1="a" TIME_SLOT_REF2="a">'
                "<ANNOTATION_VALUE>x</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>",
            ),
            "a number of 400 digits",
        ),
    ],
)
def test_numbers_that_no_time_has_are_named(read, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(AnnotationError, match=message):
        read(tmp_path / name)


def reference(name: int, parent: int, text: str = "x") -> str:
    value = f"<ANNOTATION_VALUE>{text}</ANNOTATION_VALUE>"
    return (
        f'<ANNOTATION><REF_ANNOTATION ANNOTATION_ID="{name}" ANNOTATION_REF="{parent}">{value}</REF_ANNOTATION>'
        "</ANNOTATION>"
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", label_studio(tasks=6000)),
        ("a.json", label_studio(tasks=6000, regions=[{"ranges": [], "timelinelabels": []}])),
        ("a.eaf", elan("", "".join(reference(i, i + 1) for i in range(6000)) + reference(6000, 0))),
        ("a.eaf", elan("", reference(0, 1, "&amp;" * 300_000))),
    ],
    ids=["tasks", "faults", "references", "entities"],
)
def test_large_files_take_time_by_their_size(read, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    started = time.process_time()
    with suppress(AnnotationError):
        read(tmp_path / name)
    assert time.process_time() - started < 5
