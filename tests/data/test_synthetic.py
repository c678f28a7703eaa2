"""The generator of rendered lines."""

import itertools

import numpy as np
import pytest

from dsocr.data import load_ocr_dataset
from dsocr.data.synthetic import (
    FONTS,
    HANDWRITING_FONTS,
    HELD_OUT_FONTS,
    LINE_SIZE,
    LOOK_ALIKES,
    generate_lines,
    write_dataset,
)


def first(n, *args, **kwargs):
    return list(itertools.islice(generate_lines(*args, **kwargs), n))


def test_a_seed_fixes_texts_and_pixels():
    for style in FONTS:
        one, two = first(20, style, seed=3), first(20, style, seed=3)
        assert [line.text for line in one] == [line.text for line in two]
        assert all(np.array_equal(a.image, b.image) for a, b in zip(one, two, strict=True))
        assert [line.text for line in first(20, style, seed=4)] != [line.text for line in one]


def test_held_out_fonts_are_not_trained_on():
    assert not set(HANDWRITING_FONTS) & set(HELD_OUT_FONTS)
    assert {line.font for line in first(200, "handwriting")} == set(HANDWRITING_FONTS)
    assert {line.font for line in first(50, "unseen_handwriting")} == set(HELD_OUT_FONTS)
    assert len(HANDWRITING_FONTS) + len(HELD_OUT_FONTS) >= 8


def test_every_font_has_its_licence():
    from importlib.resources import files

    for fonts in FONTS.values():
        for font in fonts:
            licence = (files("dsocr.data") / "fonts" / f"{font}.LICENSE.txt").read_text(encoding="utf-8-sig")
            assert "SIL OPEN FONT LICENSE" in licence.upper()


def test_lengths_scripts_and_sizes():
    lines = first(200, "print", min_length=3, max_length=9)
    assert {len(line.text) for line in lines} == set(range(3, 10))
    assert {line.script for line in lines} == {"latin", "russian"}
    assert {line.image.size for line in lines} == {LINE_SIZE}
    assert {line.script for line in first(20, scripts=("russian",))} == {"russian"}


def test_no_line_could_be_of_either_script():
    for line in first(500, "print", max_length=3):
        letters = [character for character in line.text if character.isalpha()]
        assert not letters or set(letters) - LOOK_ALIKES


def test_every_line_has_ink_and_fits():
    for style in FONTS:
        for line in first(100, style):
            pixels = np.asarray(line.image.convert("L"), dtype=int)
            assert pixels.max() - pixels.min() > 60, line.text


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="style='cuneiform'"):
        next(generate_lines("cuneiform"))
    with pytest.raises(ValueError, match="greek"):
        next(generate_lines(scripts=("greek",)))


def test_a_written_dataset_is_read_back(tmp_path):
    lines = first(5)
    write_dataset(tmp_path, lines)
    dataset = load_ocr_dataset(tmp_path)
    assert dataset["text"] == [line.text for line in lines]
