"""Count each sample's tokens once, when the dataset is loaded, and keep the counts as columns.

Grouping by length, batching in evaluation, the data summary and the vision cache all use these columns, so no image
header is opened and no text encoded a second time before training.
"""

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from dsocr.common.errors import UnusableSampleError
from dsocr.data.checking import measure_row
from dsocr.samples.processor import OcrProcessor


PROMPT_TOKENS, ANSWER_TOKENS = "prompt_tokens", "answer_tokens"
# Largest number of rows in a data summary, evenly spread over the dataset.
EXAMINED = 2000


@dataclass(frozen=True)
class SampleMeter:
    """Measure rows for `load_ocr_dataset`: image size, tokens, and whether the sample fits the model.

    Attributes:
        processor: Counts image and text tokens.
        max_length: Longest sample in tokens, image tokens included; `None` for no limit.
    """

    processor: OcrProcessor
    max_length: int | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, int]:
        """Columns `width`, `height` (pixels), `prompt_tokens` (image tokens included), `answer_tokens` (eos included).

        Raises:
            UnusableSampleError: as `measure_row`; also for a text with a control token, or a sample over `max_length`.
        """
        size = measure_row(row)
        try:
            answer = len(self.processor.encode_answer(row["text"]))
        except ValueError as error:
            raise UnusableSampleError(str(error), "reserved_token") from error
        prompt = self.processor.count_prompt_tokens(size["width"], size["height"])
        if self.max_length is not None and prompt + answer > self.max_length:
            raise UnusableSampleError(
                f"{prompt} prompt and image tokens + {answer} answer tokens are more than {self.max_length}", "too_long"
            )
        return {**size, PROMPT_TOKENS: prompt, ANSWER_TOKENS: answer}


def add_lengths(dataset: Dataset, processor: OcrProcessor, column: str) -> Dataset:
    """Add a column of sample lengths in tokens, for `--train_sampling_strategy group_by_length`.

    Args:
        dataset: Columns `prompt_tokens` and `answer_tokens`; if this project did not load the dataset they are missing,
            and the samples are measured here.
        processor: Counts image and text tokens.
        column: Name of the new column.
    """
    if PROMPT_TOKENS in dataset.column_names:
        counts = list(zip(dataset[PROMPT_TOKENS], dataset[ANSWER_TOKENS], strict=True))
    else:
        measured = map(SampleMeter(processor), dataset)
        counts = [(row[PROMPT_TOKENS], row[ANSWER_TOKENS]) for row in measured]
    return dataset.add_column(column, [prompt + answer for prompt, answer in counts])


def _spread(values: list[int]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def summarize_data(dataset: Dataset, processor: OcrProcessor) -> dict[str, Any]:
    """Summarise the lengths of a dataset, over at most 2000 lines, evenly spread.

    Args:
        dataset: Columns `text`, `width`, `height` and `answer_tokens`, as loaded with a `SampleMeter`.
        processor: Counts tokens.

    Returns:
        `distributions` (`image tokens`, `answer tokens`, `characters`, each with min, median and max) and `tiles`
        (number of tiles -> number of images).
    """
    step = max(1, len(dataset) // EXAMINED)
    rows = dataset.select_columns(["text", "width", "height", ANSWER_TOKENS])[::step]
    sizes = list(zip(rows["width"], rows["height"], strict=True))
    tiles = Counter(processor.geometry.count_tiles(*size) for size in sizes)
    return {
        "distributions": {
            "image tokens": _spread([processor.geometry.count_tokens(*size) for size in sizes]),
            "answer tokens": _spread(rows[ANSWER_TOKENS]),
            "characters": _spread([len(text) for text in rows["text"]]),
        },
        "tiles": {str(count): number for count, number in sorted(tiles.items())},
    }
