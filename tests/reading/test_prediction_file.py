"""Predictions survive whatever ends a run."""

import json

import pytest

from dsocr.reading.prediction_file import PredictionFile, PredictionFileError


def test_a_second_start_goes_on(tmp_path):
    path = tmp_path / "deep" / "predictions.jsonl"
    first = PredictionFile(path, {"model": "a", "size": (1, 2)})
    first.add(2, reference="", prediction="two")
    second = PredictionFile(path, {"model": "a", "size": (1, 2)})
    assert second.missing(range(4)) == [0, 1, 3]
    second.add(0, reference="", prediction="нуль\nline")
    assert PredictionFile(path, {"model": "a", "size": [1, 2]}).rows[0]["prediction"] == "нуль\nline"


def test_a_line_that_was_cut_off_is_read_again(tmp_path):
    path = tmp_path / "p.jsonl"
    file = PredictionFile(path, {})
    file.add(0, reference="", prediction="whole")
    with path.open("a", encoding="utf-8") as stream:
        stream.write('{"index": 1, "predic')
    again = PredictionFile(path, {})
    assert again.missing(range(2)) == [1]
    again.add(1, reference="", prediction="now whole")
    assert [json.loads(line).get("index") for line in path.read_text().splitlines()] == [None, 0, 1]


@pytest.mark.parametrize("start", ["", '{"settings": {"mod'])
def test_a_file_without_a_whole_line_begins_anew(tmp_path, start):
    path = tmp_path / "p.jsonl"
    path.write_text(start)
    PredictionFile(path, {"model": "a"}).add(0, reference="y", prediction="x")
    assert PredictionFile(path, {"model": "a"}).missing(range(2)) == [1]
    assert len(path.read_text().splitlines()) == 2


def test_other_settings_and_damage_are_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    PredictionFile(path, {"prompt": "a", "mode": "base"}).add(0, reference="", prediction="x")
    with pytest.raises(PredictionFileError, match="other settings .prompt differ.*another --output_dir"):
        PredictionFile(path, {"prompt": "b", "mode": "base"})
    path.write_text('{"settings": {}}\nnot json\n{"index": 1}\n')
    with pytest.raises(PredictionFileError, match="is damaged"):
        PredictionFile(path, {})
