"""Line-aware layouts: nothing of a line is lost, letters keep their shape, upstream's own layout is untouched."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from dsocr.lab.tiny import build_tiny_model
from dsocr.samples.geometry import LAYOUTS, PAD_COLOUR, image_geometry
from dsocr.samples.line_wrapping import choose_cuts, choose_rows, wrap_line


# The even places of three rows, 400 and 800, are inside words.
WORDS = [(20, 180), (230, 410), (440, 640), (700, 760), (790, 1180)]


@pytest.fixture
def line():
    """Five black words on white, 1200 x 100 pixels."""
    image = Image.new("RGB", (1200, 100), "white")
    for left, right in WORDS:
        ImageDraw.Draw(image).rectangle((left, 20, right, 80), fill="black")
    return image


def ink(image):
    return int((np.asarray(image.convert("L")) < 20).sum())


def test_rows_show_a_line_as_large_as_a_square_can():
    for width in range(100, 4000, 37):
        rows = choose_rows(width, 100)
        sides = {n: max(width / n, 100 * n) for n in range(1, 12)}
        assert sides[rows] == min(sides.values())
    assert choose_rows(200, 100) == choose_rows(100, 400) == 1


def test_a_line_is_cut_between_its_words_and_nothing_is_lost(line):
    rows = choose_rows(*line.size)
    assert rows == 3
    cuts = choose_cuts(line, rows)
    assert cuts[0] == 0 and cuts[-1] == line.width and cuts == sorted(set(cuts))
    for cut in cuts[1:-1]:
        assert not any(left <= cut <= right for left, right in WORDS), f"column {cut} is inside a word"
    wrapped = wrap_line(line, (127, 127, 127))
    assert ink(wrapped) == ink(line)
    # The rows stand in reading order, each as high as the line.
    assert wrapped.height == rows * line.height
    for row, (left, right) in enumerate(itertools.pairwise(cuts)):
        part = wrapped.crop((0, row * 100, right - left, (row + 1) * 100))
        assert np.array_equal(np.asarray(part), np.asarray(line.crop((left, 0, right, 100))))


def test_the_view_shows_the_rows(line):
    shown, plain = (
        image_geometry("v1", "base", layout=layout).cut(line).global_view for layout in ("wrap", "original")
    )
    rows = ImageOps.pad(wrap_line(line, PAD_COLOUR), (1024, 1024), color=PAD_COLOUR)
    assert np.array_equal(shown, np.asarray(rows))
    assert (shown < 20).sum() > 4 * (plain < 20).sum()


def test_a_line_without_gaps_is_cut_evenly():
    blank = Image.new("RGB", (1000, 100), "white")
    assert choose_cuts(blank, 4) == [0, 250, 500, 750, 1000]


def test_what_is_no_line_is_not_broken(line):
    page = Image.new("RGB", (700, 900), "white")
    assert wrap_line(page, (0, 0, 0)) is page
    for mode in ("base", "gundam"):
        wrapped, original = (image_geometry("v1", mode, layout=layout).cut(page) for layout in ("wrap", "original"))
        assert np.array_equal(wrapped.global_view, original.global_view)
        assert wrapped.grid == original.grid
    assert image_geometry("v1", "gundam", layout="wrap").cut(page).tiles
    assert not image_geometry("v1", "gundam", layout="wrap").cut(line).tiles


@pytest.mark.parametrize("mode", ["small", "gundam"])
def test_letters_keep_their_shape(mode):
    image = Image.new("RGB", (1500, 300), "white")
    ImageDraw.Draw(image).ellipse((100, 50, 300, 250), fill="black")
    shapes = {}
    for layout in LAYOUTS:
        views = image_geometry("v1", mode, layout=layout).cut(image)
        columns, rows = views.grid
        shown = views.global_view
        if views.tiles:
            side = views.tiles[0].shape[0]
            grid = np.stack(views.tiles).reshape(rows, columns, side, side, 3)
            shown = grid.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, 3)
        found = np.argwhere(shown[..., 0] < 60)
        height, width = np.ptp(found, axis=0) + 1
        shapes[layout] = width / height
    assert shapes["pad"] == pytest.approx(1, abs=0.03)
    assert shapes["wrap"] == pytest.approx(1, abs=0.03)
    if mode == "small":
        # Upstream squashes a line of 5 to 1 into a square.
        assert shapes["original"] == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("version", ["v1", "v2", "unlimited"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_are_counted_right_in_every_layout(version, layout):
    for mode in ("small", "base", "gundam"):
        model, processor = build_tiny_model(version, image_mode=mode)
        processor = type(processor)(
            processor.tokenizer, version, mode, size_divisor=16, patch_size=4, image_layout=layout
        )
        for size in ((400, 40), (60, 90), (40, 40)):
            # The native forward raises when image tokens and features differ in number.
            model(**processor(images=[Image.new("RGB", size, "white")]))


def test_the_layout_is_saved_with_the_processor(tmp_path, tiny_v1):
    processor = tiny_v1[1]
    again = type(processor)(processor.tokenizer, "v1", "base", size_divisor=16, patch_size=4, image_layout="wrap")
    again.save_pretrained(tmp_path)
    loaded = type(processor).from_pretrained(tmp_path)
    assert loaded.image_layout == loaded.geometry.layout == "wrap"
    assert type(processor).from_pretrained(tmp_path, image_layout="pad").geometry.layout == "pad"
    with pytest.raises(ValueError, match="image_layout='spiral'"):
        image_geometry("v1", "base", layout="spiral")
