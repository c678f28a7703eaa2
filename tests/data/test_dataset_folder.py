"""Dataset folders: whole or of another name, swept after an unfinished run, and never over somebody's images."""

import json

import pytest

from dsocr.data.dataset_folder import write_dataset_folder


class StoppedError(Exception):
    """Stands for a kill."""


def write(folder, texts, *, stop_after=None):
    with write_dataset_folder(folder, "--output") as writer:
        for number, text in enumerate(texts):
            if number == stop_after:
                raise StoppedError
            writer.add(lambda path: path.write_text("image"), {"text": text}, ".jpg")


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_rows_images_and_a_second_run(tmp_path):
    write(tmp_path, ["a", "é"])
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [{"image": "images/0000000.jpg", "text": "a"}, {"image": "images/0000001.jpg", "text": "é"}]
    with pytest.raises(ValueError, match="--output .*: holds a dataset already; name another folder"):
        write(tmp_path, ["b"])
    assert names(tmp_path) == ["images/0000000.jpg", "images/0000001.jpg", "metadata.jsonl"]


def test_an_unfinished_run_is_swept_and_other_files_stay(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("notes.txt", "images/page.png", "images/12345678.png", "images/000001.png"):
        (tmp_path / name).write_text("mine")
    others = names(tmp_path)
    with pytest.raises(StoppedError):
        write(tmp_path, ["a", "b", "c", "d"], stop_after=3)
    assert not (tmp_path / "metadata.jsonl").exists() and len(names(tmp_path)) == len(others) + 4
    write(tmp_path, ["x"])
    assert names(tmp_path) == sorted([*others, "images/0000000.jpg", "metadata.jsonl"])


def test_images_that_no_unfinished_run_left_are_not_overwritten(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0000003.png").write_text("mine")
    with pytest.raises(ValueError, match="images/0000003.png is there already and would be overwritten"):
        write(tmp_path, ["a"])
    assert names(tmp_path) == ["images/0000003.png"]


def test_a_run_that_wrote_no_row_leaves_nothing(tmp_path):
    with pytest.raises(StoppedError):
        write(tmp_path / "new", ["a"], stop_after=0)
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "page.png").write_text("mine")
    with pytest.raises(StoppedError):
        write(tmp_path, ["a"], stop_after=0)
    assert names(tmp_path) == ["images/page.png"]
