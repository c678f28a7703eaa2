"""Files are written whole or not at all."""

import csv
import itertools
import json

import pytest
from PIL import Image

from dsocr.common.files import load_json, replace_between, write_json, write_text, write_then_rename
from dsocr.data.synthetic import generate_lines, write_dataset
from dsocr.reading.evaluation import EvaluatedSet
from dsocr.reading.transcription import TranscribedLine, TranscribedPage
from dsocr.report.model_card import write_model_card
from dsocr.report.pictures import draw_examples
from dsocr.report.review import ReviewWriter


class StoppedError(Exception):
    """Stands for a signal or a full disk in the midst of writing."""


def stop(*args):
    raise StoppedError


def test_an_interrupted_write_leaves_the_old_file_whole(tmp_path):
    path = write_text(tmp_path / "page.md", "old")
    with pytest.raises(StoppedError), write_then_rename(path) as partial:
        partial.write_text("ne")
        raise StoppedError
    assert path.read_text() == "old" and (tmp_path / "page.md.part").read_text() == "ne"
    with write_then_rename(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new" and [file.name for file in tmp_path.iterdir()] == ["page.md"]


def test_json_and_marked_passages_are_replaced(tmp_path):
    assert load_json(write_json(tmp_path / "a.json", {"text": "Größe"})) == {"text": "Größe"}
    page = write_text(tmp_path / "page.md", "a\n<!-- table -->\nold\n<!-- end of table -->\nb\n")
    replace_between(page, "table", "new")
    assert page.read_text() == "a\n<!-- table -->\nnew\n<!-- end of table -->\nb\n"
    with pytest.raises(ValueError, match="has no <!-- other -->"):
        replace_between(page, "other", "x")


def test_an_interrupted_dataset_leaves_the_old_table_whole(tmp_path):
    lines = list(itertools.islice(generate_lines("print"), 3))
    metadata = write_dataset(tmp_path, lines)
    before = metadata.read_text(encoding="utf-8")
    pictures = [path.read_bytes() for path in sorted((tmp_path / "images").iterdir())]

    def stopped():
        yield from lines[1:]
        raise StoppedError

    with pytest.raises(StoppedError):
        write_dataset(tmp_path, stopped())
    assert metadata.read_text(encoding="utf-8") == before and len(before.splitlines()) == 3
    # Its images are those of its texts: the new ones wait.
    assert [path.read_bytes() for path in sorted((tmp_path / "images").iterdir())] == pictures
    first = (tmp_path / "metadata.jsonl.part").read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(first)["image"] == "images/000000.png"
    (tmp_path / "images" / "mine.txt").write_text("mine")
    write_dataset(tmp_path, lines[1:])
    assert (tmp_path / "images" / "000000.png").read_bytes() == pictures[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "metadata.jsonl"]
    assert (tmp_path / "images" / "mine.txt").exists()


def test_pictures_and_cards_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    results = {"base_model_name_or_path": "base", "image_mode": "tiny", "prompt": "<image>"}
    read = {"before": EvaluatedSet(None, ["text"], ["test"])}
    writers = [
        (lambda: write_model_card(tmp_path, results), tmp_path / "README.md"),
        (
            lambda: draw_examples(tmp_path / "examples.png", [Image.new("RGB", (40, 20))], read),
            tmp_path / "examples.png",
        ),
    ]
    for write, path in writers:
        path.write_text("old")
        with monkeypatch.context() as patch, pytest.raises(StoppedError):
            patch.setattr("dsocr.common.files.os.replace", stop)
            write()
        assert path.read_text() == "old"
        write()
        assert path.read_bytes() != b"old" and not path.with_name(f"{path.name}.part").exists()


def test_an_interrupted_review_leaves_the_corrected_table_whole(tmp_path, monkeypatch):
    path = tmp_path / "review.csv"
    path.write_text("corrected by hand")
    (tmp_path / "review_images").mkdir()
    (tmp_path / "review_images" / "000000.png").write_text("its image")
    writer = ReviewWriter(path)
    image = Image.new("RGB", (40, 20))
    writer.add(TranscribedPage("p.png", image.size, [TranscribedLine((0, 0, 40, 20), image, "read", 0.5)]))

    def stop(self, rows):
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerows", stop)
        with pytest.raises(StoppedError):
            writer.close()
    assert path.read_text() == "corrected by hand"
    assert (tmp_path / "review_images" / "000000.png").read_text() == "its image"
    assert writer.close() == [path] and "read" in path.read_text(encoding="utf-8")
    assert Image.open(tmp_path / "review_images" / "000000.png").size == image.size
    assert not (tmp_path / "review_images.part").exists()
