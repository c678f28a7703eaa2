"""Groups, confusions, worst lines and paired intervals."""

import random

import pytest

from dsocr.data.texts import name_script
from dsocr.reading.comparison import compare_readers, count_confusions, find_worst, group_metrics, name_length
from dsocr.reading.metrics import mark_differences


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Dear sir, 1905", "latin"),
        ("Милостивый государь", "cyrillic"),
        ("сhair", "mixed"),
        ("12.05", "none"),
        ("Καλημέρα", "greek"),
    ],
)
def test_scripts(text, script):
    assert name_script(text) == script


def test_length_bands():
    assert [name_length("x" * n) for n in (1, 10, 11, 30, 31, 60, 61)] == [
        "1-10",
        "1-10",
        "11-30",
        "11-30",
        "31-60",
        "31-60",
        "over 60",
    ]


def test_groups_add_up_and_are_ordered_by_size():
    references, predictions = ["abcd", "абвг", "abcf"], ["abcx", "абвг", "abcf"]
    groups = group_metrics(references, predictions, lambda i: name_script(references[i]))
    assert list(groups) == ["latin", "cyrillic"]
    assert groups["latin"]["cer"] == 1 / 8 and groups["cyrillic"]["cer"] == 0
    assert sum(metrics["n"] for metrics in groups.values()) == 3


def test_confusions_count_replaced_missing_and_invented_characters():
    confusions = count_confusions(["cat", "cot", "dog"], ["cut", "cut", "do"])
    assert ("g", "", 1) in confusions and ("a", "u", 1) in confusions and ("o", "u", 1) in confusions
    assert count_confusions(["ab"], ["axb"]) == [("", "x", 1)]
    assert count_confusions(["same"], ["same"]) == []


def test_worst_lines_come_first_and_right_ones_not_at_all():
    assert find_worst(["abcd", "abcd", "abcd"], ["abcx", "abcd", "xxxx"]) == [2, 0]
    assert find_worst(["abcd"] * 30, ["x"] * 30) == list(range(20))


def test_marked_pieces_spell_the_prediction():
    for reference, prediction in (("house", "hous3s"), ("", "new"), ("gone", ""), ("a b", "a  b")):
        pieces = mark_differences(reference, prediction)
        assert "".join(text for kind, text in pieces if kind != "delete") == " ".join(prediction.split())
        assert all(kind in ("equal", "replace", "insert", "delete") for kind, _ in pieces)


def test_a_paired_interval_is_narrower_than_the_difference_of_two():
    rng = random.Random(0)
    references = ["abcdefghij"] * 200
    # Hard and easy lines; the second reader makes one error less wherever the first makes any.
    errors = [rng.randint(0, 9) for _ in references]
    first = ["x" * n + reference[n:] for n, reference in zip(errors, references, strict=True)]
    second = ["x" * max(n - 1, 0) + r[max(n - 1, 0) :] for n, r in zip(errors, references, strict=True)]
    difference = compare_readers(references, first, second)
    assert difference.low < difference.cer < difference.high < 0 and difference.is_clear
    assert difference.high - difference.low < 0.03
    same = compare_readers(references, first, first)
    assert (same.cer, same.low, same.high, same.is_clear) == (0, 0, 0, False)
    assert compare_readers(references, second, first).cer == pytest.approx(-difference.cer)
