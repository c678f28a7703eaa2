"""Image geometry against upstream's arithmetic."""

import math

import numpy as np
import pytest
import torch
from helpers.paths import REPOSITORY
from PIL import Image, ImageOps

from dsocr.samples import geometry
from dsocr.samples.batch import normalize_pixels, stack_views
from dsocr.samples.geometry import LAYOUTS, MODES, PAD_COLOUR, image_geometry


# Size -> grid, tokens; known from runs of the original code.
V1_GUNDAM = {
    (2000, 300): ((7, 1), 983),
    (1000, 1400): ((2, 3), 903),
    (640, 640): ((1, 1), 273),
    (300, 80): ((1, 1), 273),
}
V1_WITHOUT_TILES = {"tiny": 73, "small": 111, "base": 273, "large": 421}


@pytest.mark.parametrize(("size", "expected"), V1_GUNDAM.items())
def test_v1_gundam(size, expected):
    geometry = image_geometry("v1", "gundam")
    assert (geometry.choose_grid(*size), geometry.count_tokens(*size)) == expected


@pytest.mark.parametrize(("mode", "tokens"), V1_WITHOUT_TILES.items())
def test_v1_modes_without_tiles(mode, tokens):
    assert image_geometry("v1", mode).count_tokens(3000, 200) == tokens


def test_v2():
    assert image_geometry("v2", "gundam").count_tokens(700, 700) == 257
    assert image_geometry("v2", "gundam").count_tokens(1000, 1400) == 1121
    assert image_geometry("v2", "gundam").choose_grid(3000, 400) == (6, 1)
    assert image_geometry("v2", "small").count_tokens(10, 10) == 145
    assert image_geometry("v2", "base").count_tokens(10, 10) == 257


def upstream_grid(width, height, min_num, max_num, size):
    """An independent spelling of upstream's choice, tile by tile, for comparison."""
    candidates = set()
    for n in range(min_num, max_num + 1):
        for i in range(1, n + 1):
            for j in range(1, n + 1):
                if min_num <= i * j <= max_num:
                    candidates.add((i, j))
    best, difference = (1, 1), float("inf")
    for ratio in sorted(candidates, key=lambda x: x[0] * x[1]):
        now = abs(width / height - ratio[0] / ratio[1])
        if now < difference:
            best, difference = ratio, now
        elif now == difference and width * height > 0.5 * size * size * ratio[0] * ratio[1]:
            best = ratio
    return best


@pytest.mark.parametrize(("version", "max_tiles", "tile"), [("v1", 9, 640), ("v2", 6, 768), ("unlimited", 32, 640)])
def test_grid_of_many_sizes(version, max_tiles, tile):
    geometry = image_geometry(version, "gundam")
    generator = np.random.default_rng(0)
    for width, height in generator.integers(1, 4000, (500, 2)).tolist():
        expected = (1, 1) if max(width, height) <= tile else upstream_grid(width, height, 2, max_tiles, tile)
        assert geometry.choose_grid(width, height) == expected, (width, height)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("size", [(333, 77), (1500, 1001), (701, 2003), (640, 641)])
def test_views_are_upstreams_to_the_pixel(scratch_image, version, size):
    for mode in MODES[version]:
        geometry = image_geometry(version, mode)
        image = scratch_image(*size)
        views = geometry.cut(image)
        side = (geometry.base_size, geometry.base_size)
        expected = ImageOps.pad(image, side, color=PAD_COLOUR) if geometry.keep_aspect else image.resize(side)
        assert np.array_equal(views.global_view, np.asarray(expected))
        columns, rows = views.grid
        if views.grid != (1, 1):
            tile = geometry.tile_size
            resized = image.resize((columns * tile, rows * tile))
            for i, seen in enumerate(views.tiles):
                left, top = (i % columns) * tile, (i // columns) * tile
                assert np.array_equal(seen, np.asarray(resized.crop((left, top, left + tile, top + tile))))
        assert len(views.tiles) == (0 if views.grid == (1, 1) else columns * rows)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("version", "mode"), [("v1", "gundam"), ("v1", "small"), ("v2", "gundam")])
def test_a_grey_image_is_cut_in_one_band_to_the_same_pixels(monkeypatch, version, mode, layout):
    rng = np.random.default_rng(3)
    views = image_geometry(version, mode, layout=layout)
    for size in ((1600, 200), (333, 1201), (640, 640), (90, 20)):
        image = Image.fromarray(rng.integers(0, 256, size[::-1], dtype=np.uint8)).convert("RGB")
        cut = views.cut(image)
        with monkeypatch.context() as patch:
            patch.setattr(geometry, "_is_grey", lambda image: False)
            plain = views.cut(image)
        assert cut.global_view.strides[-1] == 0 and plain.global_view.strides[-1] == 1
        for one, other in zip([cut.global_view, *cut.tiles], [plain.global_view, *plain.tiles], strict=True):
            assert np.array_equal(one, other)
        assert torch.equal(
            normalize_pixels(stack_views([cut.global_view]), torch.float32),
            normalize_pixels(stack_views([plain.global_view]), torch.float32),
        )
    # One pixel of colour is enough.
    image.putpixel((5, 5), (1, 2, 3))
    assert views.cut(image).global_view.strides[-1] == 1


def test_the_pasted_view_is_rounded_not_floored():
    """transformers' own processor floors here, off by one pixel for a quarter of all sizes."""
    views = image_geometry("v1", "base").cut(Image.new("RGB", (1000, 333), "white"))
    inked = np.argwhere((views.global_view == 255).all(axis=(1, 2)))
    height = round(333 / 1000 * 1024)
    assert len(inked) == height
    assert inked[0] == round((1024 - height) * 0.5)


@pytest.mark.parametrize("version", ["v1", "unlimited"])
def test_tokens_are_features_of_a_real_model(version, rows):
    """The counted tokens are the features that the model really makes, for every mode and with mixed tiles."""
    from dsocr.lab.tiny import build_tiny_model
    from dsocr.samples.collator import OcrCollator
    from dsocr.training.preflight import count_features

    for mode in MODES[version]:
        model, processor = build_tiny_model(version, image_mode=mode)
        batch = OcrCollator(processor)(rows[:6])
        tokens = int((batch["input_ids"] == processor.image_token_id).sum())
        assert tokens == count_features(model, batch), mode


def test_unknown_modes_are_refused_by_name():
    with pytest.raises(
        ValueError, match="'huge' does not exist for v1; choose one of tiny, small, base, large, gundam"
    ):
        image_geometry("v1", "huge")
    with pytest.raises(ValueError, match="'large' does not exist for v2"):
        image_geometry("v2", "large")
    with pytest.raises(ValueError, match="version='v3'"):
        image_geometry("v3", "base")


def test_a_strip_that_would_vanish_is_refused():
    with pytest.raises(ValueError, match="40000x10 pixels would be less than one pixel"):
        image_geometry("v1", "base").cut(Image.new("RGB", (40000, 10)))
    views = image_geometry("v1", "gundam").cut(Image.new("RGB", (30000, 20)))
    assert views.grid == (9, 1) and math.isfinite(views.n_tokens)


@pytest.mark.parametrize(("version", "most"), [("v1", 1263), ("v2", 1121)])
def test_the_most_image_tokens_that_the_configs_name(version, most):
    geometry = image_geometry(version, "gundam")
    sizes = range(600, 7000, 150)
    assert max(geometry.count_tokens(width, height) for width in sizes for height in sizes) == most
    if version == "v1":
        config = REPOSITORY / "recipes" / "configs" / "lora_16gb.yaml"
        assert f"instead of up to {most}" in config.read_text(encoding="utf-8").replace("\n#           ", " ")
