"""The common result of every importer: a page image and its transcribed lines."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dsocr.common.errors import UnusableSampleError
from dsocr.data.checking import BadSamples
from dsocr.data.image_files import IMAGE_SUFFIXES


Point = tuple[float, float]
Entry = TypeVar("Entry")
# Raised by an entry with a missing key, a wrong type, or a number that is none.
MALFORMED = (TypeError, KeyError, AttributeError, ValueError, OverflowError, IndexError)


@dataclass(frozen=True)
class AnnotatedLine:
    """One transcribed line.

    Attributes:
        text: Its transcription.
        name: The line's name in the source, for messages.
        polygon: Its outline in units of the declared page size, empty when there is none.
        box: `(left, top, right, bottom)` in the same units, `None` when there is none.
        upright: `False` for a rotated rectangle: `polygon` holds its corners, clockwise from the start of the writing,
            and the line is turned upright when it is cut.
    """

    text: str
    name: str
    polygon: tuple[Point, ...] = ()
    box: tuple[float, float, float, float] | None = None
    upright: bool = True


@dataclass(frozen=True)
class AnnotatedImage:
    """One image with its lines, or with one text for the whole image.

    Attributes:
        image: The image file; it may not exist.
        expected: The path by the source's own words; another one than `image` when that was found by its name alone.
        where: The source file (and row), for messages.
        page: Name of the page, for splits.
        declared_size: Width and height of the page in the coordinates' unit; `None` for pixels.
        lines: Lines in reading order.
        text: Text of the whole image, for sources without lines; `None` when `lines` hold the text.
        split: `train` or `test` if the source gives it.
    """

    image: Path
    expected: Path
    where: str
    page: str
    declared_size: tuple[float, float] | None = None
    lines: tuple[AnnotatedLine, ...] = field(default_factory=tuple)
    text: str | None = None
    split: str | None = None


def _candidates(folder: Path, base: str) -> Iterator[Path]:
    roots = [folder, folder / "images", folder.parent / "images"]
    yield from (root / base for root in roots)
    stem = Path(base).stem
    for root in roots:
        if root.is_dir():
            same_stem = (path for path in sorted(root.iterdir()) if path.stem == stem)
            yield from (path for path in same_stem if path.suffix.lower() in IMAGE_SUFFIXES)


def find_image(folder: Path, name: str) -> tuple[Path, Path]:
    """Find the image that a source names, even if it was moved beside the source or got another suffix.

    Args:
        folder: The folder of the source file. Only files in it and in its parent's `images/` are taken, links followed.
        name: File name, path or address in the source.

    Returns:
        The file found (the expected path if there is none), and the expected path. When they differ, the file was
        found by its name alone: another entry may have a better claim to it, see `settle_images`.

    Raises:
        UnusableSampleError: the name is no path of a file.
    """
    # The name may be a Windows path, an address with a query, or a path on the machine that made the export.
    base = Path(name.replace("\\", "/").partition("?")[0]).name
    expected = folder / name if name and not Path(name).is_absolute() else folder / base
    try:
        allowed = [folder.resolve(), (folder.parent / "images").resolve()]
        for candidate in (expected, *_candidates(folder, base)):
            if candidate.is_file() and any(candidate.resolve().is_relative_to(root) for root in allowed):
                return candidate, expected
        inside = expected.resolve().is_relative_to(allowed[0])
    except (OSError, ValueError, RuntimeError) as error:
        raise UnusableSampleError(f"{name[:100]!r} is no path of an image ({error})", "missing") from error
    if not inside:
        raise UnusableSampleError(f"{name}: points outside the source's folder {folder}", "outside_folder")
    return expected, expected


def parse_entries(
    entries: Iterable[tuple[str, Entry]], parse: Callable[[str, Entry], AnnotatedImage], bad: BadSamples
) -> Iterator[AnnotatedImage]:
    """Parse the entries of a source one by one; refuse or count those that are unusable or malformed.

    Args:
        entries: Names for messages, and entries.
        parse: Takes both and returns an image, or raises.
        bad: Refuses or counts the others.
    """
    for where, entry in entries:
        try:
            image = parse(where, entry)
        except UnusableSampleError as error:
            reason, message = error.reason, str(error)
        except MALFORMED as error:
            reason, message = "malformed", f"the entry is malformed ({type(error).__name__}: {error})"
        else:
            yield image
            continue
        bad.add(reason, where, message)


def settle_images(images: Iterable[AnnotatedImage], bad: BadSamples) -> Iterator[AnnotatedImage]:
    """Refuse an image that was found by its name alone when another entry claims the same file.

    Otherwise the picture of one page would get the text of another. Such images come last, when all claims are known.

    Args:
        images: All entries of a source.
        bad: Refuses or counts the doubtful ones.
    """
    claims: dict[Path, set[Path]] = {}
    waiting = []
    for image in images:
        claims.setdefault(image.image, set()).add(image.expected)
        if image.image == image.expected:
            yield image
        else:
            waiting.append(image)
    for image in waiting:
        if len(claims[image.image]) == 1:
            yield image
        else:
            message = f"{image.expected} is missing, and {image.image} belongs to another entry or to several"
            bad.add("doubtful_image", image.where, message)
