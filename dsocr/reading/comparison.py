"""Show where a reader errs and whether one reader beats another: groups, confusions, worst lines, paired intervals."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass

from rapidfuzz.distance import Levenshtein

from dsocr.data.texts import normalize
from dsocr.reading.metrics import bootstrap_interval, compute_metrics, count_edits


LENGTH_LIMITS = (10, 30, 60)
# Confusions and worst lines in a report.
SHOWN = 20


def name_length(text: str) -> str:
    """Length band of a text: `"1-10"`, `"11-30"`, `"31-60"` or `"over 60"` characters."""
    length, low = len(normalize(text)), 1
    for limit in LENGTH_LIMITS:
        if length <= limit:
            return f"{low}-{limit}"
        low = limit + 1
    return f"over {LENGTH_LIMITS[-1]}"


def group_metrics(
    references: list[str], predictions: list[str], key: Callable[[int], str]
) -> dict[str, dict[str, float]]:
    """Compute error rates by group.

    Args:
        references: True texts of the lines.
        predictions: Texts read by the model.
        key: Maps a line's index to the name of its group.

    Returns:
        `TextMetrics` as dictionaries, the largest group first.
    """
    groups: dict[str, list[int]] = {}
    for index in range(len(references)):
        groups.setdefault(key(index), []).append(index)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return {
        name: compute_metrics([references[i] for i in indices], [predictions[i] for i in indices]).to_dict()
        for name, indices in ordered
    }


@dataclass(frozen=True)
class Difference:
    """CER of a second reader minus CER of a first one, on the same lines.

    Attributes:
        cer: The difference; negative when the second is better.
        low: Lower end of its 95 % paired bootstrap interval.
        high: Upper end.
    """

    cer: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict:
        return {**asdict(self), "is_clear": self.is_clear}


def compare_readers(references: list[str], first: list[str], second: list[str]) -> Difference:
    """Difference of two readers' corpus CERs; its bootstrap interval draws the same lines for both.

    Args:
        references: True texts of the lines.
        first: Texts from the first reader (the base model, say).
        second: Texts from the second reader.

    Source: paired bootstrap, Koehn, "Statistical significance tests for machine translation evaluation", 2004.
    """
    first_edits, lengths = count_edits(references, first)
    second_edits, _ = count_edits(references, second)
    gains = [after - before for before, after in zip(first_edits, second_edits, strict=True)]
    low, high = bootstrap_interval(gains, lengths)
    return Difference(sum(gains) / max(sum(lengths), 1), low, high)


def count_confusions(references: list[str], predictions: list[str]) -> list[tuple[str, str, int]]:
    """The 20 most frequent character errors as `(reference, read, count)`; an empty string is a missing character."""
    counts: Counter[tuple[str, str]] = Counter()
    for reference, prediction in zip(references, predictions, strict=True):
        reference, prediction = normalize(reference), normalize(prediction)
        for edit in Levenshtein.editops(reference, prediction):
            old = "" if edit.tag == "insert" else reference[edit.src_pos]
            new = "" if edit.tag == "delete" else prediction[edit.dest_pos]
            counts[old, new] += 1
    return [(old, new, count) for (old, new), count in counts.most_common(SHOWN)]


def find_worst(references: list[str], predictions: list[str]) -> list[int]:
    """Indices of the 20 lines with the highest CER, the worst first; lines without error are left out."""
    edits, lengths = count_edits(references, predictions)
    order = sorted(range(len(edits)), key=lambda i: (-edits[i] / max(lengths[i], 1), -edits[i], i))
    return [index for index in order if edits[index]][:SHOWN]
