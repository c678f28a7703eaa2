"""Tables from strangers: a text never swallows rows, quotes that quote nothing stay, no row vanishes without a count."""

import csv
import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dsocr.data import BadSampleError, BadSamples, DataOptions, load_ocr_dataset, load_training_sets
from dsocr.data.checking import measure_row
from dsocr.data.importers.preparing import PrepareOptions, prepare_dataset
from dsocr.data.loading import Source
from dsocr.data.tables import parse_table


def parse(folder, name, content):
    path = folder / name
    path.write_text(content, encoding="utf-8", newline="")
    bad = BadSamples("skip")
    return [row["text"] for _, row in parse_table(path, bad)], bad


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('image\ttext\n0.png\t"one\n2.png\ttwo\n', ['"one', "two"]),
        ('image\ttext\n0.png\t"Hail" he said\n2.png\ttwo\n', ['"Hail" he said', "two"]),
        ('image\ttext\n0.png\t"a ""b"" c"\n2.png\ttwo\n', ['a "b" c', "two"]),
        ('image\ttext\n0.png\t"two\nlines"\n2.png\ttwo\n', ["two\nlines", "two"]),
        ('image\ttext\n0.png\tends with "\n2.png\t"\n', ['ends with "', '"']),
        ('0.png\t"one\n2.png\ttwo\n', ['"one', "two"]),
        ('0.png\t"Hail" he said\n2.png\ttwo\tthree\n', ['"Hail" he said', "two\tthree"]),
    ],
)
@pytest.mark.parametrize("suffix", ["tsv", "csv"])
def test_a_quotation_mark_swallows_no_row(tmp_path, suffix, content, texts):
    content = content if suffix == "tsv" else content.replace("\t", ",")
    expected = texts if suffix == "tsv" else [text.replace("\t", ",") for text in texts]
    found, bad = parse(tmp_path, f"t.{suffix}", content)
    assert found == expected and not bad.counts


texts = st.lists(
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).map(str.strip).filter(bool), min_size=1
)


@given(texts)
def test_what_a_csv_library_writes_comes_back(tmp_path_factory, lines):
    """Python's own writer quotes as Excel does; every text comes back, each in its own row."""
    for suffix, separator in (("csv", ","), ("tsv", "\t")):
        written = io.StringIO(newline="")
        writer = csv.writer(written, delimiter=separator)
        writer.writerow(["image", "text"])
        writer.writerows([f"{number}.png", text] for number, text in enumerate(lines))
        found, bad = parse(tmp_path_factory.mktemp("t"), f"t.{suffix}", written.getvalue())
        assert found == lines and not bad.counts


@given(texts)
def test_raw_lines_keep_their_number_whatever_they_hold(tmp_path_factory, lines):
    """Without any quoting, as `cut` and `paste` write: as many rows as lines, also where texts hold quotation marks."""
    lines = [" ".join(line.split()) for line in lines]
    content = "".join(f"{number}.png\t{line}\n" for number, line in enumerate(lines))
    found, bad = parse(tmp_path_factory.mktemp("t"), "t.tsv", f"image\ttext\n{content}")
    assert len(found) + bad.counts.total() == len(lines)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"image": "0.png", "text": "a", "text": "b"}', "not_json"),
        ('{"image": "0.png", "text": ' + "9" * 5000 + "}", "not_json"),
        ("[" * 100_000, "not_json"),
        ('{"image": "0.png", "text": ["one"]}', "not_text"),
        ('{"image": "0.png", "text": {"a": 1}}', "not_text"),
        ('{"image": "0.png", "text": true}', "not_text"),
        ('{"image": "0.png", "text": 1.5}', "not_text"),
        ('{"image": ["0.png"], "text": "a"}', "not_text"),
        ('{"image": "0.png", "text": "half \\ud800"}', "not_text"),
        ('{"image": "0\\u0000.png", "text": "a"}', "missing"),
        ('{"image": "' + "n" * 300 + '.png", "text": "a"}', "missing"),
    ],
)
def test_a_malformed_row_is_named_and_never_guessed(tmp_path, line, reason):
    Image.linear_gradient("L").resize((60, 20)).save(tmp_path / "0.png")
    good = '{"image": "0.png", "text": 1905}'
    (tmp_path / "metadata.jsonl").write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(BadSampleError, match=r"metadata.jsonl:2: .*--on_bad_sample skip"):
        load_ocr_dataset(tmp_path)
    bad = BadSamples("skip")
    assert load_ocr_dataset(tmp_path, bad_samples=bad)["text"] == ["1905"]
    assert bad.counts == {reason: 1}


@pytest.fixture
def three_splits(tmp_path):
    for split, count in (("train", 4), ("test", 2), ("validation", 3)):
        (tmp_path / split).mkdir()
        rows = []
        for number in range(count):
            Image.linear_gradient("L").resize((60, 20)).save(tmp_path / split / f"{number}.png")
            rows.append(json.dumps({"image": f"{number}.png", "text": f"{split} {number}", "page": str(number)}))
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_preparing_takes_every_split_folder(three_splits, tmp_path):
    assert prepare_dataset(three_splits, tmp_path / "out", PrepareOptions(), BadSamples()) == 9
    splits = [json.loads(line)["split"] for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert {split: splits.count(split) for split in set(splits)} == {"train": 4, "test": 2, "validation": 3}


def test_a_split_that_is_not_used_is_named(three_splits, caplog):
    with caplog.at_level(logging.WARNING):
        sets = load_training_sets(three_splits, measure_row, BadSamples())
    assert (len(sets.train), len(sets.held_out)) == (4, 2)
    assert "3 rows of split validation are not used" in caplog.text
    chosen = load_training_sets(three_splits, measure_row, BadSamples(), DataOptions(test_split="validation"))
    assert len(chosen.held_out) == 3


def with_splits(folder, words):
    rows = []
    for number, word in enumerate(words):
        Image.linear_gradient("L").resize((60, 20)).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "text": f"t{number}"} | ({} if word is None else {"split": word}))
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


@pytest.mark.parametrize("word", ["TEST", " test ", "holdout", "dev", "Val"])
def test_the_usual_words_for_a_split_are_understood(tmp_path, word):
    sets = load_training_sets(with_splits(tmp_path, ["train", "Train", word]), measure_row, BadSamples())
    assert sets.train["text"] == ["t0", "t1"] and sets.held_out["text"] == ["t2"]


def test_an_unknown_word_for_a_split_stops_the_run(tmp_path):
    with pytest.raises(ValueError, match="metadata.jsonl:3: the split 'tset' is not one of test, train, validation"):
        load_training_sets(with_splits(tmp_path, ["train", "test", "tset"]), measure_row, BadSamples())
    own = DataOptions(train_split="fold1", test_split="fold2")
    sets = load_training_sets(with_splits(tmp_path, ["fold1", "fold2", "fold1"]), measure_row, BadSamples(), own)
    assert len(sets.train) == 2 and sets.held_out["text"] == ["t1"]


def test_a_misspelt_split_stops_the_run_also_where_no_row_is_a_test_row(tmp_path):
    folder = with_splits(tmp_path, ["train"] * 8 + ["tset"] * 2)
    for options in (DataOptions(validation_fraction=0.5), DataOptions(fold="1/2")):
        with pytest.raises(ValueError, match="metadata.jsonl:9: the split 'tset' is not one of"):
            load_training_sets(folder, measure_row, BadSamples(), options)


def test_a_fold_names_the_test_rows_that_it_leaves_out(three_splits, caplog):
    with caplog.at_level(logging.WARNING):
        sets = load_training_sets(three_splits, measure_row, BadSamples(), DataOptions(fold="1/2"))
    assert len(sets.train) + len(sets.held_out) == 4
    assert "3 rows of split validation are not used" in caplog.text
    assert "2 rows of split test are not used" in caplog.text


def test_a_row_without_a_split_among_rows_with_one_is_counted(tmp_path):
    folder = with_splits(tmp_path, ["train", "test", None])
    with pytest.raises(BadSampleError, match="metadata.jsonl:3: this row names no split"):
        load_training_sets(folder, measure_row, BadSamples())
    bad = BadSamples("skip")
    sets = load_training_sets(folder, measure_row, bad)
    assert (len(sets.train), len(sets.held_out), bad.counts) == (1, 1, {"no_split": 1})


def test_a_second_table_is_never_ignored(tmp_path):
    with_splits(tmp_path, ["train"])
    (tmp_path / "metadata.csv").write_text("image,text\n0.png,a\n")
    with pytest.raises(ValueError, match="several metadata files .metadata.jsonl, metadata.csv."):
        Source(tmp_path, BadSamples())
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "metadata.csv").write_text("image,text\n0.png,a\n")
    with pytest.raises(ValueError, match="metadata.jsonl lies beside test/metadata.csv"):
        Source(tmp_path, BadSamples())


def test_a_table_without_the_guards_column_is_never_changed(tmp_path):
    """Nor is a cell that the column does not name."""
    texts = ["'=a", "'-b", "=c", "'d"]
    table = tmp_path / "lines.csv"
    for column, cells in (("note", ["text"] * 4), ("guarded_cells", ["", "page", "yes", "text"])):
        rows = zip(texts, cells, strict=True)
        table.write_text(f"image,text,{column}\n" + "".join(f"{n}.png,{t},{c}\n" for n, (t, c) in enumerate(rows)))
        assert [row["text"] for _, row in parse_table(table, BadSamples())] == texts
