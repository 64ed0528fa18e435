"""Paraphrases of Moving Shapes: other words, other forms, the same events."""

import re

import numpy as np

from dataset_scripts import shapes_paraphrases, shapes_sentences
from dataset_scripts.moving_shapes import FPS
from dataset_scripts.shapes_paraphrases import SHARED_WORDS, paraphrase, paraphrase_rows
from dataset_scripts.shapes_scenes import COLOURS, SHAPES, sample_scene
from dataset_scripts.shapes_sentences import describe_scene

VIDEOS = 120


def words_of(sentence):
    return set(re.findall(r"[a-z]+", sentence.lower()))


def described(index):
    rng = np.random.default_rng((0, 2, index))
    return describe_scene(rng, sample_scene(rng, FPS))


def test_paraphrases_share_only_articles_and_directions_with_the_sentences_of_the_data_set():
    plain, free = set(), set()
    for index in range(VIDEOS):
        rng = np.random.default_rng(index)
        for told in described(index):
            plain |= words_of(told.sentence)
            free |= words_of(paraphrase(rng, told))
    assert plain & free == SHARED_WORDS
    assert len(free) > 50
    assert not set(shapes_paraphrases.TEMPLATES) & set(shapes_sentences.TEMPLATES)


def test_everything_that_can_be_described_can_be_said_differently():
    assert set(shapes_paraphrases.COLOUR_WORDS) == set(COLOURS)
    assert set(shapes_paraphrases.SHAPE_WORDS) == set(SHAPES)
    actions = {*shapes_sentences.VERBS, *shapes_sentences.VAGUE_VERBS, *shapes_sentences.DIRECTION_WORDS}
    assert {*shapes_paraphrases.VERBS, *shapes_paraphrases.DIRECTION_WORDS} == actions


def test_paraphrases_leave_out_what_the_sentence_leaves_out():
    colours = {word for words in shapes_paraphrases.COLOUR_WORDS.values() for word in words}
    for index in range(20):
        for told in described(index):
            said = words_of(paraphrase(np.random.default_rng(index), told))
            assert bool(said & colours) == (told.colour is not None)
            if told.colour:
                assert said & set(shapes_paraphrases.COLOUR_WORDS[told.colour])


def test_rows_keep_everything_but_the_sentence():
    rows = [
        {"qid": f"test_{index:04d}_{number}", "vid": f"test_{index:04d}", "query": told.sentence, "duration": 30.0}
        for index in range(3)
        for number, told in enumerate(described(index))
    ]
    said = paraphrase_rows(rows, 0, "test")
    assert [{**row, "query": ""} for row in said] == [{**row, "query": ""} for row in rows]
    assert all(one["query"] != other["query"] for one, other in zip(rows, said, strict=True))
    assert said == paraphrase_rows(rows, 0, "test")
    assert len(paraphrase_rows([*rows, {**rows[0], "qid": "test_0000_absent"}], 0, "test")) == len(rows)
