"""Loading datasets, and what is done with bad samples."""

import json
import tracemalloc

import datasets
import pytest
from PIL import Image

from dsocr.data import (
    BadSampleError,
    BadSamples,
    DataOptions,
    checking,
    load_ocr_dataset,
    load_training_sets,
    loading,
    split_by_page,
)
from dsocr.data.loading import Source
from dsocr.data.tables import parse_table
from dsocr.samples.collator import OcrCollator
from dsocr.samples.lengths import SampleMeter, add_lengths, summarize_data


@pytest.fixture
def folder(tmp_path, scratch_image):
    (tmp_path / "images").mkdir()
    for index in range(6):
        scratch_image(80 + index, 40).save(tmp_path / "images" / f"{index}.png")
    return tmp_path


def write_jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


def good_rows(n=6, **fields):
    return [{"image": f"images/{i}.png", "text": f"line {i}", **fields} for i in range(n)]


@pytest.mark.parametrize(
    ("image", "text"),
    [("image", "text"), ("file_name", "text"), ("image_path", "transcription"), ("image", "label")],
)
def test_jsonl_with_the_usual_names(folder, image, text):
    rows = [{image: f"images/{i}.png", text: f"line {i}", "extra": 1} for i in range(3)]
    write_jsonl(folder / "metadata.jsonl", rows)
    for source in (folder, folder / "metadata.jsonl"):
        dataset = load_ocr_dataset(source)
        assert dataset.column_names == ["image", "text", "width", "height"]
        assert dataset["text"] == ["line 0", "line 1", "line 2"]
        assert dataset[0]["image"] == str(folder / "images" / "0.png")


def test_unusual_names_have_to_be_named(folder):
    write_jsonl(folder / "metadata.jsonl", [{"scan": "images/0.png", "says": "one"}])
    with pytest.raises(ValueError, match=r"none of the columns \['says', 'scan'\].*--image_column"):
        load_ocr_dataset(folder)
    assert load_ocr_dataset(folder, image_column="scan", text_column="says")["text"] == ["one"]
    with pytest.raises(ValueError, match="--image_column='photo' is not one of"):
        load_ocr_dataset(folder, image_column="photo")


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
@pytest.mark.parametrize("header", [True, False])
def test_csv_and_tsv(folder, suffix, separator, header):
    lines = [separator.join(("file_name", "text"))] if header else []
    text = f'"Dear sir{separator} yours"' if header else f"Dear sir{separator} yours"
    lines += [separator.join(("images/0.png", text)), separator.join(("images/1.png", "съезд"))]
    (folder / f"metadata.{suffix}").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    assert load_ocr_dataset(folder)["text"] == [f"Dear sir{separator} yours", "съезд"]


def test_text_is_nfc_and_stripped(folder):
    write_jsonl(folder / "metadata.jsonl", [{"image": "images/0.png", "text": "  cafe\u0301 и\u0306 "}])
    assert load_ocr_dataset(folder)["text"] == ["caf\u00e9 \u0439"]


def test_imagefolder_layout_with_train_and_test(folder):
    for split, names in (("train", "012"), ("test", "34")):
        (folder / split).mkdir()
        for name in names:
            (folder / "images" / f"{name}.png").rename(folder / split / f"{name}.png")
        rows = [{"file_name": f"{name}.png", "text": f"{split} {name}"} for name in names]
        write_jsonl(folder / split / "metadata.jsonl", rows)
    assert Source(folder, BadSamples()).has_split("test")
    assert len(load_ocr_dataset(folder, split="train")) == 3
    assert load_ocr_dataset(folder, split="test")["text"] == ["test 3", "test 4"]


def test_split_column(folder):
    rows = good_rows()
    for row in rows:
        row["split"] = "validation" if row["text"] == "line 5" else "train"
    write_jsonl(folder / "metadata.jsonl", rows)
    assert Source(folder, BadSamples()).has_split("test")
    assert load_ocr_dataset(folder, split="test")["text"] == ["line 5"]
    assert len(load_ocr_dataset(folder, split="train")) == 5


def test_a_hub_dataset(folder, monkeypatch):
    """The path of a Hub id, with `datasets` reading from a local Parquet file."""
    features = datasets.Features({"image": datasets.Image(), "transcription": datasets.Value("string")})
    images = [Image.open(folder / "images" / f"{i}.png").copy() for i in range(3)]
    stored = datasets.Dataset.from_dict({"image": images, "transcription": ["a", "b", "c"]}, features=features)
    stored.to_parquet(folder / "data.parquet")
    asked = {}

    def load_dataset(name, config, split, revision):
        asked.update(name=name, split=split, revision=revision)
        return datasets.Dataset.from_parquet(str(folder / "data.parquet"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    dataset = load_ocr_dataset("someone/lines", split="train", revision="abc")
    assert asked == {"name": "someone/lines", "split": "train", "revision": "abc"}
    assert dataset.column_names == ["image", "text", "width", "height"] and dataset["text"] == ["a", "b", "c"]
    assert dataset[0]["image"]["bytes"] is not None


def test_pages_are_kept_and_never_split(folder):
    rows = [{"image": f"images/{i % 6}.png", "text": f"line {i}", "page": f"p{i // 4}"} for i in range(24)]
    dataset = load_ocr_dataset(write_jsonl(folder / "metadata.jsonl", rows))
    train, held_out = split_by_page(dataset, 0.25, seed=3)
    assert not set(train["page"]) & set(held_out["page"])
    assert len(train) + len(held_out) == 24 and len(held_out) >= 6
    again = split_by_page(dataset, 0.25, seed=3)[1]
    assert again["text"] == held_out["text"]


def test_without_pages_the_split_is_by_line_and_says_so(folder, caplog):
    write_jsonl(folder / "metadata.jsonl", good_rows())
    train, held_out = split_by_page(load_ocr_dataset(folder), 0.3)
    assert len(train) == 4 and len(held_out) == 2
    assert "no page is known" in caplog.text


def test_a_fraction_out_of_range_and_a_set_too_small(folder):
    write_jsonl(folder / "metadata.jsonl", good_rows(1))
    dataset = load_ocr_dataset(folder)
    with pytest.raises(ValueError, match="validation_fraction=1.5"):
        split_by_page(dataset, 1.5)
    with pytest.raises(ValueError, match="too few"):
        split_by_page(dataset, 0.5)


BAD = [
    ({"image": "images/gone.png", "text": "x"}, "missing"),
    ({"image": "images/cut.jpg", "text": "x"}, "unreadable"),
    ({"image": "images/dot.png", "text": "x"}, "too_small"),
    ({"image": "images/0.png", "text": "  "}, "empty_text"),
    ({"image": "../secret.png", "text": "x"}, "outside_folder"),
    ({"image": "images/0.png"}, "missing_column"),
    ({"image": "images/0.png", "text": "an <image> in the text"}, "reserved_token"),
    ({"image": "images/0.png", "text": "y" * 3000}, "too_long"),
]


@pytest.fixture
def bad_folder(folder, scratch_image):
    scratch_image(300, 200).save(folder / "images" / "cut.jpg")
    content = (folder / "images" / "cut.jpg").read_bytes()
    (folder / "images" / "cut.jpg").write_bytes(content[: len(content) // 2])
    Image.new("RGB", (1, 1)).save(folder / "images" / "dot.png")
    scratch_image(30, 30).save(folder.parent / "secret.png")
    return folder


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_sample_is_refused_with_file_and_row(bad_folder, tiny_v1, row, reason):
    write_jsonl(bad_folder / "metadata.jsonl", [*good_rows(2), row])
    with pytest.raises(BadSampleError, match=r"metadata.jsonl:3: .*--on_bad_sample skip"):
        load_ocr_dataset(bad_folder, measure=SampleMeter(tiny_v1[1], 2048))


def test_bad_samples_are_skipped_counted_and_written_down(bad_folder, tiny_v1, tmp_path):
    path = write_jsonl(bad_folder / "metadata.jsonl", [*good_rows(2), *(row for row, _ in BAD)])
    with path.open("a", encoding="utf-8") as file:
        file.write("{broken\n")
    bad = BadSamples("skip")
    dataset = load_ocr_dataset(bad_folder, measure=SampleMeter(tiny_v1[1], 2048), bad_samples=bad)
    assert len(dataset) == 2
    assert bad.counts == {**{reason: 1 for _, reason in BAD}, "not_json": 1}
    assert bad.summary().startswith("9 samples skipped (")
    bad.write(tmp_path / "skipped.json")
    written = json.loads((tmp_path / "skipped.json").read_text(encoding="utf-8"))
    assert len(written["samples"]) == 9
    assert all("metadata.jsonl:" in entry["where"] for entry in written["samples"])


def test_empty_and_absent_datasets(tmp_path):
    (tmp_path / "metadata.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no usable sample"):
        load_ocr_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_ocr_dataset("/nowhere/at/all")
    (tmp_path / "metadata.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="no metadata.jsonl"):
        load_ocr_dataset(tmp_path)


def test_several_metadata_files_have_to_be_told_apart(folder):
    write_jsonl(folder / "a.jsonl", good_rows(1))
    write_jsonl(folder / "b.jsonl", good_rows(1))
    with pytest.raises(ValueError, match="a.jsonl, b.jsonl"):
        load_ocr_dataset(folder)


def test_a_file_that_is_not_utf8(folder):
    (folder / "metadata.csv").write_bytes("file_name,text\nimages/0.png,съезд".encode("cp1251"))
    with pytest.raises(ValueError, match="not UTF-8"):
        load_ocr_dataset(folder)


def test_training_sets(folder, tiny_v1):
    write_jsonl(folder / "metadata.jsonl", [row | {"page": row["text"][-1]} for row in good_rows()])
    extra = folder / "extra.jsonl"
    write_jsonl(extra, good_rows(2))
    sets = load_training_sets(
        folder / "metadata.jsonl",
        SampleMeter(tiny_v1[1]),
        BadSamples(),
        DataOptions(validation_fraction=0.3, max_train_samples=3, extra=[f"again={extra}"]),
    )
    assert (len(sets.train), len(sets.held_out), list(sets.evaluated)) == (3, 2, ["held_out", "again"])
    with pytest.raises(ValueError, match="write NAME=PATH"):
        load_training_sets(folder, SampleMeter(tiny_v1[1]), BadSamples(), DataOptions(extra=["nonsense"]))


def test_images_stay_closed_until_needed(folder, tiny_v1):
    """The dataset holds paths, so deleting a file is only noticed by the collator."""
    from dsocr.data.image_files import UnreadableImageError
    from dsocr.samples.collator import OcrCollator

    write_jsonl(folder / "metadata.jsonl", good_rows())
    dataset = load_ocr_dataset(folder)
    (folder / "images" / "2.png").unlink()
    with pytest.raises(UnreadableImageError, match="2.png"):
        OcrCollator(tiny_v1[1])([dataset[2]])


def test_real_lines(shared):
    dataset = load_ocr_dataset(shared / "data" / "stanford1905")
    assert len(dataset) == 347 and dataset.column_names[:3] == ["image", "text", "page"]
    russian = load_ocr_dataset(shared / "data" / "digital_peter")
    assert len(russian) == 619 and "page" not in russian.column_names


@pytest.mark.slow
def test_a_file_of_a_million_rows_streams(tmp_path):
    path = tmp_path / "big.tsv"
    line = "images/0.png\t" + "x" * 40 + "\n"
    with path.open("w") as file:
        for _ in range(100):
            file.write(line * 10_000)
    tracemalloc.start()
    assert sum(1 for _ in parse_table(path, BadSamples("raise"))) == 1_000_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The file has 54 MB.
    assert peak < 2_000_000


def test_enough_samples_end_the_opening_of_images(folder, monkeypatch):
    write_jsonl(folder / "metadata.jsonl", good_rows() * 5000)
    opened = []
    monkeypatch.setattr(checking, "check_image", lambda image: opened.append(image) or (80, 40))
    assert len(load_ocr_dataset(folder, max_samples=3)) == 3
    assert len(opened) < 5000


def test_a_table_is_parsed_once_for_all_its_splits(folder, monkeypatch, tiny_v1):
    rows = [row | {"split": "test" if row["text"] == "line 5" else "train"} for row in good_rows()]
    write_jsonl(folder / "metadata.jsonl", rows)
    parsed, opened = [], []
    parse_table, check_image = loading.parse_table, checking.check_image
    monkeypatch.setattr(loading, "parse_table", lambda *args: parsed.append(args) or parse_table(*args))
    monkeypatch.setattr(checking, "check_image", lambda image: opened.append(image) or check_image(image))
    encoded = []
    encode = tiny_v1[1].encode_answer
    monkeypatch.setattr(tiny_v1[1], "encode_answer", lambda text: encoded.append(text) or encode(text))
    sets = load_training_sets(folder, SampleMeter(tiny_v1[1]), BadSamples())
    assert (len(sets.train), len(sets.held_out)) == (5, 1)
    assert len(parsed) == 1 and len(opened) == 6 and len(encoded) == 6
    # Whatever needs a length or a size later takes the columns.
    lengths = add_lengths(sets.train, tiny_v1[1], "length")["length"]
    summarize_data(sets.train, tiny_v1[1])
    assert len(encoded) == 6
    expected = OcrCollator(tiny_v1[1])([sets.train[0]])["input_ids"].shape[1]
    assert lengths[0] == expected


def test_rows_of_several_chunks_are_all_there(folder):
    write_jsonl(folder / "metadata.jsonl", [row | {"text": f"t{n}"} for n, row in enumerate(good_rows() * 700)])
    assert load_ocr_dataset(folder)["text"] == [f"t{n}" for n in range(4200)]


def test_line_ends_and_separators_inside_quotes(folder):
    (folder / "metadata.csv").write_text('image,text\nimages/0.png,"a, ""b""\nc"\nimages/1.png,d\n', encoding="utf-8")
    assert load_ocr_dataset(folder)["text"] == ['a, "b"\nc', "d"]


def test_a_line_separator_inside_json_is_text(folder):
    text = "a\u2028b"
    (folder / "metadata.jsonl").write_text(json.dumps({"image": "images/0.png", "text": text}, ensure_ascii=False))
    assert load_ocr_dataset(folder)["text"] == [text]
