"""Classical OCR engines, if installed, to compare with the model in one table."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from PIL import Image


BASELINES = ("tesseract", "rapidocr")


class BaselineMissingError(ValueError):
    """A requested engine is not installed."""


def _load_tesseract(language: str) -> Callable[[Image.Image], str]:
    if find_spec("pytesseract") is None or shutil.which("tesseract") is None:
        raise BaselineMissingError(
            "--baseline tesseract: install the program tesseract with its language data, and `pip install pytesseract`."
        )
    import pytesseract

    # Page segmentation mode 7: the image is one line.
    return lambda image: pytesseract.image_to_string(image, lang=language, config="--psm 7").strip()


def _load_rapidocr() -> Callable[[Image.Image], str]:
    if find_spec("rapidocr") is None:
        raise BaselineMissingError("--baseline rapidocr: `pip install rapidocr onnxruntime` (Latin and Chinese).")
    from rapidocr import RapidOCR

    engine = RapidOCR()

    def read(image: Image.Image) -> str:
        return " ".join(engine(np.asarray(image.convert("RGB"))[:, :, ::-1]).txts or ())

    return read


@dataclass(frozen=True)
class Baseline:
    """A classical engine.

    Attributes:
        name: `"tesseract"` or `"rapidocr"`.
        language: tesseract's language codes, `"rus+eng"`.
        read: Turns an RGB image of a line into text.
    """

    name: str
    language: str
    read: Callable[[Image.Image], str]

    def to_dict(self) -> dict[str, str]:
        """The settings that decide its predictions."""
        return {"baseline": self.name, "language": self.language}


def load_baseline(word: str) -> Baseline:
    """Load an engine for the comparison.

    Args:
        word: `"rapidocr"`, `"tesseract"`, or `"tesseract:rus+eng"` with its languages (English without them).

    Raises:
        BaselineMissingError: when the engine is not installed; the message says how to install it.
        ValueError: for another name.
    """
    name, _, language = word.partition(":")
    language = language or "eng"
    if name == "tesseract":
        return Baseline(name, language, _load_tesseract(language))
    if name == "rapidocr":
        return Baseline(name, language, _load_rapidocr())
    raise ValueError(f"--baseline {word}: not one of {', '.join(BASELINES)}.")
