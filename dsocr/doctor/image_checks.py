"""Find unusable images, blank images and copies of an image."""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from dsocr.data.image_files import UnreadableImageError, open_image
from dsocr.doctor.findings import Finding


SMALL_SIDE = 16
HUGE_PIXELS = 20_000_000
# An image is blank if the standard deviation of its brightness (0..255) is below this.
BLANK_DEVIATION = 4.0
# Two images are copies if their 256-bit fingerprints differ in at most this many bits.
SAME_PICTURE = 10


@dataclass(frozen=True)
class ImageFacts:
    """Facts about an image.

    Attributes:
        size: Width and height in pixels after EXIF rotation; `None` when the image could not be opened.
        deviation: Standard deviation of the brightness.
        fingerprint: 256 bits, see `fingerprint_image`.
        reason: Why the image could not be opened, as a short word.
        problem: The same, for people.
    """

    size: tuple[int, int] | None
    deviation: float = 0.0
    fingerprint: int = 0
    reason: str = ""
    problem: str = ""


def fingerprint_image(image: Image.Image) -> int:
    """Difference hash of 16 x 16 bits: whether each of 17 x 16 grey fields is brighter than the one to its right.

    It is stable under scaling, compression and small changes of brightness. Source: Krawetz, "Kind of like that", 2013.
    """
    small = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(small[:, :-1] > small[:, 1:]).tobytes(), "big")


def look_at(path: str) -> ImageFacts:
    """Open one image and collect its facts."""
    try:
        image = open_image(path)
    except UnreadableImageError as error:
        return ImageFacts(None, reason=error.reason, problem=str(error))
    size = image.size
    image.thumbnail((512, 512))
    return ImageFacts(size, float(np.asarray(image.convert("L")).std()), fingerprint_image(image))


def look_at_all(paths: Sequence[str]) -> list[ImageFacts]:
    """Open all images, several at a time, and collect their facts."""
    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(look_at, paths), total=len(paths), desc="Looking at images", unit="img", delay=1))


def _same_shape(first: tuple[int, int], second: tuple[int, int] | None) -> bool:
    """Whether two images have the same ratio of width to height, within 5 %."""
    if second is None:
        return False
    crossed = first[0] * second[1]
    return abs(crossed - first[1] * second[0]) <= 0.05 * crossed


def find_copies(facts: Sequence[ImageFacts]) -> list[list[int]]:
    """Group images with the same picture.

    Fingerprints are cut into more pieces than bits may differ, so two copies share at least one piece and get compared.
    """
    pieces = SAME_PICTURE + 1
    width = 256 // pieces + 1
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    parent = list(range(len(facts)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for index, fact in enumerate(facts):
        if fact.size is None or fact.deviation < BLANK_DEVIATION:
            continue
        for piece in range(pieces):
            key = (piece, fact.fingerprint >> (piece * width) & ((1 << width) - 1))
            for other in buckets[key][-50:]:
                if (
                    _same_shape(fact.size, facts[other].size)
                    and (fact.fingerprint ^ facts[other].fingerprint).bit_count() <= SAME_PICTURE
                ):
                    parent[root(index)] = root(other)
            buckets[key].append(index)
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(facts)):
        groups[root(index)].append(index)
    return [group for group in groups.values() if len(group) > 1]


def check_images(facts: Sequence[ImageFacts], where: Sequence[str]) -> list[Finding]:
    """Check each image on its own."""
    groups: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    for index, fact in enumerate(facts):
        if fact.size is None:
            key = (
                fact.reason,
                "error",
                "images that cannot be opened or used",
                "replace them, or --fix leaves them out",
            )
        elif fact.deviation < BLANK_DEVIATION:
            key = ("blank", "error", "images on which nothing is written", "leave them out (--fix does)")
        elif min(fact.size) < SMALL_SIDE:
            key = (
                "tiny",
                "warning",
                f"images less than {SMALL_SIDE} pixels high or wide",
                "cut them at a higher resolution",
            )
        elif fact.size[0] * fact.size[1] > HUGE_PIXELS:
            key = (
                "huge",
                "note",
                "images of more than 20 million pixels",
                "they only cost loading time; make them smaller",
            )
        else:
            continue
        groups[key].append(index)
    return [
        Finding(kind, severity, f"{len(rows)} {text}", advice, [where[i] for i in rows], rows)
        for (kind, severity, text, advice), rows in groups.items()
    ]
