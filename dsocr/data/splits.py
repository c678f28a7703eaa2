"""Split rows into train and validation sets without a shared page."""

import logging
import math
import random
from collections import Counter, defaultdict
from typing import Any

from datasets import Dataset

from dsocr.data.texts import name_script


logger = logging.getLogger(__name__)

# The forecast of an interval assumes this CER; warn if its half width exceeds WIDE.
TYPICAL_CER, WIDE = 0.1, 0.03
# Errors come in clusters: bootstrap intervals over lines were about twice as wide as those of independent characters
# (on the demonstration's 100 held-out lines: 0.052 against 0.027 to either side).
_CLUSTERING = 2.0


def _known(dataset: Dataset, column: str) -> list[str] | None:
    values: list[Any] = list(dataset[column]) if column in dataset.column_names else [None]
    return None if len(set(values)) < 2 or None in values else values


def _page_names(dataset: Dataset) -> list[str]:
    """Page of every line, else its writer, else a unique name."""
    names = _known(dataset, "page") or _known(dataset, "writer")
    if names is None:
        logger.warning("no page is known for every line: the split is by line, so a page may be on both sides")
        return [str(index) for index in range(len(dataset))]
    return names


def _strata(pages: list[str], texts: list[str], seed: int) -> list[list[str]]:
    """Shuffled pages, grouped by the script of most of their lines."""
    scripts: dict[str, Counter[str]] = defaultdict(Counter)
    for page, text in zip(pages, texts, strict=True):
        scripts[page][name_script(text)] += 1
    shuffled = sorted(scripts)
    random.Random(seed).shuffle(shuffled)
    strata: dict[str, list[str]] = defaultdict(list)
    for page in shuffled:
        strata[scripts[page].most_common(1)[0][0]].append(page)
    return [strata[script] for script in sorted(strata)]


def _divide(dataset: Dataset, pages: list[str], held_out: set[str]) -> tuple[Dataset, Dataset]:
    train = [index for index, page in enumerate(pages) if page not in held_out]
    validation = [index for index, page in enumerate(pages) if page in held_out]
    if not train or not validation:
        raise ValueError(f"{len(dataset)} line(s) are too few to hold any out for validation.")
    return dataset.select(train), dataset.select(validation)


def split_by_page(dataset: Dataset, validation_fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split into train and validation by page if known, else by writer, else by line, each script in its share.

    Lines of one page look alike (same hand, ink and paper), so a page on both sides makes the error rate too good.

    Args:
        dataset: Columns `text` and, if known, `page` or `writer`.
        validation_fraction: Share of the rows to hold out, in (0, 1); whole pages of each script are held out until it
            is reached. The last page of a script stays in train.
        seed: Seed of the choice.

    Returns:
        `(train, validation)`.

    Raises:
        ValueError: when the fraction is out of range, or one side would be empty.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction={validation_fraction} must be between 0 and 1.")
    pages = _page_names(dataset)
    lines_of, held_out = Counter(pages), set()
    for stratum in _strata(pages, dataset["text"], seed):
        wanted, count = validation_fraction * sum(lines_of[page] for page in stratum), 0
        for page in stratum[:-1]:
            if count >= wanted:
                break
            held_out.add(page)
            count += lines_of[page]
    return _divide(dataset, pages, held_out)


def split_into_fold(dataset: Dataset, fold: int, n_folds: int, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split off one fold of a cross-validation: every page is held out in exactly one fold, scripts evenly.

    Args:
        dataset: As in `split_by_page`.
        fold: Number of the fold to hold out, from 1 to `n_folds`; `dsocr.data.training_sets.parse_fold` checks it.
        n_folds: Number of folds, at least 2.
        seed: Seed of the choice; use the same for all folds.

    Returns:
        `(train, validation)`.

    Raises:
        ValueError: for more folds than pages.
    """
    pages = _page_names(dataset)
    lines_of, sizes, held_out = Counter(pages), [0] * n_folds, set()
    for stratum in _strata(pages, dataset["text"], seed):
        # Put the largest pages first, each into the fold with the fewest lines.
        for page in sorted(stratum, key=lambda name: -lines_of[name]):
            smallest = sizes.index(min(sizes))
            sizes[smallest] += lines_of[page]
            if smallest == fold - 1:
                held_out.add(page)
    return _divide(dataset, pages, held_out)


def expected_half_width(texts: list[str]) -> float:
    """Rough forecast of a typical CER's 95 % interval on these texts: its reach to either side.

    Example:
        >>> round(expected_half_width(["x" * 10] * 90), 3)
        0.039
    """
    characters = sum(len(text) for text in texts)
    return _CLUSTERING * 1.96 * math.sqrt(TYPICAL_CER * (1 - TYPICAL_CER) / max(characters, 1))


def warn_about_width(held_out: Dataset) -> bool:
    """Warn when a held-out set is too small to show usual differences in CER; returns whether it warned."""
    width = expected_half_width(held_out["text"])
    if width <= WIDE:
        return False
    logger.warning(
        "%d held-out lines: a CER of %.2f will have an interval of about +-%.3f; hold out more lines to tell small differences",
        len(held_out),
        TYPICAL_CER,
        width,
    )
    return True
