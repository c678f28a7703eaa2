"""Splits: whole pages, every script, every fold once."""

import random
from collections import Counter

import pytest
from datasets import Dataset

from dsocr.data.splits import expected_half_width, split_by_page, split_into_fold, warn_about_width
from dsocr.data.texts import name_script
from dsocr.data.training_sets import DataOptions, load_training_sets
from dsocr.reading.metrics import compute_metrics
from dsocr.samples.lengths import SampleMeter


@pytest.fixture
def two_scripts():
    """Twelve pages, four of them Russian, of 3 to 8 lines."""
    rng, texts, pages = random.Random(0), [], []
    for page in range(12):
        for line in range(rng.randint(3, 8)):
            texts.append(f"строка {line}" if page % 3 == 0 else f"line {line}")
            pages.append(f"p{page:02d}")
    return Dataset.from_dict({"image": ["x"] * len(texts), "text": texts, "page": pages})


def scripts(dataset):
    return Counter(map(name_script, dataset["text"]))


def test_each_script_is_held_out_in_its_share(two_scripts):
    for seed in range(5):
        train, held_out = split_by_page(two_scripts, 0.25, seed)
        assert not set(train["page"]) & set(held_out["page"])
        assert len(train) + len(held_out) == len(two_scripts)
        for script, count in scripts(two_scripts).items():
            assert 0.15 * count <= scripts(held_out)[script] <= 0.6 * count, (seed, script)
    assert split_by_page(two_scripts, 0.25, 3)[1]["page"] == split_by_page(two_scripts, 0.25, 3)[1]["page"]


def test_a_script_with_one_page_stays_in_train():
    pages = ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    texts = ["слово"] * 4 + ["word"] * 8
    _, held_out = split_by_page(Dataset.from_dict({"text": texts, "page": pages}), 0.3)
    assert set(held_out["text"]) == {"word"}


def test_every_page_is_held_out_in_exactly_one_fold(two_scripts):
    seen, sizes = [], []
    for fold in range(1, 5):
        train, held_out = split_into_fold(two_scripts, fold, 4, seed=1)
        assert not set(train["page"]) & set(held_out["page"])
        assert set(scripts(held_out)) == {"latin", "cyrillic"}
        seen += sorted(set(held_out["page"]))
        sizes.append(len(held_out))
    assert sorted(seen) == sorted(set(two_scripts["page"]))
    assert max(sizes) - min(sizes) <= 8
    with pytest.raises(ValueError, match="too few"):
        split_into_fold(Dataset.from_dict({"text": ["a"], "page": ["1"]}), 2, 2)


def test_folds_of_a_run(line_folder, tiny_v1):
    from dsocr.data import BadSamples

    _, processor = tiny_v1
    held_out = [
        list(
            load_training_sets(line_folder, SampleMeter(processor), BadSamples(), DataOptions(fold=f"{n}/3")).held_out[
                "image"
            ]
        )
        for n in (1, 2, 3)
    ]
    everything = [image for images in held_out for image in images]
    assert len(everything) == len(set(everything))
    assert sum(map(len, held_out)) == 16
    with pytest.raises(ValueError, match="--fold 2: write 2/5"):
        load_training_sets(line_folder, SampleMeter(processor), BadSamples(), DataOptions(fold="2"))


def test_the_foretold_width_is_about_the_measured_one(caplog):
    """Errors in clusters: one line in ten is read wrongly altogether, as handwriting mostly is."""
    rng = random.Random(0)
    references = ["abcdefghij"] * 400
    predictions = ["".join(rng.sample(r, 10)) if rng.random() < 0.13 else r for r in references]
    metrics = compute_metrics(references, predictions)
    measured = (metrics.cer_high - metrics.cer_low) / 2
    assert measured / 2 < expected_half_width(references) < 2 * measured
    small = Dataset.from_dict({"text": references[:50]})
    assert warn_about_width(small) and "50 held-out lines" in caplog.text
    assert not warn_about_width(Dataset.from_dict({"text": references * 10}))


def test_writers_are_kept_apart_when_no_page_is_known():
    writers = ["Anna"] * 5 + ["Boris"] * 5 + ["Clara"] * 5
    lines = Dataset.from_dict({"text": ["word"] * 15, "writer": writers})
    train, held_out = split_by_page(lines, 0.3)
    assert len(set(held_out["writer"])) == 1
    assert not set(train["writer"]) & set(held_out["writer"])
