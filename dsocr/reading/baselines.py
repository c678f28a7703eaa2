"""Classical OCR engines to stand in the same table, when they are installed."""

import shutil
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from PIL import Image


BASELINES = ("tesseract", "rapidocr")


class BaselineMissingError(ValueError):
    """An engine that was asked for is not installed."""


def _load_tesseract(language: str) -> Callable[[Image.Image], str]:
    if find_spec("pytesseract") is None or shutil.which("tesseract") is None:
        raise BaselineMissingError(
            "--baseline tesseract: install the program tesseract with its language data, and `pip install pytesseract`."
        )
    import pytesseract

    # 7: the image is one line.
    return lambda image: pytesseract.image_to_string(image, lang=language, config="--psm 7").strip()


def _load_rapidocr() -> Callable[[Image.Image], str]:
    if find_spec("rapidocr") is None:
        raise BaselineMissingError("--baseline rapidocr: `pip install rapidocr onnxruntime` (Latin and Chinese).")
    from rapidocr import RapidOCR

    engine = RapidOCR()

    def read(image: Image.Image) -> str:
        return " ".join(engine(np.asarray(image.convert("RGB"))[:, :, ::-1]).txts or ())

    return read


def load_baseline(name: str, language: str = "eng") -> Callable[[Image.Image], str]:
    """A function from an RGB image of a line to its text.

    Args:
        name: `"tesseract"` or `"rapidocr"`.
        language: tesseract's language codes, `"rus+eng"`.

    Raises:
        BaselineMissingError: when the engine is not installed, saying how to install it.
        ValueError: for another name.
    """
    if name == "tesseract":
        return _load_tesseract(language)
    if name == "rapidocr":
        return _load_rapidocr()
    raise ValueError(f"--baseline {name}: not one of {', '.join(BASELINES)}.")
