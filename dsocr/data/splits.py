"""Train and validation splits that do not share a page."""

import logging
import random
from collections import Counter

from datasets import Dataset


logger = logging.getLogger(__name__)


def split_by_page(dataset: Dataset, validation_fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split into train and validation by page where the column exists, by line otherwise.

    Lines of one page look alike (same hand, ink and paper), so a page on both sides makes the error rate look better
    than it is.

    Args:
        dataset: Rows, with a `page` column if pages are known.
        validation_fraction: Share of the rows to hold out, in (0, 1); whole pages are taken until it is reached.
        seed: Seed of the choice.

    Returns:
        `(train, validation)`.

    Raises:
        ValueError: when the fraction is out of range, or one side would be empty.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction={validation_fraction} must be between 0 and 1.")
    pages = dataset["page"] if "page" in dataset.column_names else [None] * len(dataset)
    known = sorted({page for page in pages if page is not None})
    if len(known) < 2 or None in pages:
        logger.warning("no page is known for every line: the split is by line, so a page may be on both sides")
        pages = [str(index) for index in range(len(dataset))]
        known = list(pages)
    random.Random(seed).shuffle(known)
    wanted, lines_of = validation_fraction * len(dataset), Counter(pages)
    held_out: set[str] = set()
    count = 0
    for page in known[:-1]:
        if count >= wanted:
            break
        held_out.add(page)
        count += lines_of[page]
    train = [index for index, page in enumerate(pages) if page not in held_out]
    validation = [index for index, page in enumerate(pages) if page in held_out]
    if not train or not validation:
        raise ValueError(f"{len(dataset)} line(s) are too few to hold any out for validation.")
    return dataset.select(train), dataset.select(validation)
