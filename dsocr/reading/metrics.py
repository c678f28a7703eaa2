"""Error rates of recognised text.

Headline: corpus CER, the sum of edits over the sum of reference characters, after NFC and collapsing white space; case
and punctuation count. One looping line can ruin the mean of per-line CERs, so each is clipped at 1, and the median and
the share of looping outputs are reported beside it.
"""

import random
import re
import statistics
from dataclasses import asdict, dataclass

import jiwer
from rapidfuzz.distance import Levenshtein

from dsocr.data.texts import normalize


_LOOP = re.compile(r"(.{1,60}?)\1{3,}\s*$", re.DOTALL)
MIN_LOOP_CHARACTERS = 20
BOOTSTRAP_SAMPLES = 1000


def _lax(text: str) -> str:
    return "".join(character for character in normalize(text).casefold() if character.isalnum())


def is_looping(text: str) -> bool:
    """Whether a text ends in a unit of up to 60 characters repeated at least four times, 20 characters or more in all.

    Example:
        >>> is_looping("the cat the cat the cat the cat the cat "), is_looping("page 12 .....")
        (True, False)
    """
    match = _LOOP.search(text)
    return match is not None and match.end() - match.start() >= MIN_LOOP_CHARACTERS


@dataclass(frozen=True)
class TextMetrics:
    """Error rates of one set of lines; rates are fractions, 0 is perfect.

    Attributes:
        cer: Corpus character error rate; above 1 when insertions outnumber correct characters.
        cer_low: Lower end of its 95 % bootstrap interval over lines.
        cer_high: Upper end.
        wer: Corpus word error rate.
        exact: Share of lines without any error.
        mean_cer: Mean of the lines' CERs, each clipped at 1.
        median_cer: Median of the lines' CERs.
        lax_cer: Corpus CER of casefolded letters and digits alone.
        empty: Share of empty outputs.
        looping: Share of outputs that end in a loop.
        n: Number of lines.
    """

    cer: float
    cer_low: float
    cer_high: float
    wer: float
    exact: float
    mean_cer: float
    median_cer: float
    lax_cer: float
    empty: float
    looping: float
    n: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def _corpus_rate(edits: list[int], lengths: list[int]) -> float:
    return sum(edits) / max(sum(lengths), 1)


def bootstrap_interval(edits: list[int], lengths: list[int]) -> tuple[float, float]:
    """95 % interval of the corpus rate, from 1000 draws of lines with replacement.

    Pass per-line differences of edit counts (b - a) to get a paired bootstrap interval for CER(b) - CER(a).
    """
    rng = random.Random(0)
    lines = range(len(edits))
    rates = []
    for _ in range(BOOTSTRAP_SAMPLES):
        drawn = rng.choices(lines, k=len(edits))
        rates.append(_corpus_rate([edits[i] for i in drawn], [lengths[i] for i in drawn]))
    rates.sort()
    return rates[round(0.025 * (BOOTSTRAP_SAMPLES - 1))], rates[round(0.975 * (BOOTSTRAP_SAMPLES - 1))]


def count_edits(references: list[str], predictions: list[str]) -> tuple[list[int], list[int]]:
    """Character edits and reference lengths of every line, after `normalize`."""
    pairs = [(normalize(r), normalize(p)) for r, p in zip(references, predictions, strict=True)]
    return [Levenshtein.distance(r, p) for r, p in pairs], [len(r) for r, _ in pairs]


def compute_metrics(references: list[str], predictions: list[str]) -> TextMetrics:
    """Compute error rates of predictions against references.

    Args:
        references: True texts of the lines; none may be empty.
        predictions: Texts read by the model, in the same order.

    Raises:
        ValueError: when the lists differ in length, are empty, or a reference is empty.

    Example:
        >>> compute_metrics(["abcd"], ["abxd"]).cer
        0.25
    """
    if not references or len(references) != len(predictions):
        raise ValueError(f"{len(references)} references and {len(predictions)} predictions cannot be compared.")
    edits, lengths = count_edits(references, predictions)
    if 0 in lengths:
        raise ValueError(f"reference {lengths.index(0)} is empty.")
    lax_edits, lax_lengths = count_edits([_lax(r) for r in references], [_lax(p) for p in predictions])
    rates = [edit / length for edit, length in zip(edits, lengths, strict=True)]
    low, high = bootstrap_interval(edits, lengths)
    n = len(references)
    return TextMetrics(
        cer=_corpus_rate(edits, lengths),
        cer_low=low,
        cer_high=high,
        wer=jiwer.wer([normalize(r) for r in references], [normalize(p) for p in predictions]),
        exact=edits.count(0) / n,
        mean_cer=statistics.fmean(min(rate, 1.0) for rate in rates),
        median_cer=statistics.median(rates),
        lax_cer=_corpus_rate(lax_edits, lax_lengths),
        empty=sum(not normalize(p) for p in predictions) / n,
        looping=sum(is_looping(p) for p in predictions) / n,
        n=n,
    )


def mark_differences(reference: str, prediction: str) -> list[tuple[str, str]]:
    """Split a prediction into pieces `(kind, text)`, kind one of `equal`, `replace`, `insert`, `delete`; a deleted
    piece holds the reference's characters.

    Example:
        >>> mark_differences("house", "hous3s")
        [('equal', 'hous'), ('insert', '3'), ('replace', 's')]
    """
    reference, prediction = normalize(reference), normalize(prediction)
    pieces = []
    for code in Levenshtein.opcodes(reference, prediction):
        if code.tag == "delete":
            pieces.append((code.tag, reference[code.src_start : code.src_end]))
        else:
            pieces.append((code.tag, prediction[code.dest_start : code.dest_end]))
    return pieces
