"""What a dataset will cost: tokens and tiles of its images, lengths of its texts."""

import statistics
from collections import Counter
from typing import Any

from datasets import Dataset

from dsocr.image_files import read_image_size
from dsocr.processor import OcrProcessor


EXAMINED = 2000


def _spread(values: list[int]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def summarize_data(dataset: Dataset, processor: OcrProcessor) -> dict[str, Any]:
    """Distributions over at most 2000 lines, evenly spread.

    Args:
        dataset: Columns `image` and `text`.
        processor: Counts tokens.

    Returns:
        `distributions` (`image tokens`, `answer tokens`, `characters`, each with min, median and max) and `tiles` (number
        of tiles -> number of images).
    """
    step = max(1, len(dataset) // EXAMINED)
    rows = dataset[::step]
    sizes = [read_image_size(image) for image in rows["image"]]
    grids = [processor.geometry.choose_grid(*size) for size in sizes]
    tiles = Counter(0 if grid == (1, 1) else grid[0] * grid[1] for grid in grids)
    return {
        "distributions": {
            "image tokens": _spread([processor.geometry.count_tokens(*size) for size in sizes]),
            "answer tokens": _spread([len(processor.encode_answer(text)) for text in rows["text"]]),
            "characters": _spread([len(text) for text in rows["text"]]),
        },
        "tiles": {str(count): number for count, number in sorted(tiles.items())},
    }
