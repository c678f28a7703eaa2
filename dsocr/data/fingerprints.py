"""Fingerprint of a dataset, so that a resumed run or evaluation never mixes two."""

import hashlib
import os
from pathlib import Path
from typing import Any

from datasets import Dataset

from dsocr.data.image_files import image_name


# Bytes read at both ends of an image file: enough to notice another picture under the old name.
_PART = 65536


def _content(image: Any) -> bytes:
    if isinstance(image, dict) and image.get("bytes"):
        return image["bytes"]
    path = image.get("path") if isinstance(image, dict) else image
    if not isinstance(path, str | Path):
        return b""
    with open(path, "rb") as file:
        start = file.read(_PART)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(len(start), size - _PART))
        return size.to_bytes(8) + start + file.read()


def fingerprint_dataset(dataset: Dataset) -> str:
    """SHA-256 over the rows in their order: text, the image's file name, its size, and the ends of the image file.

    Folders do not count, so a copied dataset keeps its fingerprint. Files up to 128 KiB are read whole.

    Args:
        dataset: Columns `image` (a path, or `{"bytes", "path"}`) and `text`.
    """
    digest = hashlib.sha256()
    for image, text in zip(dataset["image"], dataset["text"], strict=True):
        digest.update(f"{Path(image_name(image)).name}\0{text}\0".encode())
        digest.update(hashlib.blake2b(_content(image)).digest())
    return digest.hexdigest()
