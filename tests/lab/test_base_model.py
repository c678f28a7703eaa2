"""The built-in base model reads print, and only print."""

import itertools
import json

import pytest
from helpers.models import load_tiny_base
from helpers.recipes import load_recipe

from dsocr.cli.demo import REAL_DIGITS, WRITERS, write_demo_data
from dsocr.cli.parser import parse_recipe
from dsocr.cli.tools import SyntheticArguments
from dsocr.data import load_ocr_dataset
from dsocr.data.synthetic import generate_lines
from dsocr.lab.rendered_lines import evaluate_lines
from dsocr.models import load_model
from dsocr.models.loading import TINY_BASE


@pytest.fixture(scope="module")
def base():
    return load_tiny_base()


def lines(style, count=60, **options):
    return list(itertools.islice(generate_lines(style, seed=424242, **options), count))


def test_it_reads_print_and_not_handwriting(base):
    figures = json.loads((TINY_BASE / "figures.json").read_text(encoding="utf-8"))
    known = next(row["cer"] for row in figures["table"] if row["style"] == "print")
    assert known <= 0.05
    assert evaluate_lines(*base, lines("print")).cer < known + 0.04
    assert evaluate_lines(*base, lines("handwriting")).cer > 0.3


def test_bf16_reads_as_well(base):
    import torch

    model = load_model(str(TINY_BASE), dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    expected = evaluate_lines(*base, lines("print")).cer
    assert evaluate_lines(model, base[1], lines("print")).cer == pytest.approx(expected, abs=0.03)


def test_it_is_small_and_its_card_has_its_figures():
    size = sum(path.stat().st_size for path in TINY_BASE.iterdir())
    assert size < 15e6
    card = (TINY_BASE / "README.md").read_text(encoding="utf-8")
    figures = json.loads((TINY_BASE / "figures.json").read_text(encoding="utf-8"))
    last = figures["history"][-1]
    for fact in (last["step"], last["lines"], f"torch {figures['machine']['torch']}"):
        assert str(fact) in card
    for row in figures["table"]:
        facts = [row["style"], row["script"], row["length"], str(row["lines"]), f"{100 * row['cer']:.1f} %"]
        assert any(facts == line.split(" | ")[:5] for line in card.replace("\n| ", "\n").splitlines()), facts


@pytest.mark.slow
def test_the_demonstrations_sets_do_not_overlap(tmp_path):
    folder, extra = write_demo_data(tmp_path)
    names = dict(word.split("=") for word in extra)
    assert set(names) == {"unseen_fonts", "print", "real_digits"}

    def read(path):
        return [json.loads(line) for line in (path / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]

    train, test = read(folder / "train"), read(folder / "test")
    assert {row["font"] for row in train} == {row["font"] for row in test} == set(WRITERS)
    assert not {row["font"] for row in read(tmp_path / "unseen_fonts")} & set(WRITERS)
    long = {row["text"] for row in train if len(row["text"]) > 6}
    assert not long & {row["text"] for row in test}


def test_real_digits_have_their_source_and_licence():
    readme = (REAL_DIGITS / "README.md").read_text(encoding="utf-8")
    assert "CC BY 4.0" in readme and "10.24432/C50P49" in readme
    rows = (REAL_DIGITS / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 40 and all(json.loads(row)["text"].isdigit() for row in rows)


def test_the_generator_recipe(tmp_path):
    argv = [str(tmp_path), "--style", "print", "--lines", "7", "--scripts", "russian", "--max_length", "6"]
    load_recipe("make_synthetic").main(parse_recipe(SyntheticArguments, argv, None))
    assert len(load_ocr_dataset(tmp_path)) == 7


def test_the_picture_shows_what_was_read(tmp_path):
    from PIL import Image

    from dsocr.reading.evaluation import EvaluatedSet
    from dsocr.reading.metrics import compute_metrics
    from dsocr.report.pictures import draw_examples

    shown = lines("handwriting", 3)
    texts = [line.text for line in shown]
    before = EvaluatedSet(compute_metrics(texts, ["x"] * 3), texts, ["x"] * 3)
    after = EvaluatedSet(compute_metrics(texts, texts), texts, texts)
    path = tmp_path / "examples.png"
    draw_examples(path, [line.image for line in shown], {"before": before, "after": after})
    image = Image.open(path)
    assert image.height > 3 * 100
    colours = {colour for _, colour in image.getcolors(1 << 20)}
    assert (163, 32, 32) in colours and (29, 107, 47) in colours
