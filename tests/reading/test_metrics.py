"""Error rates."""

import jiwer
import pytest

from dsocr.data.texts import normalize
from dsocr.reading.metrics import bootstrap_interval, compute_metrics, is_looping


def test_corpus_rates_are_those_of_jiwer():
    references = ["Dear sir", "I am in receipt of", "съезд ёлка"]
    predictions = ["Dear sit", "I am receipt of it", "съезд елка"]
    metrics = compute_metrics(references, predictions)
    assert metrics.cer == pytest.approx(jiwer.cer(references, predictions))
    assert metrics.wer == pytest.approx(jiwer.wer(references, predictions))
    assert metrics.exact == 0
    assert metrics.cer_low <= metrics.cer <= metrics.cer_high


def test_corpus_rate_is_not_the_mean_of_lines():
    metrics = compute_metrics(["a", "b" * 99], ["x", "b" * 99])
    assert metrics.cer == pytest.approx(0.01)
    assert metrics.mean_cer == pytest.approx(0.5)
    assert metrics.median_cer == pytest.approx(0.5)
    assert metrics.exact == 0.5


def test_case_punctuation_and_yo_count_white_space_and_composition_do_not():
    assert compute_metrics(["Ёж."], ["ёж."]).cer == pytest.approx(1 / 3)
    assert compute_metrics(["ёж."], ["еж"]).cer == pytest.approx(2 / 3)
    assert compute_metrics(["a  b"], [" a\nb "]).cer == 0
    assert compute_metrics(["caf\u00e9"], ["cafe\u0301"]).cer == 0
    assert normalize(" е\u0308 ") == "ё"
    assert compute_metrics(["Dear, Sir!"], ["dear sir"]).lax_cer == 0


def test_one_loop_does_not_ruin_the_clipped_mean():
    metrics = compute_metrics(["abcd"] * 4, ["abcd"] * 3 + ["ab " * 200])
    assert metrics.cer > 30
    assert metrics.mean_cer == pytest.approx(0.25)
    assert metrics.median_cer == 0
    assert metrics.looping == 0.25


def test_empty_outputs_are_counted():
    metrics = compute_metrics(["abc", "abc"], ["", "abc"])
    assert (metrics.empty, metrics.cer) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("text", "looping"),
    [
        ("the cat " * 5, True),
        ("x" * 40, True),
        ("page 12 ........", False),
        ("Dear sir, I am in receipt of your letter", False),
        ("", False),
        ("good start then one two one two one two one two one two", True),
    ],
)
def test_looping(text, looping):
    assert is_looping(text) is looping


def test_the_interval_is_seeded_and_narrows():
    few = bootstrap_interval([0, 1, 2, 3] * 5, [10] * 20)
    many = bootstrap_interval([0, 1, 2, 3] * 100, [10] * 400)
    assert few == bootstrap_interval([0, 1, 2, 3] * 5, [10] * 20)
    assert many[1] - many[0] < few[1] - few[0]


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="2 references and 1 predictions"):
        compute_metrics(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="reference 0 is empty"):
        compute_metrics([" "], ["a"])
    with pytest.raises(ValueError, match="0 references"):
        compute_metrics([], [])
