"""Which rows of a dataset can be used: every image is opened once, before training, and what is wrong is counted."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm.auto import tqdm

from dsocr.data.bad_samples import BadSamples
from dsocr.image_files import UnreadableImageError, check_image
from dsocr.processor import OcrProcessor


def find_problem(
    row: dict[str, Any], processor: OcrProcessor | None = None, max_length: int | None = None
) -> tuple[str, str] | None:
    """`(reason, message)` when a row cannot be used."""
    try:
        size = check_image(row["image"])
    except UnreadableImageError as error:
        return error.reason, str(error)
    if not row["text"]:
        return "empty_text", "the text is empty"
    if processor is None:
        return None
    try:
        answer = len(processor.encode_answer(row["text"]))
    except ValueError as error:
        return "reserved_token", str(error)
    prompt = processor.count_prompt_tokens(*size)
    if max_length is not None and prompt + answer > max_length:
        return "too_long", f"{prompt} prompt and image tokens + {answer} answer tokens are more than {max_length}"
    return None


class Sieve:
    """Keeps the usable rows, counts the others, and stops when there are enough.

    Args:
        find_problem: `(reason, message)` of a row that cannot be used, else `None`; called in threads.
        bad: Refuses or counts what cannot be used.
        max_samples: How many are enough; `None` for all.
        progress: Show a progress bar when it takes more than a second.
        total: Number of rows, for the bar.
    """

    def __init__(
        self, find_problem: Callable, bad: BadSamples, max_samples: int | None, progress: bool, total: int | None
    ):
        self._find_problem, self._bad, self._max_samples = find_problem, bad, max_samples
        self._bar = tqdm(total=total, desc="Checking images", unit="img", disable=not progress, delay=1)
        # Pillow decodes outside the interpreter lock, so threads are enough.
        self._pool = ThreadPoolExecutor()
        self.count = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._pool.shutdown()
        self._bar.close()

    @property
    def is_full(self) -> bool:
        """Whether there are enough."""
        return self._max_samples is not None and self.count >= self._max_samples

    def usable(self, rows: list, places: list[str]) -> list[int]:
        """Positions of the usable rows of a chunk, whose places are named in messages."""
        found = []
        for index, problem in enumerate(self._pool.map(self._find_problem, rows)):
            self._bar.update()
            if problem is None:
                found.append(index)
                self.count += 1
            else:
                self._bad.add(problem[0], places[index], problem[1])
            if self.is_full:
                break
        return found
