"""Samples that cannot be used: refused by name, or skipped, counted by reason and written down."""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Literal


logger = logging.getLogger(__name__)

OnBadSample = Literal["raise", "skip"]


class BadSampleError(ValueError):
    """A sample that cannot be used; the message names its file and row."""


class BadSamples:
    """Collects what is wrong with a dataset.

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

        Raises:
            BadSampleError: when `on_bad_sample` is `"raise"`.
        """
        if self.on_bad_sample == "raise":
            raise BadSampleError(f"{where}: {message} (pass --on_bad_sample skip to leave such samples out)")
        self.counts[reason] += 1
        self.entries.append({"reason": reason, "where": where, "message": message})

    def summary(self) -> str:
        """`3 samples skipped (2 missing, 1 empty_text)`, or `no sample skipped`."""
        if not self.counts:
            return "no sample skipped"
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common())
        return f"{self.counts.total()} samples skipped ({reasons})"

    def write(self, path: str | Path) -> None:
        """Write counts and every skipped sample as JSON."""
        content = {"counts": dict(self.counts), "samples": self.entries}
        Path(path).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
