"""Pairs of `line.png` and `line.gt.txt`, the layout of Kraken, Calamari and Tesseract's trainers."""

from collections.abc import Iterator
from pathlib import Path

from dsocr.data.checking import BadSamples
from dsocr.data.importers.annotations import AnnotatedImage, find_image


SUFFIX = ".gt.txt"


def parse_text_files(folder: Path, bad: BadSamples) -> Iterator[AnnotatedImage]:
    """Yield the pairs of a folder and its sub-folders; a line's folder is its page.

    Args:
        folder: The folder.
        bad: Counts texts that are not UTF-8.
    """
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        try:
            text = " ".join(path.read_text(encoding="utf-8-sig").split())
        except UnicodeDecodeError as error:
            bad.add("not_utf8", str(path), f"not UTF-8 ({error})")
            continue
        stem = path.name.removesuffix(SUFFIX)
        image, expected = find_image(path.parent, f"{stem}.png")
        # Binarised copies of an image are named line.bin.png and line.nrm.png.
        for variant in (f"{stem}.bin.png", f"{stem}.nrm.png"):
            if not image.is_file() and (path.parent / variant).is_file():
                image = expected = path.parent / variant
        page = path.parent.name if path.parent != folder else stem.rpartition("_")[0] or stem
        yield AnnotatedImage(image, expected, str(path), page, text=text)
