"""How many tokens a sample has, image tokens included."""

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
