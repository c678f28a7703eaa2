"""The doctor finds what was put into a dataset, and nothing in a clean one."""

import json
import random
import shutil

import numpy as np
import pytest
from datasets import Dataset
from helpers.recipes import load_recipe
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from dsocr.cli.parser import parse_recipe
from dsocr.cli.tools import CheckArguments
from dsocr.data import load_ocr_dataset
from dsocr.data.synthetic import FONT_FOLDER, load_words
from dsocr.data.training_sets import TrainingSets
from dsocr.doctor import examine, examine_quickly, write_repaired
from dsocr.doctor.image_checks import ALIKE_BITS, find_copies, find_look_alikes, fingerprint_image, look_at_all
from dsocr.doctor.length_checks import letter_height, letter_stretch, recommend_mode, summarize_modes
from dsocr.doctor.text_checks import clean_text, has_controls, mend_word, mixed_words
from dsocr.lab.tiny import build_tiny_model
from dsocr.models.loading import TINY_BASE
from dsocr.samples.geometry import image_geometry
from dsocr.samples.processor import OcrProcessor


@pytest.fixture(scope="module")
def processor():
    return OcrProcessor.from_pretrained(TINY_BASE)


def picture(seed, size=(160, 32)):
    import random

    rng, image = random.Random(seed), Image.new("RGB", size, (235, 230, 215))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.randrange(size[0]), rng.randrange(size[1])
        draw.line((x, y, x + rng.randint(-30, 30), y + rng.randint(-20, 20)), fill=(20, 20, 40), width=3)
    return image


def write(folder, rows):
    (folder / "images").mkdir(parents=True)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for number, (image, text, fields) in enumerate(rows):
            name = fields.pop("name", f"images/{number}.png")
            if image is not None:
                image.save(folder / name)
            file.write(json.dumps({"image": name, "text": text, **fields}, ensure_ascii=False) + "\n")
    return folder


def kinds(found):
    return {finding.kind: finding for finding in found.findings}


def test_a_clean_dataset_is_sound(tmp_path, processor):
    rows = [(picture(i), f"plain text {i}", {"page": str(i % 3)}) for i in range(12)]
    found = examine(write(tmp_path / "d", rows), processor)
    assert found.is_sound and found.findings == []
    assert found.summary["rows"] == found.summary["images_opened"] == 12 and found.summary["pages"] == 3
    assert found.summary["alphabet"]["t"] == 24
    assert {"tiny", "small", "base", "large", "gundam", "base wrap"} <= set(found.summary["modes"])


@pytest.fixture
def sick(tmp_path):
    rows = [
        (picture(0), "plain", {"page": "1", "split": "train", "writer": "Anna"}),
        (picture(1), "дoм у реки", {"page": "1", "split": "test", "writer": "Anna"}),
        (Image.new("RGB", (160, 32), "white"), "blank paper", {"page": "2", "split": "train"}),
        (picture(3, (160, 10)), "tiny", {"page": "3", "split": "train"}),
        (None, "missing image", {"page": "3", "split": "train"}),
        (picture(5), "soft\u00adhyphen and \u200bspace", {"page": "4", "split": "train"}),
        (picture(6), "cafe\u0301", {"page": "4", "split": "train"}),
        (picture(7), "", {"page": "5", "split": "train"}),
        (ImageEnhance.Brightness(picture(0)).enhance(0.97).resize((320, 64)), "other", {"page": "6", "split": "test"}),
        (picture(9), "a line that says <image> aloud", {"page": "7", "split": "train"}),
        (picture(10), "x" * 40, {"page": "8", "split": "train"}),
        (picture(11), " two  blanks", {"page": "9", "split": "train"}),
        (None, "climbs out", {"name": "../../etc/passwd", "page": "9"}),
        (picture(10), "another text", {"page": "10", "split": "test"}),
        (picture(10), "x" * 40, {"page": "11", "split": "train"}),
    ]
    return write(tmp_path / "sick", rows)


def test_everything_that_was_put_in_is_found(sick, processor):
    found = examine(sick, processor, max_new_tokens=30)
    rows = {kind: finding.rows for kind, finding in kinds(found).items()}
    assert rows["mixed_scripts"] == [1] and rows["blank"] == [2] and rows["tiny"] == [3] and rows["missing"] == [4]
    assert rows["control_characters"] == [5] and rows["not_nfc"] == [6] and rows["empty_text"] == [7]
    assert rows["look_alikes"] == rows["look_alikes_across"] == [0, 8] and rows["pages_across"] == [0, 1]
    assert rows["copies"] == rows["copies_across"] == rows["copies_other_text"] == [10, 12, 13]
    assert rows["writers_across"] == [0, 1]
    assert rows["reserved_token"] == [9] and rows["too_long_answer"] == [10, 13] and rows["odd_spaces"] == [11]
    assert "outside_folder" in rows
    assert not found.is_sound
    severities = [finding.severity for finding in found.findings]
    assert severities == sorted(severities, key=("error", "warning", "note").index)
    text = "\n".join(found.describe())
    assert "metadata.jsonl:2" in text and "--max_new_tokens 41" in text


def test_files_for_people_and_programs(sick, processor, tmp_path):
    found = examine(sick, processor)
    page = found.write(tmp_path / "out").read_text(encoding="utf-8")
    assert "data:image/jpeg;base64," in page and "http" not in page and "&lt;image&gt; aloud" in page
    content = json.loads((tmp_path / "out" / "doctor.json").read_text(encoding="utf-8"))
    assert {finding["kind"] for finding in content["findings"]} == set(kinds(found))


def test_a_repaired_copy_is_sound_and_the_source_untouched(sick, processor, tmp_path):
    before = {path: path.read_bytes() for path in sick.rglob("*") if path.is_file()}
    found = examine(sick, processor)
    count = write_repaired(found, tmp_path / "mended")
    assert {path: path.read_bytes() for path in sick.rglob("*") if path.is_file()} == before
    again = examine(tmp_path / "mended", processor)
    assert count == len(again.rows) == 9
    left = set(kinds(again)) - {"tiny", "repeated_texts", "split_characters", "look_alikes", "look_alikes_across"}
    pages = {"pages_across", "writers_across"}
    texts = {"copies", "copies_across", "copies_other_text"}
    assert left == pages | texts, "which row goes where, and which text is right, is for a person to say"
    skipped = json.loads((tmp_path / "mended" / "skipped_samples.json").read_text(encoding="utf-8"))
    reasons = ("blank", "missing", "empty_text", "reserved_token", "copy", "outside_folder")
    assert skipped["counts"] == dict.fromkeys(reasons, 1)
    assert found.row_count == count + sum(skipped["counts"].values()), "no row vanishes without a word"
    texts = load_ocr_dataset(tmp_path / "mended", progress=False)["text"]
    assert "дом у реки" in texts and "softhyphen and space" in texts and "two blanks" in texts
    with pytest.raises(ValueError, match="holds a dataset already"):
        write_repaired(found, tmp_path / "mended")


def test_split_folders_are_examined_together(tmp_path, processor):
    for split in ("train", "test"):
        write(tmp_path / "d" / split, [(picture(0), "same in both", {}), (picture(hash(split) % 90 + 5), split, {})])
    found = examine(tmp_path / "d", processor)
    assert found.summary["splits"] == {"test": 2, "train": 2} and "copies_across" in kinds(found)


@pytest.mark.parametrize(
    ("word", "mended"), [("дoм", "дом"), ("Mосква", "Москва"), ("сhair", "chair"), ("ДNA", None), ("ямq", None)]
)
def test_look_alikes_are_put_right_and_real_mixtures_left(word, mended):
    assert mixed_words(f"one {word} two") == [word]
    assert mend_word(word) == mended
    assert clean_text(f" {word}  x") == f"{mended or word} x"


def test_invisible_characters():
    assert has_controls("a\u200bb") and has_controls("a\x07") and has_controls("\ue000")
    assert not has_controls("Милостивый государь,\n№ 5 — «да» ё й")


def test_copies_survive_scaling_and_compression_and_other_lines_are_no_copies(tmp_path):
    first = picture(1, (400, 60))
    first.save(tmp_path / "a.jpg", quality=40)
    copies = [Image.open(tmp_path / "a.jpg"), first.resize((200, 30)), ImageEnhance.Brightness(first).enhance(1.05)]
    distance = [(fingerprint_image(first) ^ fingerprint_image(copy)).bit_count() for copy in copies]
    assert max(distance) <= ALIKE_BITS
    prints = [fingerprint_image(picture(seed, (400, 60))) for seed in range(40)]
    apart = [(a ^ b).bit_count() for i, a in enumerate(prints) for b in prints[:i]]
    assert min(apart) > 2 * ALIKE_BITS
    paths = []
    for number, image in enumerate([first, *copies, *(picture(seed, (400, 60)) for seed in range(2, 20))]):
        paths.append(str(tmp_path / f"{number}.png"))
        image.save(paths[-1])
    facts = look_at_all([*paths, paths[0]])
    assert find_copies(facts) == [[0, len(paths)]]
    assert [set(group) - {len(paths)} for group in find_look_alikes(facts)] == [{0, 1, 2, 3}]


@pytest.mark.parametrize(("words", "size"), [(1, (900, 40)), (1, (300, 70)), (2, (600, 64)), (4, (600, 64))])
def test_different_words_on_clean_paper_are_no_copies(tmp_path, processor, words, size):
    """Mostly white images have nearly equal fingerprints as a whole; --fix deleted 39 of 40 of them."""
    rng, font = random.Random(3), ImageFont.truetype(str(FONT_FOLDER / "Caveat.ttf"), 30)
    texts = [" ".join(rng.sample(load_words("latin"), words)) for _ in range(60)]
    rows = []
    for text in texts:
        image = Image.new("RGB", size, "white")
        ImageDraw.Draw(image).text((6, 2), text, font=font, fill="black")
        rows.append((image, text, {"page": "1"}))
    found = examine(write(tmp_path / "d", rows), processor)
    distinct = len(set(texts))
    assert write_repaired(found, tmp_path / "mended") == distinct
    assert not {"copies_across", "look_alikes_across"} & set(kinds(found))
    alike = kinds(found)["look_alikes"].rows if "look_alikes" in kinds(found) else []
    assert len(alike) <= 2, [texts[i] for i in alike]


def test_real_lines_are_not_taken_for_copies(shared, processor):
    found = examine(shared / "data" / "stanford1905", processor)
    assert "copies" not in kinds(found) and found.is_sound


def test_stretch_and_height_of_letters():
    """1024x96 becomes 9x1 tiles in v1: 5.6 times across, 6.7 times down. 2000x300 becomes 7x1."""
    gundam, small, base = (image_geometry("v1", mode) for mode in ("gundam", "small", "base"))
    assert letter_stretch(gundam, (1024, 96)) == pytest.approx((640 / 96) / (9 * 640 / 1024))
    assert letter_stretch(small, (640, 64)) == pytest.approx(10)
    assert letter_stretch(base, (1024, 96)) == 1
    assert letter_height(base, (2048, 96)) == 48 and letter_height(gundam, (1024, 96)) == 640


def test_the_short_form_of_a_training_run(processor):
    train = Dataset.from_dict({"image": ["a", "b"], "text": ["дoм", "plain"], "page": ["1", "2"]})
    held_out = Dataset.from_dict({"image": ["c"], "text": ["y" * 50], "page": ["1"]})
    found = examine_quickly(TrainingSets(train, held_out, {}), processor, 30)
    assert {finding.kind for finding in found} == {"mixed_scripts", "pages_across", "too_long_answer"}


def test_the_recipe(sick, tmp_path, capsys):
    recipe = load_recipe("check_data")
    argv = [str(sick), "--output_dir", str(tmp_path / "out"), "--fix", str(tmp_path / "mended")]
    assert recipe.main(parse_recipe(CheckArguments, argv, None)) == 1
    assert "9 of 15 rows repaired" in capsys.readouterr().out
    shutil.rmtree(sick / "images")
    with pytest.raises(ValueError, match="only local files|no usable|no row"):
        examine("someone/dataset")


@pytest.mark.parametrize(
    ("size", "flags", "attempt"),
    [
        ((1024, 96), "--image_mode gundam", "--image_mode base --image_layout wrap (4.3 times fewer"),
        ((3000, 60), "--image_mode gundam --image_layout pad", "--image_mode base --image_layout wrap"),
        ((1000, 1400), "--image_mode gundam", ""),
        ((600, 500), "--image_mode gundam", ""),
    ],
)
def test_one_mode_is_recommended(size, flags, attempt):
    processor = build_tiny_model("v1")[1]
    processor.size_divisor, processor.patch_size = 1, 16
    advice = recommend_mode(summarize_modes([size], processor))
    assert advice["flags"] == flags
    assert advice["try"].startswith(attempt) and bool(advice["try"]) == bool(attempt)


@pytest.mark.parametrize("layout", ["original", "pad", "wrap"])
@pytest.mark.parametrize("mode", ["small", "base", "gundam"])
def test_stretch_and_height_are_those_of_the_views(mode, layout):
    """A black square in a line, measured in what the geometry makes of it."""
    line = Image.new("RGB", (1500, 300), "white")
    line.paste("black", (100, 50, 200, 150))
    geometry = image_geometry("v1", mode, layout=layout)
    views = geometry.cut(line)
    shown = views.global_view
    if views.tiles:
        (columns, rows), side = views.grid, geometry.tile_size
        grid = np.stack(views.tiles).reshape(rows, columns, side, side, 3)
        shown = grid.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, 3)
    height, width = np.ptp(np.argwhere(shown[..., 0] < 60), axis=0) + 1
    assert max(width / height, height / width) == pytest.approx(letter_stretch(geometry, line.size), rel=0.05)
    assert height * 3 == pytest.approx(letter_height(geometry, line.size), rel=0.12)


def test_every_row_of_the_source_is_in_the_repaired_copy_or_named(tmp_path):
    """Also rows that are refused before any image is opened, and files of several pages, which training refuses."""
    images = [Image.linear_gradient("L").convert("RGB").resize((60 + index, 40)) for index in range(4)]
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
    images[0].save(tmp_path / "two.gif", save_all=True, append_images=[images[0].rotate(180)])
    rows = [{"image": f"{index}.png", "text": f"line {index}"} for index in range(4)]
    rows += [{"image": "two.gif", "text": "x"}, {"image": "../0.png", "text": "x"}, {"image": "1.png", "text": ["x"]}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = examine(tmp_path)
    assert found.row_count == 7 and not found.is_sound
    assert write_repaired(found, tmp_path / "fixed") == 4
    skipped = json.loads((tmp_path / "fixed" / "skipped_samples.json").read_text())
    assert skipped["counts"] == {"several_pages": 1, "outside_folder": 1, "not_text": 1}
