"""Answers as a piece of a page: what it says, where its bars stand, and that a sentence cannot break it."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest

from modeling_bmdetr.timeline import answers_html, as_csv, clock, error_html, is_absent

ANSWER = {
    "query": "she opens the door",
    "moments": [{"start": 5.0, "end": 10.0, "score": 0.9}, {"start": 12.5, "end": 20.0, "score": 0.2}],
    "frame_probabilities": [0.0, 1.0, 0.5, 0.0],
    "duration": 20.0,
    "clip_length": 5.0,
}


class Tags(HTMLParser):
    """Opened and closed tags, and the text between them."""

    def __init__(self, page):
        super().__init__()
        self.open, self.names, self.text, self.attributes = [], [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes.append(dict(attrs))
        if tag != "polyline":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize(
    ("seconds", "decimals", "text"),
    [(7, 0, "0:07"), (59.96, 1, "1:00.0"), (125.34, 1, "2:05.3"), (3725, 0, "1:02:05"), (0, 1, "0:00.0")],
)
def test_times_are_written_as_players_do(seconds, decimals, text):
    assert clock(seconds, decimals) == text


def test_bars_stand_where_the_moments_are():
    page = answers_html([ANSWER], "a.mp4")
    bars = re.findall(r'data-seek="([\d.]+)"[^>]*left:([\d.]+)%;width:([\d.]+)%', page)
    assert [tuple(map(float, bar)) for bar in bars] == [(5.0, 25.0, 25.0), (12.5, 62.5, 37.5)]
    assert page.count('class="bm-moment"') == 2
    points = re.search(r'points="([^"]+)"', page)[1].split()
    assert points[0] == "0.00,97.0"
    assert points[2] == "25.00,3.0", "p of 1 is at the top"


def test_what_is_known_of_presence_is_said():
    assert "in this video" not in answers_html([ANSWER], "a.mp4")
    assert "in this video (presence 0.93)" in answers_html([{**ANSWER, "presence": 0.93}], "a.mp4")
    absent = {**ANSWER, "presence": 0.04}
    assert "probably not in this video (presence 0.04)" in answers_html([absent], "a.mp4")
    assert is_absent(absent)
    assert "probably not in this video" in answers_html([{**ANSWER, "moments": []}], "a.mp4")


def test_uncalibrated_scores_are_said_to_be_so():
    assert "not calibrated" in answers_html([ANSWER], "a.mp4")
    assert "not calibrated" not in answers_html([{**ANSWER, "calibrated": True}], "a.mp4")


@pytest.mark.parametrize(
    "query",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "a & b < c",
        "$x$ ${value}",
        "ابحث عن الباب",
        "x" * 3000,
    ],
)
def test_a_sentence_is_shown_as_it_is_and_breaks_nothing(query):
    parsed = Tags(answers_html([{**ANSWER, "query": query}], '"><b>.mp4'))
    assert not parsed.open
    assert query in parsed.text
    assert set(parsed.names) <= {"div", "section", "span", "button", "svg", "polyline", "ul", "li", "small", "a"}
    assert "<b>" not in Tags(error_html("no <b> in " + query)).names


def test_downloads_hold_the_answers():
    page = answers_html([ANSWER], "a.mp4")
    links = {a["download"]: a["href"] for a in Tags(page).attributes if "download" in a}
    stored = {name: base64.b64decode(href.partition("base64,")[2]).decode() for name, href in links.items()}
    assert json.loads(stored["answers.json"]) == {"video": "a.mp4", "answers": [ANSWER]}
    rows = list(csv.DictReader(io.StringIO(stored["answers.csv"])))
    assert [(row["rank"], row["start"], row["score"]) for row in rows] == [
        ("1", "5.000", "0.9000"),
        ("2", "12.500", "0.2000"),
    ]


def test_a_sentence_without_a_moment_has_a_line_of_its_own():
    answer = {**ANSWER, "moments": [], "presence": 0.1}
    rows = list(csv.DictReader(io.StringIO(as_csv([{"video": "a,b.mp4", "answers": [answer]}]))))
    assert [(row["video"], row["start"], row["presence"]) for row in rows] == [("a,b.mp4", "", "0.1")]


@pytest.mark.parametrize("duration", [0.04, 0.5, 7.0, 65.0, 3600.0, 7 * 3600.0])
def test_the_axis_has_few_readable_ticks_on_the_page(duration):
    page = answers_html([{**ANSWER, "duration": duration, "moments": [], "frame_probabilities": None}], "a.mp4")
    places = [float(place) for place in re.findall(r'<span style="left:([\d.]+)%', page)]
    assert 1 <= len(places) <= 8
    assert max(places) <= 96


@pytest.mark.parametrize(
    "text", ["=cmd|' /C calc'!A0", "+1+1", "-2", "@SUM(A1)", "\t=1", "a = b", "a\n=1", 'say "no", twice']
)
def test_no_cell_of_a_table_is_a_formula(text):
    """File names may come from strangers."""
    (row,) = csv.DictReader(io.StringIO(as_csv([{"video": text, "answers": [{"query": text, "moments": []}]}])))
    assert row["video"] == row["query"] == (text if text[0] in "as" else f"'{text}")
