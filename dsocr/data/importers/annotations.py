"""The common result of every importer: a page image and its transcribed lines."""

from dataclasses import dataclass, field
from pathlib import Path

from dsocr.data.image_files import IMAGE_SUFFIXES


Point = tuple[float, float]


@dataclass(frozen=True)
class AnnotatedLine:
    """One transcribed line.

    Attributes:
        text: Its transcription.
        name: The line's name in the source, for messages.
        polygon: Its outline in units of the declared page size, empty when there is none.
        box: `(left, top, right, bottom)` in the same units, `None` when there is none.
    """

    text: str
    name: str
    polygon: tuple[Point, ...] = ()
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class AnnotatedImage:
    """One image with its lines, or with one text for the whole image.

    Attributes:
        image: The image file; it may not exist.
        where: The source file (and row), for messages.
        page: Name of the page, for splits.
        declared_size: Width and height of the page in the coordinates' unit; `None` for pixels.
        lines: Lines in reading order.
        text: Text of the whole image, for sources without lines; `None` when `lines` hold the text.
        split: `train` or `test` if the source gives it.
    """

    image: Path
    where: str
    page: str
    declared_size: tuple[float, float] | None = None
    lines: tuple[AnnotatedLine, ...] = field(default_factory=tuple)
    text: str | None = None
    split: str | None = None


def find_image(folder: Path, name: str) -> Path:
    """Find the image that a source names, even if it was moved beside the source or got another suffix.

    Args:
        folder: The folder of the source file; only it and its parent's `images/` are searched.
        name: File name, path or address in the source.

    Returns:
        The file found, else the expected path.
    """
    # The name may be a Windows path, an address with a query, or a path on the machine that made the export.
    base = Path(name.replace("\\", "/").partition("?")[0]).name
    direct = folder / name if name and not Path(name).is_absolute() else folder / base
    for root in (direct.parent, folder, folder / "images", folder.parent / "images"):
        candidate = root / base
        if candidate.is_file():
            return candidate
    stem = Path(base).stem
    for root in (folder, folder / "images", folder.parent / "images"):
        if root.is_dir():
            same_stem = [
                path for path in sorted(root.iterdir()) if path.stem == stem and path.suffix.lower() in IMAGE_SUFFIXES
            ]
            if same_stem:
                return same_stem[0]
    return folder / base
