"""Varied training images: repeatable, of the same size, never in evaluation."""

import random

import numpy as np
import pytest
import torch
from helpers.training import build_trainer, line_dataset, logged_losses
from PIL import Image

from dsocr.data.image_files import UnreadableImageError
from dsocr.samples import collator as collator_module
from dsocr.samples.augmentation import augment_image
from dsocr.samples.collator import OcrCollator


def test_the_same_seed_gives_the_same_pixels_and_another_one_others(lines):
    image = lines[0].image.convert("RGB")
    varied = [np.asarray(augment_image(image, random.Random(seed))) for seed in (1, 1, 2, 3, 4, 5)]
    assert all(picture.shape == np.asarray(image).shape for picture in varied)
    assert np.array_equal(varied[0], varied[1])
    assert len({picture.tobytes() for picture in varied}) >= 4
    same = sum(augment_image(image, random.Random(seed)) is image for seed in range(400))
    assert 60 < same < 140, "one in four stays as it is"


def test_ink_stays_inside_and_paper_stays_paper():
    """A long line with ink up to two per cent of its ends."""
    pixels = np.full((48, 960, 3), (240, 235, 220), dtype=np.uint8)
    pixels[18:30, 20:940] = (20, 20, 60)
    image = Image.fromarray(pixels)
    for seed in range(40):
        varied = np.asarray(augment_image(image, random.Random(seed))).astype(int).sum(axis=2)
        ink = varied < varied.max() * 0.5
        assert 0.6 * 12 * 920 < ink.sum() < 1.5 * 12 * 920
        assert ink.any(axis=0)[90:870].mean() > 0.95, "the line is not torn"
        # Uncovered corners are paper, not black.
        assert not ink[0].any() and not ink[-1].any()


def test_a_batch_is_varied_in_training_alone(rows, tiny_v1):
    _, processor = tiny_v1
    plain, varied = OcrCollator(processor), OcrCollator(processor, augment=True)
    expected, first, again = plain(rows[:4]), varied(rows[:4]), varied(rows[:4])
    varied.epoch = 1
    second = varied(rows[:4])
    other_seed = OcrCollator(processor, augment=True, seed=1)(rows[:4])
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    for other in (second, other_seed, expected):
        assert not torch.equal(first["pixel_values"], other["pixel_values"])
    assert torch.equal(first["input_ids"], expected["input_ids"]) and torch.equal(first["labels"], expected["labels"])
    assert torch.equal(varied.without_augmentation()(rows[:4])["pixel_values"], expected["pixel_values"])
    reading = OcrCollator(processor, for_generation=True)(rows[:4])
    varied_reading = OcrCollator(processor, for_generation=True, augment=True)(rows[:4])
    assert torch.equal(reading["pixel_values"], varied_reading["pixel_values"])


def test_a_broken_image_is_still_named(tmp_path, tiny_v1):
    with pytest.raises(UnreadableImageError, match="gone.png"):
        OcrCollator(tiny_v1[1], augment=True)([{"image": str(tmp_path / "gone.png"), "text": "x"}])


def test_evaluation_and_resuming(tmp_path, lines, monkeypatch):
    """What is evaluated is never varied, and a resumed run sees the variations that a whole one sees."""
    dataset = line_dataset(tmp_path / "data", lines)
    seen, augment = [], collator_module.augment_image
    monkeypatch.setattr(collator_module, "augment_image", lambda image, rng: (seen.append(1), augment(image, rng))[1])

    def build(name):
        options = {"max_steps": 6, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 3}
        trainer = build_trainer(tmp_path / name, dataset, eval_dataset=dataset.select(range(4)), **options)
        trainer.data_collator.augment = True
        return trainer

    whole = build("whole")
    whole.train()
    trained = len(seen)
    assert trained >= 24
    whole.evaluate()
    assert len(seen) == trained
    resumed = build("whole")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert logged_losses(resumed)[-3:] == pytest.approx(logged_losses(whole)[-3:], abs=1e-5)


def test_every_epoch_varies_anew_and_workers_agree(tmp_path, lines):
    dataset = line_dataset(tmp_path / "data", lines[:4])
    batches = {}
    for workers in (0, 2):
        options = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "dataloader_num_workers": workers}
        trainer = build_trainer(tmp_path / f"run{workers}", dataset, **options)
        trainer.data_collator.augment = True
        kept, step = [], trainer.training_step
        trainer.training_step = lambda model, inputs, *a, kept=kept, step=step, **k: (
            kept.append({tensor.numpy().tobytes() for tensor in inputs["pixel_values"]}),
            step(model, inputs, *a, **k),
        )[1]
        trainer.train()
        batches[workers] = kept
    assert batches[0] == batches[2]
    assert len(set.union(*batches[0])) >= 7, "four lines in three epochs, one in four as it was"
