"""CSV, TSV and spreadsheets: guessed columns, every way to write a time, and one message for what cannot be read."""

import datetime
import unicodedata
import zipfile

import pytest
from annotation_samples import SAMPLES

from modeling_bmdetr.cli import main
from modeling_bmdetr.data import read_rows, validate_file
from modeling_bmdetr.data.features.video_files import VideoFiles
from modeling_bmdetr.data.rows.importers import AnnotationError, ImportOptions, import_annotations, sheets
from modeling_bmdetr.data.rows.importers.moments import parse_time

EXPECTED = {
    ("dance", "A girl spins around."): [[3.0, 9.5]],
    ("dance", "Two people leave the stage."): [[36.0, 40.0]],
    ("kitchen", "He washes a knife."): [[5.0, 11.0], [40.0, 44.0]],
    ("kitchen", "The oven is opened, then closed."): [[20.5, 24.0]],
}


@pytest.fixture
def table(tmp_path):
    def write(text, name="own.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_a_table_with_every_way_to_write_a_time(read):
    assert read("table.csv") == EXPECTED


def test_the_report_says_what_columns_were_taken_for(videos):
    _, report = import_annotations(SAMPLES / "table.csv", videos)
    assert report.taken_for == [
        "table, cells separated by a comma; video = Video, start = Start time, end = End time, query = Sentence; "
        "times in seconds"
    ]
    assert (report.rows, report.moments, report.videos, report.durations_measured) == (4, 5, 2, 2)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7), ("7.25", 7.25), (" 1:05 ", 65), ("1:05.5", 65.5), ("75:00", 4500), ("00:01:05,500", 65.5), ("2s", 2)],
)
def test_times(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "1:75", "1:60:00", "noon", "1.2.3", "1:2:3:4", "1e", "nan"])
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match="expected a time such as"):
        parse_time(text)


def test_tabs_semicolons_and_utf16(read, table):
    text = "vid\tfrom\tto\tcaption\ndance\t1\t2\tÄpfel\n"
    assert read(table(text, "own.tsv")) == {("dance", "Äpfel"): [[1.0, 2.0]]}
    assert read(table(text.replace("\t", ";"), "own.csv")) == {("dance", "Äpfel"): [[1.0, 2.0]]}
    assert read(table(text, "own.txt", "utf-16")) == {("dance", "Äpfel"): [[1.0, 2.0]]}


def test_text_of_another_encoding_names_line_and_byte(read, table):
    path = table("vid,from,to,caption\ndance,1,2,Äpfel\n", encoding="latin-1")
    with pytest.raises(AnnotationError, match=r"line 2, byte 11: is not UTF-8 text.*--encoding"):
        read(path)
    assert read(path, encoding="latin-1") == {("dance", "Äpfel"): [[1.0, 2.0]]}
    with pytest.raises(ValueError, match="encoding must be one that Python knows"):
        read(path, encoding="utf-99")


def test_units_are_read_from_the_names_of_the_columns(read, table):
    milliseconds = table("video,Start (ms),End (ms),query\ndance,1500,2500,a\n")
    assert read(milliseconds) == {("dance", "a"): [[1.5, 2.5]]}
    frames = table("video,startFrame,end_frame,query\ndance,3,7,a\n")
    assert read(frames) == {("dance", "a"): [[1.5, 3.5]]}  # the video has 2 frames per second
    assert read(frames, fps=1) == {("dance", "a"): [[3.0, 7.0]]}
    own = table("video,start_frame,end_frame,query,fps\ndance,30,60,a,30\n")
    assert read(own) == {("dance", "a"): [[1.0, 2.0]]}
    with pytest.raises(AnnotationError, match="start is in frames, end in seconds; give --times"):
        read(table("video,start_frame,end_s,query\ndance,3,7,a\n"))


def test_columns_can_be_named_and_numbered(read, table):
    path = table("A,B,C,D\ndance,1,2,a sentence\n")
    with pytest.raises(AnnotationError, match=r"line 1: cannot tell which column is the video and the start and .*'A'"):
        read(path)
    columns = {"video": "a", "start": "2", "end": "C", "query": "4"}
    assert read(path, columns=columns) == {("dance", "a sentence"): [[1.0, 2.0]]}
    bare = table("dance,1,2,a sentence\n", "bare.csv")
    numbers = {"video": "1", "start": "2", "end": "3", "query": "4"}
    assert read(bare, columns=numbers, header=0) == {("dance", "a sentence"): [[1.0, 2.0]]}
    with pytest.raises(AnnotationError, match="has no column 'Z' for the query"):
        read(path, columns={**columns, "query": "Z"})
    with pytest.raises(ValueError, match="columns must be of video, start"):
        read(path, columns={"begin": "B"})


def test_two_columns_that_could_be_the_sentence_are_not_guessed_between(read, table):
    path = table("video,start,end,label,sentence\ndance,1,2,x,a sentence\n")
    with pytest.raises(AnnotationError, match="'label' and 'sentence' could all be the query; choose one"):
        read(path)
    assert read(path, columns={"query": "sentence"}) == {("dance", "a sentence"): [[1.0, 2.0]]}


def test_two_header_lines_are_one_clear_message(read, table):
    path = table("video,start,end,query\nname,in s,in s,text\ndance,1,2,a\n")
    with pytest.raises(
        AnnotationError, match=r"line 2, column 2: start and end are 'in s' and 'in s': a second header"
    ):
        read(path)
    titled = table("Our annotations\n\nvideo,start,end,query\ndance,1,2,a\n")
    assert read(titled, header=3) == {("dance", "a"): [[1.0, 2.0]]}


def test_decimal_commas_are_one_clear_message(read, table):
    path = table("video;start;end;query\ndance;1,5;2,5;a\ndance;3,5;4;b\ndance;5;6;c\n")
    with pytest.raises(AnnotationError) as caught:
        read(path)
    assert "line 2, column 2: start: '1,5' has a decimal comma; write a point, or" in str(caught.value)
    assert str(caught.value).endswith("(1 more could not be read: line 3, column 2)")
    assert read(path, decimal=",") == {
        ("dance", "a"): [[1.5, 2.5]],
        ("dance", "b"): [[3.5, 4]],
        ("dance", "c"): [[5, 6]],
    }


def test_decimal_commas_without_quotes_shift_the_cells(read, table):
    with pytest.raises(AnnotationError, match=r"line 2, column 5: has 6 cells where the header has 4; a decimal comma"):
        read(table("video,start,end,query\ndance,1,5,2,5,a\n"))


def test_cells_that_are_empty_or_no_time(read, table):
    path = table("video,start,end,query\ndance,1,2,\ndance,one,2,b\n,1,2,c\n")
    with pytest.raises(AnnotationError, match=r"line 2, column 4: query is empty \(2 more .*line 3, column 2; line 4"):
        read(path)
    with pytest.raises(AnnotationError, match="cannot be split into cells"):
        read(table('video,start,end,query\ndance,1,2,"a\n'))
    with pytest.raises(AnnotationError, match="is empty"):
        read(table(""))
    with pytest.raises(AnnotationError, match="no line below its header"):
        read(table("video,start,end,query\n"))


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ("50", "60", r"50.00 s to 60.00 s is past the end of the video \(42.00 s\)"),
        ("40", "60", r"past the end .*--past-end clip"),
        ("5", "5", "does not end after its start"),
        ("9", "5", "does not end after its start"),
        ("-1", "5", "begins before 0"),
    ],
)
def test_times_that_do_not_fit_the_video_name_their_line(read, table, start, end, message):
    path = table(f"video,start,end,query\ndance,1,2,a\ndance,{start},{end},b\n")
    with pytest.raises(AnnotationError, match=f"line 3: .*{message}"):
        read(path)


def test_a_moment_just_past_the_end_is_cut_and_counted(videos, table):
    path = table("video,start,end,query\ndance,40,42.6,a\n")
    rows, report = import_annotations(path, videos)
    assert rows[0]["relevant_windows"] == [[40.0, 42.0]]
    assert report.clipped == 1
    late = table("video,start,end,query\ndance,40,90,a\n", "late.csv")
    assert import_annotations(late, videos, ImportOptions(past_end="clip"))[0][0]["relevant_windows"] == [[40.0, 42.0]]
    assert import_annotations(late, videos, ImportOptions(past_end="keep"))[0][0]["relevant_windows"] == [[40.0, 90.0]]


def test_durations_come_from_the_file_or_the_videos(read, table):
    path = table("video,start,end,query,duration\nelsewhere,1,2,a,0:42\n")
    rows, _ = import_annotations(path)
    assert rows[0]["duration"] == 42.0
    bare = table("video,start,end,query\ndance,1,2,a\n")
    with pytest.raises(AnnotationError, match=r"line 2: the duration of video 'dance' is not in the file; .*--videos"):
        import_annotations(bare)
    with pytest.raises(AnnotationError, match="line 2: there is no video 'opera' in"):
        read(table("video,start,end,query\nopera,1,2,a\n"))


@pytest.mark.parametrize(
    ("column", "value"),
    [("duration_ms", "42000"), ("Duration (ms)", "41990.5"), ("duration_frames", "84"), ("video_length_s", "0:42")],
)
def test_a_duration_has_the_unit_of_its_own_column(table, videos, column, value):
    path = table(f"video,start_ms,end_ms,query,{column},fps\ndance,1000,2000,a,{value},2\n")
    for folder in (None, videos):
        rows, report = import_annotations(path, folder)
        assert rows[0]["duration"] == pytest.approx(42.0, abs=0.01)
        assert rows[0]["relevant_windows"] == [[1.0, 2.0]]
        assert report.durations_measured == 0
    unit = {"duration_ms": "milliseconds", "Duration (ms)": "milliseconds", "duration_frames": "frames"}
    assert report.taken_for[0].endswith(f"times in milliseconds, duration in {unit.get(column, 'seconds')}")


def test_a_duration_in_frames_needs_a_rate(table, videos):
    path = table("video,start,end,query,duration_frames\ndance,1,2,a,84\n")
    assert import_annotations(path, videos)[0][0]["duration"] == 42.0
    with pytest.raises(AnnotationError, match="line 2: the frame rate of video 'dance' is not in the file"):
        import_annotations(path)


def test_a_duration_that_is_not_that_of_the_video_is_refused(table, videos, tmp_path):
    path = table("video,start,end,query,duration\ndance,1,2,a,42.9\ndance,30,41,b,11\ndance,1,2,c,42000\n")
    said = r"line 3: the duration is 11.00 s, but '\S*dance.mp4' is 42.00 s long; .*--columns duration=NAME.*line 4"
    with pytest.raises(AnnotationError, match=said):
        import_annotations(path, videos)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "dance.mp4").write_bytes(b"no video")
    stated = table("video,start,end,query,duration\ndance,1,2,a,42\n")
    assert import_annotations(stated, tmp_path / "broken")[0][0]["duration"] == 42.0


def test_videos_are_found_by_path_address_and_stem(table, videos, tmp_path):
    folder = tmp_path / "all"
    (folder / "part").mkdir(parents=True)
    (folder / "part" / "dance.mp4").write_bytes((videos / "dance.mp4").read_bytes())
    lines = ["C:\\own\\dance.mp4,1,2,a", "https://example.org/v/dance.mp4?x=1,1,2,b", "dance,1,2,c"]
    rows, _ = import_annotations(table("video,start,end,query\n" + "\n".join(lines)), folder)
    assert {row["vid"] for row in rows} == {"dance"}
    assert {row["video"] for row in rows} == {"part/dance.mp4"}
    (folder / "dance.mp4").write_bytes((videos / "dance.mp4").read_bytes())
    with pytest.raises(AnnotationError, match=r"could be .*dance.mp4' or .*dance.mp4'"):
        import_annotations(table("video,start,end,query\ndance,1,2,c"), folder)


@pytest.mark.parametrize("sentence", ["a", "b"])
def test_two_durations_of_one_video_are_refused(table, sentence):
    path = table(f"video,start,end,query,duration\ndance,1,2,a,42\ndance.mp4,5,7,{sentence},52\n")
    with pytest.raises(
        AnnotationError, match=r"line 3: the video 'dance.mp4' is 52.000 s long here, but 42.000 s before"
    ):
        import_annotations(path)


def test_videos_of_one_name_in_two_folders_are_not_one(table, videos, tmp_path):
    path = table("video,start,end,query,duration\nday1/cam.mp4,1,2,a,42\nday2/cam.mp4,1,2,a,42\n")
    said = "line 3: 'day2/cam.mp4' and 'day1/cam.mp4' are different videos with one name; rename one of the files"
    with pytest.raises(AnnotationError, match=f"{said}, or give the folder of videos if they are one"):
        import_annotations(path)
    with pytest.raises(AnnotationError, match=f"{said}$"):
        import_annotations(path, videos)  # which has neither
    for day in ("day1", "day2"):
        (tmp_path / day).mkdir()
        (tmp_path / day / "cam.mp4").write_bytes((videos / "dance.mp4").read_bytes())
    with pytest.raises(AnnotationError, match=f"{said}$"):
        import_annotations(path, tmp_path)
    same = table("video,start,end,query,duration\n./day1/cam.mp4,1,2,a,42\nday1\\cam.MP4,5,7,a,42\nday1/cam,8,9,a,42\n")
    assert import_annotations(same)[0][0]["relevant_windows"] == [[1, 2], [5, 7], [8, 9]]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        *(("dance.MP4", "dance.mp4"), ("dance.mp4", "dance.MOV"), ("dance.mov", "dance")),
        *((unicodedata.normalize("NFD", "été.mp4"), f"été{suffix}") for suffix in (".mp4", "", ".MP4")),
    ],
)
def test_videos_of_cameras_and_other_systems_are_found(table, videos, tmp_path, file, name):
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / file).write_bytes((videos / "dance.mp4").read_bytes())
    (folder / f"._{file}").write_bytes(b"what macOS puts beside a file")
    rows, _ = import_annotations(table(f"video,start,end,query\n{name},1,2,a\n"), folder)
    assert VideoFiles([folder]).find(rows[0]) == folder / file


def test_a_name_with_a_dot_is_not_that_of_another_video(table, videos, tmp_path):
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "cam.mp4").write_bytes((videos / "dance.mp4").read_bytes())
    with pytest.raises(AnnotationError, match=r"there is no video 'cam\.2'"):
        import_annotations(table("video,start,end,query\ncam.2,1,2,a\n"), folder)


def test_identifiers_are_the_same_whenever_a_sentence_is_imported(videos, table):
    first, _ = import_annotations(table("video,start,end,query\ndance,1,2,a\nkitchen,1,2,a\n"), videos)
    later, _ = import_annotations(table("video,start,end,query\ndance,5,9,b\ndance,3,4,a\n"), videos)
    assert first[0]["qid"] == later[1]["qid"]
    assert len({row["qid"] for row in [*first, *later]}) == 3
    own, _ = import_annotations(table("qid,video,start,end,query\n7,dance,1,2,a\n8,dance,1,2,a\n"), videos)
    assert [row["qid"] for row in own] == ["7", "8"]


def test_spreadsheets_are_read_as_they_are_shown(read, tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["Video", "Start", "End", "Sentence"])
    sheet.append(["dance.mp4", 3, 9.5, "A girl spins around."])
    sheet.append(["dance.mp4", datetime.time(0, 36), datetime.time(0, 0, 40), "Two people leave the stage."])
    sheet["B3"].number_format = "h:mm"  # shows 0:36, as typed for 36 seconds
    sheet["C3"].number_format = "h:mm:ss"
    sheet.append([])
    sheet.append(["kitchen.mp4", datetime.timedelta(seconds=5), "0:11", "He washes a knife."])
    sheet["B5"].number_format = "mm:ss.0"
    book.save(tmp_path / "own.xlsx")
    assert read(tmp_path / "own.xlsx") == {
        ("dance", "A girl spins around."): [[3.0, 9.5]],
        ("dance", "Two people leave the stage."): [[36.0, 40.0]],
        ("kitchen", "He washes a knife."): [[5.0, 11.0]],
    }
    sheet["C2"] = "later"
    book.create_sheet("Notes")
    book.save(tmp_path / "own.xlsx")
    with pytest.raises(AnnotationError, match=r"sheet 'Sheet', cell C2: End: expected a time.*'later'"):
        read(tmp_path / "own.xlsx")
    with pytest.raises(AnnotationError, match="has no sheet 'Notse'; its sheets are Sheet, Notes"):
        read(tmp_path / "own.xlsx", sheet="Notse")
    (tmp_path / "bad.xlsx").write_text("no zip")
    with pytest.raises(AnnotationError, match="is not a spreadsheet that can be read"):
        read(tmp_path / "bad.xlsx")


def packed_sheet(path, text="<worksheet/>"):
    """A spreadsheet of one row whose sheet is replaced by this XML."""
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["video", "start", "end", "sentence"])
    book.save(path)
    with zipfile.ZipFile(path) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(path, "w") as changed:
        for name, part in parts.items():
            changed.writestr(name, text if name == "xl/worksheets/sheet1.xml" else part)
    return path


SHEET = (
    '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>{}</sheetData></worksheet>'
)


@pytest.mark.parametrize(
    "text",
    [
        *("", "<worksheet>", SHEET.format('<row r="x"/>'), SHEET.format('<row r="1"><c r="??"><v>1</v></c></row>')),
        *(SHEET.format(f'<row r="1"><c r="A1" t="{kind}"><v>9x</v></c></row>') for kind in ("s", "n", "d", "b")),
        SHEET.format('<row r="1"><c r="A1" s="99"><v>1e400</v></c></row>'),
    ],
)
def test_a_damaged_spreadsheet_is_named(read, tmp_path, text):
    with pytest.raises(AnnotationError, match=r"own\.xlsx"):
        read(packed_sheet(tmp_path / "own.xlsx", text))


def test_spreadsheets_that_span_or_unpack_to_more_than_memory_holds_are_refused(read, tmp_path, monkeypatch):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["Video", "Start", "End", "Sentence"])
    book.active.cell(row=1_000_000, column=16_000).value = "x"
    book.save(tmp_path / "own.xlsx")
    with pytest.raises(AnnotationError, match="row 626: the sheet spans more than 10,000,000 cells"):
        read(tmp_path / "own.xlsx")
    monkeypatch.setattr(sheets, "MOST_BYTES", 1000)
    with pytest.raises(AnnotationError, match="bytes, more than 1,000"):
        read(tmp_path / "own.xlsx")


def test_lines_end_where_a_table_says_and_not_within_a_sentence(read, tmp_path):
    """A text editor leaves vertical tabs and separators of Unicode in sentences."""
    (tmp_path / "own.csv").write_text("video,start,end,sentence\ndance,3,9,A girl\vspins\u2028around.\n")
    assert [" ".join(sentence.split()) for _, sentence in read(tmp_path / "own.csv")] == ["A girl spins around."]


def test_the_command_writes_rows_that_are_valid(videos, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert main(["import", str(SAMPLES / "table.csv"), "--videos", str(videos), "--out", str(out)]) == 0
    assert "video = Video, start = Start time" in capsys.readouterr().out
    assert validate_file(out, videos).ok
    assert {(row["vid"], row["query"]): row["relevant_windows"] for row in read_rows(out)} == EXPECTED


def test_the_command_leaves_nothing_half_written(videos, tmp_path, table, capsys):
    out = tmp_path / "rows.jsonl"
    out.write_text("what was there\n")
    path = table("video,start,end,query\ndance,1,2,a\ndance,90,95,b\n")
    assert main(["import", str(path), "--videos", str(videos), "--out", str(out)]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("bmdetr import: '")
    assert "line 3" in message
    assert "\n" not in message
    assert out.read_text() == "what was there\n"
    assert main(["import", str(path), "--columns", "query", "--out", str(out)]) == 2
    assert "columns must be ROLE=NAME" in capsys.readouterr().err


def test_the_command_does_not_write_over_what_it_reads(videos, table, capsys):
    path = table("video,start,end,query\ndance,1,2,a\n")
    before = path.read_text()
    assert main(["import", str(path), "--videos", str(videos), "--out", str(path)]) == 2
    assert "is what is read, and would be lost" in capsys.readouterr().err
    assert path.read_text() == before
