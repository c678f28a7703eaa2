"""Check samples before training: refuse an unusable one by name, or skip it, count it by reason and write it down."""

from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from tqdm.auto import tqdm

from dsocr.common.errors import UnusableSampleError
from dsocr.common.files import write_json
from dsocr.common.problems import check_problem
from dsocr.data.image_files import check_image


OnBadSample = Literal["raise", "skip"]
# Measures a row: returns columns to add, by name.
Measure = Callable[[dict[str, Any]], dict[str, int]]
# Number of rows held as Python objects at a time.
_CHUNK = 2048


class BadSampleError(ValueError):
    """A sample cannot be used; the message names its file and row."""


class BadSamples:
    """Collect the unusable samples of a dataset.

    Args:
        on_bad_sample: `"raise"` raises at the first bad sample, `"skip"` counts it.

    Raises:
        ValueError: for any other word.
    """

    def __init__(self, on_bad_sample: OnBadSample = "raise"):
        if on_bad_sample not in ("raise", "skip"):
            raise ValueError(f"on_bad_sample={on_bad_sample!r} is not one of raise, skip.")
        self.on_bad_sample = on_bad_sample
        self.counts: Counter[str] = Counter()
        self.entries: list[dict[str, str]] = []

    def add(self, reason: str, where: str, message: str) -> None:
        """Refuse or count one sample.

        Args:
            reason: Its name in `dsocr.common.problems.PROBLEMS`.
            where: File and row.
            message: What is wrong, for people.

        Raises:
            BadSampleError: when `on_bad_sample` is `"raise"`.
        """
        check_problem(reason)
        if self.on_bad_sample == "raise":
            raise BadSampleError(f"{where}: {message} (pass --on_bad_sample skip to leave such samples out)")
        self.count(reason, where, message)

    def count(self, reason: str, where: str, message: str) -> None:
        """Count one sample, whatever `on_bad_sample` is; arguments as in `add`."""
        self.counts[reason] += 1
        self.entries.append({"reason": reason, "where": where, "message": message})

    def summary(self) -> str:
        """Counts for a log line: `3 samples skipped (2 missing, 1 empty_text)`, or `no sample skipped`."""
        if not self.counts:
            return "no sample skipped"
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common())
        return f"{self.counts.total()} samples skipped ({reasons})"

    def write(self, path: str | Path) -> None:
        """Write counts and every skipped sample as JSON."""
        write_json(path, {"counts": dict(self.counts), "samples": self.entries})


def measure_row(row: dict[str, Any]) -> dict[str, int]:
    """Open a row's image and check its text.

    Args:
        row: `image` (anything that `open_image` takes) and `text`.

    Returns:
        `width` and `height` of the image in pixels, after EXIF rotation.

    Raises:
        UnusableSampleError: the image cannot be opened or used, or the text is empty.
    """
    width, height = check_image(row["image"])
    if not row["text"]:
        raise UnusableSampleError("the text is empty", "empty_text")
    return {"width": width, "height": height}


def keep_usable(
    dataset: Dataset,
    places: Callable[[int], str],
    bad: BadSamples,
    *,
    measure: Measure = measure_row,
    max_samples: int | None = None,
    progress: bool = True,
) -> Dataset:
    """Measure every row once, in threads, and keep the usable rows.

    Args:
        dataset: Columns `image` and `text`.
        places: Maps a row's position to its name in messages.
        bad: Refuses or counts unusable rows.
        measure: Returns the columns to add for a row, or raises `UnusableSampleError` when the row is unusable.
        max_samples: Stop after keeping this many rows; `None` checks all.
        progress: Show a progress bar when the check takes more than a second.

    Returns:
        The kept rows, with the measured columns.
    """

    def attempt(row: dict[str, Any]) -> dict[str, int] | UnusableSampleError:
        try:
            return measure(row)
        except UnusableSampleError as error:
            return error

    kept: list[int] = []
    columns: dict[str, list[int]] = defaultdict(list)
    bar = tqdm(total=len(dataset), desc="Checking images", unit="img", disable=not progress, delay=1)
    # Pillow decodes outside the GIL, so threads are enough.
    with ThreadPoolExecutor() as pool, bar:
        for start in range(0, len(dataset), _CHUNK):
            chunk = dataset.select(range(start, min(start + _CHUNK, len(dataset))))
            for position, found in enumerate(pool.map(attempt, chunk), start):
                bar.update()
                if isinstance(found, UnusableSampleError):
                    bad.add(found.reason, places(position), str(found))
                    continue
                kept.append(position)
                for name, value in found.items():
                    columns[name].append(value)
                if len(kept) == max_samples:
                    break
            if len(kept) == max_samples:
                break
    usable = dataset.select(kept).remove_columns([name for name in columns if name in dataset.column_names])
    for name, values in columns.items():
        usable = usable.add_column(name, values)
    return usable
