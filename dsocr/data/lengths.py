"""How many tokens a sample has, image tokens included, and how much of a batch is padding."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from datasets import Dataset

from dsocr.image_files import read_image_size
from dsocr.processor import OcrProcessor


def add_lengths(dataset: Dataset, processor: OcrProcessor, column: str) -> Dataset:
    """The dataset with a column of token counts, which `--train_sampling_strategy group_by_length` groups by.

    Args:
        dataset: Columns `image` (only its header is read) and `text`.
        processor: Counts image and text tokens.
        column: Name of the new column.
    """

    def count(row: dict) -> int:
        answer = len(processor.encode_answer(row["text"]))
        return processor.count_prompt_tokens(*read_image_size(row["image"])) + answer

    with ThreadPoolExecutor() as pool:
        return dataset.add_column(column, list(pool.map(count, dataset)))


def padding_share(batches: Iterable[Sequence[int]]) -> float:
    """The share of all positions that is padding, 0..1, when each batch is padded to its longest sample.

    Example:
        >>> padding_share([[4, 2], [3, 3]])
        0.14285714285714285
    """
    used = total = 0
    for lengths in batches:
        used += sum(lengths)
        total += max(lengths) * len(lengths)
    return 1 - used / total if total else 0.0
