"""Lines mixed into the training set so that nothing is forgotten."""

import json
import logging

import pytest
from helpers.models import load_tiny_base
from helpers.recipes import load_recipe
from PIL import Image

from dsocr.common.run_files import REPLAY_ANSWERS_NAME
from dsocr.data import BadSamples, load_training_sets
from dsocr.data.synthetic import generate_lines, write_dataset
from dsocr.reading import replay
from dsocr.reading.generation import ReadingOptions, transcribe
from dsocr.reading.replay import ReplayOptions, load_replay
from dsocr.samples.lengths import SampleMeter


READING = ReadingOptions(max_new_tokens=16, progress=False)


@pytest.fixture(scope="module")
def base():
    return load_tiny_base()


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Eight printed lines: as a dataset, and as images alone."""
    stream = generate_lines("print", seed=99, min_length=4, max_length=8)
    lines = [next(stream) for _ in range(8)]
    labelled, images = tmp_path_factory.mktemp("labelled"), tmp_path_factory.mktemp("images")
    write_dataset(labelled, lines)
    for number, line in enumerate(lines):
        line.image.save(images / f"{number}.png")
    return labelled, images


def replayed(base, folder, options, own_lines=8, bad=None):
    model, processor = base
    meter = SampleMeter(processor)
    return load_replay(options, own_lines, model, processor, meter, bad or BadSamples(), READING, folder)


def test_the_fraction_is_of_all_lines_and_a_shortage_is_said(tmp_path, base, printed, caplog):
    half = replayed(base, tmp_path, ReplayOptions([str(printed[0])], 0.5), own_lines=6)
    assert len(half.lines) == 6 and half.origin["own_texts"] == 6 and half.origin["base_answers"] == 0
    with caplog.at_level(logging.WARNING):
        most = replayed(base, tmp_path, ReplayOptions([str(printed[0])], 0.5), own_lines=24)
    assert len(most.lines) == 8 and "the fraction is 0.250" in caplog.text
    assert not (tmp_path / REPLAY_ANSWERS_NAME).exists(), "no answer was needed"


def test_images_alone_get_the_bases_own_answers_once(tmp_path, base, printed, monkeypatch):
    options = ReplayOptions([str(printed[1]), str(printed[0])], 0.6, seed=4)
    found = replayed(base, tmp_path, options)
    silent = [row for row in found.lines if str(printed[1]) in row["image"]]
    assert len(found.lines) == 12 and found.origin["base_answers"] == len(silent) > 0
    expected = transcribe(*base, [row["image"] for row in silent], READING)
    assert [row["text"] for row in silent] == expected and all(expected)
    # A second start, or a resumed run, reads nothing again and trains on the same rows.
    monkeypatch.setattr(replay, "read_lines", lambda model, processor, images, *others, **options: images and 1 / 0)
    again = replayed(base, tmp_path, options)
    assert again.lines.to_dict() == found.lines.to_dict()


def test_lines_on_which_nothing_is_read_are_counted(tmp_path, base, printed, monkeypatch):
    monkeypatch.setattr(replay, "read_lines", lambda *others, **options: [])
    monkeypatch.setattr(replay.PredictionFile, "missing", lambda self, indices: [])
    monkeypatch.setattr(replay.PredictionFile, "__init__", lambda self, path, settings: setattr(self, "rows", Blank()))
    bad = BadSamples("raise")
    found = replayed(base, tmp_path, ReplayOptions([str(printed[1])], 0.5), own_lines=4, bad=bad)
    assert len(found.lines) == 0 and bad.counts == {"empty_text": 4} and found.origin["left_out"] == 4


class Blank(dict):
    def __missing__(self, key):
        return {"prediction": ""}


def test_sources_that_hold_nothing_are_refused(tmp_path, base):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no metadata file and no image"):
        replayed(base, tmp_path, ReplayOptions([str(tmp_path / "empty")]))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        replayed(base, tmp_path, ReplayOptions([str(tmp_path / "gone" / "x.csv")]))


def test_own_lines_stay_in_front_and_the_sample_is_theirs(tmp_path, base, printed, line_folder):
    _, processor = base
    sets = load_training_sets(line_folder, SampleMeter(processor), BadSamples())
    found = replayed(base, tmp_path, ReplayOptions([str(printed[0])], 0.3), own_lines=len(sets.train))
    mixed = sets.with_replay(found.lines, found.origin)
    assert mixed.train["text"] == [*sets.train["text"], *found.lines["text"]]
    assert mixed.train_sample["text"] == sets.train_sample["text"]
    assert mixed.held_out["text"] == sets.held_out["text"]
    # Images stored in a dataset and images in files go together.
    stored = sets.train.cast_column("image", replay_image())
    both = sets.__class__(stored, sets.held_out, {}).with_replay(found.lines, {})
    assert Image.open(both.train[len(sets.train)]["image"]["path"]).size == (
        found.lines[0]["width"],
        found.lines[0]["height"],
    )


def replay_image():
    from datasets import Image as StoredImage

    return StoredImage(decode=False)


def test_a_run_with_replay_says_where_it_comes_from(tmp_path, printed, line_folder, monkeypatch):
    monkeypatch.setattr("sys.argv", ["sft_lora.py"])
    argv = ["--dataset_name", str(line_folder), "--replay_dataset", str(printed[1]), "--replay_fraction", "0.25"]
    argv += ["--max_steps", "1", "--max_new_tokens", "8", "--disable_tqdm", "true", "--output_dir", str(tmp_path)]
    argv += ["--validation_fraction", "0.3", "--eval_strategy", "no", "--save_strategy", "no"]
    load_recipe("sft_lora").run([*argv, "--load_best_model_at_end", "false"])
    summary = json.loads((tmp_path / "data_summary.json").read_text())
    lines = summary["replay"]["lines"]
    assert summary["replay"]["base_answers"] == lines > 0
    assert lines / (lines + summary["train_lines"]) == pytest.approx(0.25, abs=0.06)
    assert (tmp_path / REPLAY_ANSWERS_NAME).is_file()
