"""From files to texts: inputs, lines of pages, formats, reviews."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html import unescape

import pytest
from helpers.models import load_tiny_base
from PIL import Image

from dsocr.data import load_ocr_dataset
from dsocr.data.synthetic import generate_lines
from dsocr.reading.generation import ReadingOptions, read_lines, transcribe
from dsocr.reading.page_inputs import PageInput, list_files, open_pages
from dsocr.reading.page_lines import SegmenterMissingError, cut_lines, join_boxes, load_detector
from dsocr.reading.reader import Reader
from dsocr.reading.transcript_files import ALTO_NAMESPACE, build_alto, open_writer
from dsocr.reading.transcription import TranscribedLine, TranscribedPage, transcribe_pages
from dsocr.report.review import ReviewWriter


@pytest.fixture(scope="module")
def reader():
    return load_tiny_base()


@pytest.fixture(scope="module")
def printed():
    stream = generate_lines("print", seed=99, min_length=4, max_length=10)
    return [next(stream) for _ in range(10)]


def make_pdf(path, images):
    images[0].save(path, save_all=True, append_images=images[1:], resolution=72)
    return path


def test_files_folders_patterns_and_standard_input(tmp_path, monkeypatch):
    for name in ("b.png", "a.jpg", "sub/c.PNG", "note.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20)).save(path, "PNG") if not name.endswith("txt") else path.write_text("x")
    names = [path.name for path in list_files([str(tmp_path)])]
    assert names == ["a.jpg", "b.png", "c.PNG"]
    assert [path.name for path in list_files([str(tmp_path / "*.png"), str(tmp_path / "b.png")])] == ["b.png"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{tmp_path / 'b.png'}\n\n{tmp_path / 'a.jpg'}\n"))
    assert [path.name for path in list_files(["-"])] == ["b.png", "a.jpg"]


def test_words_that_stand_for_nothing_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for word, message in (
        ("empty", "no image .* in this folder"),
        ("gone.png", "there is no such file"),
        ("*.tif", "nothing"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            list_files([str(tmp_path / word)])
    with pytest.raises(FileNotFoundError, match="nothing to read"):
        list_files([])


def test_a_bad_file_is_reported_and_the_rest_goes_on(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "b.pdf").write_bytes(b"no pdf")
    Image.new("RGB", (60, 20), "white").save(tmp_path / "c.png")
    pages = list(open_pages(list_files([str(tmp_path)])))
    assert [page.image is None for page in pages] == [True, True, False]
    assert "not an image" in pages[0].problem and "not a PDF" in pages[1].problem and pages[2].problem == ""


def test_pdf_pages_are_drawn_one_by_one(tmp_path):
    path = make_pdf(tmp_path / "long.pdf", [Image.new("RGB", (72, 36), (i % 256, 0, 0)) for i in range(500)])
    pages = open_pages([path], dpi=144)
    first = next(pages)
    assert (first.name, first.image.size) == (f"{path}#page=1", (144, 72))
    # Closing here must not need the other 499.
    pages.close()
    short = make_pdf(tmp_path / "two.pdf", [Image.new("RGB", (72, 36), "white")] * 2)
    assert [page.name.rpartition("#")[2] for page in open_pages([short])] == ["page=1", "page=2"]
    assert "give a lower --dpi" in next(open_pages([short], dpi=40_000)).problem


def test_pieces_of_a_line_are_joined_in_reading_order():
    boxes = [(300, 12, 380, 42), (10, 100, 200, 130), (10, 10, 120, 40), (130, 14, 290, 44), (700, 10, 800, 40)]
    assert join_boxes(boxes) == [(10, 10, 380, 44), (700, 10, 800, 40), (10, 100, 200, 130)]
    assert join_boxes([]) == []


def test_cut_lines_stay_inside_the_page():
    page = Image.new("RGB", (200, 100), "white")
    cut = cut_lines(page, lambda image: [(0, 0, 200, 20), (50, 60, 100, 100)])
    assert [box for box, _ in cut] == [(0, 0, 200, 23), (44, 54, 106, 100)]
    assert [image.size for _, image in cut] == [(200, 23), (62, 46)]


def test_without_the_segmenter_it_is_said(monkeypatch):
    monkeypatch.setattr("dsocr.reading.page_lines.find_spec", lambda name: None)
    with pytest.raises(SegmenterMissingError, match="pip install rapidocr"):
        load_detector()


def test_real_pages_are_cut_into_lines(shared):
    pytest.importorskip("rapidocr", reason="rapidocr, an optional extra, is not installed")
    page = next(open_pages(sorted((shared / "data" / "stanford1905_pages").glob("*.jpg"))[:1]))
    cut = cut_lines(page.image, load_detector())
    assert len(cut) >= 10
    assert all(image.width > image.height for _, image in cut)


def test_confidence_is_the_mean_probability_of_what_was_read(reader, printed):
    """Against teacher forcing, a token at a time, for lines of different lengths in one batch."""
    import torch

    model, processor = reader
    images = [line.image for line in printed]
    texts = transcribe(model, processor, images, ReadingOptions(batch_size=4, progress=False))
    for line in read_lines(model, processor, images, ReadingOptions(batch_size=4, loop_guard=False, progress=False)):
        assert line.text == texts[line.index]
        sample = processor.prepare(images[line.index], line.text)
        batch = processor.collate([sample], padding_side="right", dtype=torch.float32)
        with torch.no_grad():
            logits = model(**batch).logits[0]
        # An image token is never generated.
        logits[:, processor.image_token_id] = float("-inf")
        answer = sample.input_ids[sample.prompt_length :]
        rows = logits[sample.prompt_length - 1 : -1].softmax(dim=-1)
        expected = float(rows[range(len(answer)), answer].mean())
        assert line.confidence == pytest.approx(expected, abs=1e-3)


def test_pages_come_back_in_order_and_problems_with_them(reader, printed):
    model, processor = reader
    inputs = [PageInput(f"{i}.png", line.image) for i, line in enumerate(printed)]
    inputs.insert(3, PageInput("bad.png", None, "bad.png: broken"))
    inputs.insert(5, PageInput("thin.png", Image.new("RGB", (4000, 5))))
    pages = list(transcribe_pages(Reader(model, processor, ""), inputs, ReadingOptions(batch_size=2, progress=False)))
    assert [page.name for page in pages] == [page.name for page in inputs]
    assert [bool(page.problems) for page in pages].count(True) == 2
    read = [page.text for page in pages if page.lines]
    assert read == transcribe(model, processor, [line.image for line in printed], ReadingOptions(progress=False))
    assert all(0 < line.confidence <= 1 for page in pages for line in page.lines)


def test_whole_pages_are_cut_and_read_line_by_line(reader, printed):
    model, processor = reader
    page = Image.new("RGB", (300, 200), "white")
    boxes = []
    for row, line in enumerate(printed[:3]):
        page.paste(line.image, (20, 10 + 60 * row))
        boxes.append((20, 10 + 60 * row, 20 + line.image.width, 10 + 60 * row + line.image.height))
    inputs = [PageInput("page.png", page), PageInput("blank.png", Image.new("RGB", (300, 200)))]
    found = iter([boxes, []])
    read, blank = transcribe_pages(
        Reader(model, processor, ""), inputs, ReadingOptions(progress=False), detect=lambda image: next(found)
    )
    assert len(read.lines) == 3 and read.size == (300, 200)
    assert [line.box[1] for line in read.lines] == sorted(line.box[1] for line in read.lines)
    assert "no line of text was found" in blank.problems[0][1]


@pytest.fixture
def page():
    line = Image.linear_gradient("L").resize((80, 20)).convert("RGB")
    lines = [
        TranscribedLine((10, 10, 90, 30), line, 'Sie sagte: "ja, 5 < 6" &\x07 ging', 0.91),
        TranscribedLine((10, 40, 90, 60), line, "вторая строка", 0.42),
    ]
    return TranscribedPage("scans/page 1.png", (100, 80), lines)


def test_text_and_json_lines(tmp_path, page, capsys):
    open_writer("text", None, with_names=False).write(page)
    assert capsys.readouterr().out == page.text + "\n"
    writer = open_writer("jsonl", str(tmp_path / "deep" / "out.jsonl"), with_names=True)
    writer.write(page)
    writer.close(complete=True)
    import json

    rows = [json.loads(row) for row in (tmp_path / "deep" / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == [line.text for line in page.lines]
    assert rows[1] == {
        "image": page.name,
        "line": 1,
        "box": [10, 40, 90, 60],
        "text": "вторая строка",
        "confidence": 0.42,
    }


def test_a_file_name_that_is_no_utf8(tmp_path, page):
    page.name = os.fsdecode(b"caf\xe9.png")
    for kind in ("text", "jsonl"):
        writer = open_writer(kind, str(tmp_path / kind), with_names=True)
        writer.write(page)
        writer.close(complete=True)
        assert "caf\\udce9.png" in (tmp_path / kind).read_text(encoding="utf-8")
    assert json.loads((tmp_path / "jsonl").read_text(encoding="utf-8").splitlines()[0])["image"] == page.name
    writer = open_writer("alto", str(tmp_path / "alto"), with_names=True)
    writer.write(page)
    (path,) = (tmp_path / "alto").iterdir()
    assert ElementTree.parse(path).getroot() is not None


def test_alto_is_well_formed_and_holds_boxes_words_and_confidences(tmp_path, page):
    writer = open_writer("alto", str(tmp_path), with_names=True)
    writer.write(page)
    writer.write(page)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page_1.png.xml", "page_1.png_2.xml"]
    root = ElementTree.parse(tmp_path / "page_1.png.xml").getroot()
    space = {"a": ALTO_NAMESPACE}
    lines = root.findall(".//a:TextLine", space)
    assert [line.get("VPOS") for line in lines] == ["10", "40"] and lines[0].get("WIDTH") == "80"
    words = [word.get("CONTENT") for word in lines[0].findall("a:String", space)]
    assert words == ["Sie", "sagte:", '"ja,', "5", "<", '6"', "&", "ging"]
    assert lines[1].find("a:String", space).get("WC") == "0.420"
    assert root.find(".//a:Page", space).get("HEIGHT") == "80"
    assert build_alto(page).getroot().tag == "alto"
    with pytest.raises(ValueError, match="name a folder with --output"):
        open_writer("alto", None, with_names=True)


@pytest.mark.parametrize("name", ["review.csv", "review.html"])
def test_a_review_is_a_dataset_the_least_confident_line_first(tmp_path, page, name):
    writer = ReviewWriter(tmp_path / name)
    writer.add(page)
    written = writer.close()
    assert tmp_path / "review.csv" in written
    dataset = load_ocr_dataset(tmp_path / "review.csv", progress=False)
    assert dataset["text"][0] == "вторая строка" and dataset["page"] == [page.name] * 2
    assert '"ja, 5 < 6"' in dataset["text"][1]
    if name.endswith("html"):
        html = (tmp_path / name).read_text(encoding="utf-8")
        assert html.index("вторая строка") < html.index("Sie sagte") and "&#34;ja, 5 &lt; 6" in html
        assert "http" not in html.replace("http-equiv", "")


FORMULAS = ["=1+2", "+7 900", "-5 °C", "@home", "'=quoted", "'tis", "''=x", '="a,b"', "a=b", "- Да, - сказал он."]


@pytest.fixture
def formula_review(tmp_path, page):
    """A review of lines that look like formulas, from a page with such a name; the folder."""
    image = page.lines[0].image
    lines = [TranscribedLine((0, 0, *image.size), image, text, 0.1 * n) for n, text in enumerate(FORMULAS)]
    writer = ReviewWriter(tmp_path / "review.html")
    writer.add(TranscribedPage("@scan.png", image.size, lines))
    writer.close()
    return tmp_path


def load_texts(table):
    dataset = load_ocr_dataset(table, progress=False)
    assert set(dataset["page"]) == {"@scan.png"}
    return dataset["text"]


def test_no_cell_of_a_review_is_a_formula_and_every_text_comes_back(formula_review):
    table = formula_review / "review.csv"
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert not [cell for row in rows for cell in row.values() if cell[:1] in tuple("=+-@\t\r")]
    assert [row["guarded_cells"] for row in rows] == ["text page"] * 4 + ["page"] * 3 + [
        "text page",
        "page",
        "text page",
    ]
    assert load_texts(table) == FORMULAS
    # A person's corrections of the first four cells: the guard taken away, kept, a new text, a text with an apostrophe.
    for row, text in zip(rows, ["=1+3", "'+7 901", "minus 5", "'tis home"], strict=False):
        row["text"] = text
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert load_texts(table) == ["=1+3", "+7 901", "minus 5", "'tis home", *FORMULAS[4:]]


@pytest.mark.skipif(shutil.which("node") is None, reason="runs the page's script with Node")
def test_what_the_page_saves_is_what_the_recipe_wrote(formula_review):
    html = (formula_review / "review.html").read_text(encoding="utf-8")
    script = html[html.index("<script>") + 8 : html.index("</script>", html.index("<script>"))]
    pairs = re.findall(
        r'value="([^"]*)" data-original="([^"]*)" data-image="([^"]*)" data-confidence="([^"]*)" data-page="([^"]*)"',
        html,
    )
    fields = [list(map(unescape, found)) for found in pairs]
    inputs = [
        {"value": value, "dataset": {"original": original, "image": image, "confidence": confidence, "page": name}}
        for value, original, image, confidence, name in fields
    ]
    assert [entry["value"] for entry in inputs] == FORMULAS
    inputs[8]["value"] = "=b"
    stub = (
        f"const document = {{ querySelectorAll: () => {json.dumps(inputs)}, getElementById: () => ({{ addEventListener() {{}} }}), "
        "addEventListener() {} };"
    )
    ran = subprocess.run(
        ["node", "-e", f"{stub}{script}; process.stdout.write(table())"],
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    rows = list(csv.reader(ran.stdout.splitlines()))
    with (formula_review / "review.csv").open(encoding="utf-8", newline="") as file:
        expected = list(csv.reader(file))
    assert rows[9][1] == "'=b" and rows[9][-1] == "text page"
    assert rows[:9] + rows[10:] == expected[:9] + expected[10:]
    (formula_review / "review.csv").write_text(ran.stdout, encoding="utf-8")
    assert load_texts(formula_review / "review.csv") == [*FORMULAS[:8], "=b", FORMULAS[9]]


def test_a_review_needs_a_known_suffix(tmp_path):
    with pytest.raises(ValueError, match="ends in .html or .csv"):
        ReviewWriter(tmp_path / "review.doc")
