"""Images that cannot be used or hold nothing, and images that are there twice."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from dsocr.data.image_files import UnreadableImageError, open_checked_image
from dsocr.doctor.findings import Finding


SMALL_SIDE = 16
HUGE_PIXELS = 20_000_000
# Standard deviation of the brightness, of 255, under which nothing is written.
BLANK_DEVIATION = 4.0
# Bits of 256 in which the fingerprints of two look-alikes may differ.
ALIKE_BITS = 12
# Correlation of two ink boxes from which two images show the same writing. Compressed and scaled copies of drawn lines had
# 0.96 and more, 200 different words in one font at most 0.84.
ALIKE_CORRELATION = 0.92
# Size of the thumbnail of an ink box, pixels.
_WIDTH, _HEIGHT = 64, 16
# How much darker than paper a pixel is that counts as ink, of 255.
_INK = 40


@dataclass(frozen=True)
class ImageFacts:
    """What was seen of an image.

    Attributes:
        size: Width and height in pixels as seen; `None` when it could not be opened.
        deviation: Standard deviation of the brightness.
        digest: Digest of its decoded pixels; equal digests are equal pictures.
        fingerprint: 256 bits of its ink box, see `fingerprint_image`.
        thumbnail: Its ink box, grey, `[16 * 64]` bytes.
        reason: Why it could not be opened, a short word.
        problem: The same for people.
    """

    size: tuple[int, int] | None
    deviation: float = 0.0
    digest: str = ""
    fingerprint: int = 0
    thumbnail: bytes = b""
    reason: str = ""
    problem: str = ""


def find_ink(grey: Image.Image) -> Image.Image:
    """The box of a grey image that holds its ink; the image itself when there is none.

    Lines of few words on clean paper are mostly paper: compared whole, they all look alike.
    """
    pixels = np.asarray(grey, dtype=np.int16)
    dark = np.median(pixels) - pixels > _INK
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    if not len(rows):
        return grey
    return grey.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))


def fingerprint_image(image: Image.Image) -> int:
    """Difference hash of 16 x 16 bits: whether each of 17 x 16 grey fields is brighter than the one to its right.

    It does not change with size, compression and a little brightness. Source: Krawetz, "Kind of like that", 2013.
    """
    small = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(small[:, :-1] > small[:, 1:]).tobytes(), "big")


def look_at(path: str) -> ImageFacts:
    """Open one image."""
    try:
        # Training refuses what this refuses, files of several pages among it.
        image = open_checked_image(path)
    except UnreadableImageError as error:
        return ImageFacts(None, reason=error.reason, problem=str(error))
    size = image.size
    digest = hashlib.blake2b(f"{size}".encode() + image.tobytes(), digest_size=16).hexdigest()
    image.thumbnail((512, 512))
    grey = image.convert("L")
    ink = find_ink(grey)
    thumbnail = ink.resize((_WIDTH, _HEIGHT), Image.Resampling.BOX).tobytes()
    return ImageFacts(size, float(np.asarray(grey).std()), digest, fingerprint_image(ink), thumbnail)


def look_at_all(paths: Sequence[str]) -> list[ImageFacts]:
    """Open all images, several at a time."""
    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(look_at, paths), total=len(paths), desc="Looking at images", unit="img", delay=1))


def find_copies(facts: Sequence[ImageFacts]) -> list[list[int]]:
    """Groups of images whose decoded pixels are equal: the same picture, whatever the files are called."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, fact in enumerate(facts):
        if fact.size is not None and fact.deviation >= BLANK_DEVIATION:
            groups[fact.digest].append(index)
    return [group for group in groups.values() if len(group) > 1]


def _shows_the_same(first: ImageFacts, second: ImageFacts) -> bool:
    """Whether two images show the same writing, as far as their ink boxes tell."""
    if first.size is None or second.size is None or first.digest == second.digest:
        return False
    crossed = first.size[0] * second.size[1]
    if abs(crossed - first.size[1] * second.size[0]) > 0.05 * crossed:
        return False
    one, other = (np.frombuffer(fact.thumbnail, dtype=np.uint8).astype(np.float32) for fact in (first, second))
    return float(np.corrcoef(one, other)[0, 1]) >= ALIKE_CORRELATION


def find_look_alikes(facts: Sequence[ImageFacts]) -> list[list[int]]:
    """Groups of images that differ in their pixels and seem to show the same writing: scaled or compressed copies, mostly.

    Fingerprints are cut into more pieces than bits may differ, so two alike share a piece and are compared. What is found
    is a guess: it is reported, and never a reason to delete a row.
    """
    pieces = ALIKE_BITS + 1
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
                close = (fact.fingerprint ^ facts[other].fingerprint).bit_count() <= ALIKE_BITS
                if close and root(index) != root(other) and _shows_the_same(fact, facts[other]):
                    parent[root(index)] = root(other)
            buckets[key].append(index)
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(facts)):
        groups[root(index)].append(index)
    return [group for group in groups.values() if len(group) > 1]


def check_images(facts: Sequence[ImageFacts], where: Sequence[str]) -> list[Finding]:
    """Findings about single images."""
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
