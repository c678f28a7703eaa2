"""Fixtures. Everything is offline and deterministic; what needs `../shared` skips with the reason."""

import contextlib
import io
import os
import sys
from pathlib import Path


# Read by huggingface_hub when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from helpers.paths import REPOSITORY, SHARED
from helpers.recipes import load_recipe
from PIL import Image, ImageDraw

from dsocr.common.machine import prepare_process
from dsocr.data.synthetic import generate_lines, write_dataset
from dsocr.lab.tiny import build_tiny_model


@pytest.fixture(scope="session", autouse=True)
def _process():
    prepare_process()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("../shared (real handwriting) is not on this machine")
    return SHARED


@pytest.fixture(params=["v1", "v2"])
def version(request) -> str:
    return request.param


@pytest.fixture
def tiny(version):
    return build_tiny_model(version)


@pytest.fixture
def tiny_v1():
    return build_tiny_model("v1")


@pytest.fixture(scope="session")
def lines():
    """Sixteen rendered lines: images and texts."""
    stream = generate_lines("handwriting", seed=5, min_length=2, max_length=8)
    return [next(stream) for _ in range(16)]


@pytest.fixture(scope="session")
def rows(lines):
    """The lines as dataset rows; every fourth image is small enough to have no tiles."""
    rows = [{"image": line.image, "text": line.text} for line in lines]
    for row in rows[::4]:
        row["image"] = row["image"].resize((40, 24))
    return rows


@pytest.fixture(scope="session")
def line_folder(tmp_path_factory, lines) -> Path:
    folder = tmp_path_factory.mktemp("lines")
    write_dataset(folder, lines)
    return folder


@pytest.fixture
def scratch_image():
    """A picture with a mark in its upper left corner, so that rotation and cropping can be seen."""

    def draw(width: int, height: int) -> Image.Image:
        image = Image.new("RGB", (width, height), "white")
        ImageDraw.Draw(image).rectangle((0, 0, width // 3, height // 3), fill="black")
        return image

    return draw


@pytest.fixture(scope="session")
def demonstration(tmp_path_factory):
    """The demonstration, in this process, on fewer lines than .ci/run trains it on: folder and console."""
    folder = tmp_path_factory.mktemp("demo")
    console = io.StringIO()
    argv = [
        "--max_train_samples",
        "240",
        "--max_eval_samples",
        "24",
        "--num_train_epochs",
        "2",
        "--disable_tqdm",
        "true",
    ]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(console):
        patch.chdir(folder)
        # As Python does for a script.
        patch.syspath_prepend(str(REPOSITORY / "recipes"))
        patch.setattr(sys, "argv", ["sft_lora.py", *argv])
        load_recipe("sft_lora").run(argv)
    return folder / "outputs" / "demo", console.getvalue()
