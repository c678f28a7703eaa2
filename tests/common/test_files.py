"""Files are written whole or not at all."""

import csv
import itertools
import json

import pytest
from PIL import Image

from dsocr.common.files import load_json, replace_between, write_json, write_text, write_then_rename
from dsocr.data.synthetic import generate_lines, write_dataset
from dsocr.reading.transcription import TranscribedLine, TranscribedPage
from dsocr.report.review import ReviewWriter


class StoppedError(Exception):
    """Stands for a signal or a full disk in the midst of writing."""


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

    def stopped():
        yield from lines[:1]
        raise StoppedError

    with pytest.raises(StoppedError):
        write_dataset(tmp_path, stopped())
    assert metadata.read_text(encoding="utf-8") == before and len(before.splitlines()) == 3
    assert json.loads((tmp_path / "metadata.jsonl.part").read_text(encoding="utf-8"))["image"] == "images/000000.png"


def test_an_interrupted_review_leaves_the_corrected_table_whole(tmp_path, monkeypatch):
    path = tmp_path / "review.csv"
    path.write_text("corrected by hand")
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
    assert writer.close() == [path] and "read" in path.read_text(encoding="utf-8")
