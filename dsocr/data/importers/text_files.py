"""`line.png` with `line.gt.txt` beside it, as Kraken, Calamari and Tesseract's trainers have it."""

from collections.abc import Iterator
from pathlib import Path

from dsocr.data.checking import BadSamples
from dsocr.data.importers.annotations import AnnotatedImage, find_image


SUFFIX = ".gt.txt"


def parse_text_files(folder: Path, bad: BadSamples) -> Iterator[AnnotatedImage]:
    """Pairs of a folder and those below it; a page is the folder of its lines.

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
        image = find_image(path.parent, f"{stem}.png")
        # Binarised copies are called line.bin.png and line.nrm.png.
        for variant in (f"{stem}.bin.png", f"{stem}.nrm.png"):
            if not image.is_file() and (path.parent / variant).is_file():
                image = path.parent / variant
        page = path.parent.name if path.parent != folder else stem.rpartition("_")[0] or stem
        yield AnnotatedImage(image, str(path), page, text=text)
