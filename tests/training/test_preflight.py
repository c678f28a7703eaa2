"""The preflight stops a run that is wired wrongly."""

import pytest
import torch
from helpers.training import build_trainer, line_dataset

from dsocr.samples.collator import IGNORED
from dsocr.training.preflight import PreflightError


@pytest.fixture
def trainer(tmp_path, lines):
    return build_trainer(tmp_path / "run", line_dataset(tmp_path / "data", lines), max_steps=1)


def check(trainer, change=None):
    """Run the preflight, with something broken in the batch first."""
    collate = trainer.data_collator

    def broken(rows):
        batch = collate(rows)
        return change(batch) or batch if change else batch

    trainer.data_collator = broken
    return trainer.preflight(strict=False)


def test_a_sound_run_passes(trainer):
    report = check(trainer)
    assert report.image_tokens > 0 and report.trainable_vision == 0 and report.trainable_text > 0
    assert report.image_effect > 0
    assert len(report.describe()) == 4
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_it_leaves_no_trace(tmp_path, lines):
    from helpers.training import logged_losses

    losses = []
    for preflight in (False, True):
        dataset = line_dataset(tmp_path / "data", lines)
        trainer = build_trainer(tmp_path / "run", dataset, max_steps=3, dropout=0.1)
        if preflight:
            trainer.preflight(strict=False)
        trainer.train()
        losses.append(logged_losses(trainer))
    assert losses[0] == losses[1]


def train_the_prompt(batch):
    batch["labels"] = torch.where(batch["attention_mask"] == 1, batch["input_ids"], IGNORED)


def forget_eos(batch):
    batch["labels"][batch["labels"] == 1] = IGNORED


def cut_the_answer(batch):
    for labels in batch["labels"]:
        first = (labels != IGNORED).nonzero()[0]
        labels[first] = IGNORED


def train_the_padding(batch):
    batch["labels"][batch["attention_mask"] == 0] = 2
    if (batch["attention_mask"] == 1).all():
        batch["labels"][0, 0] = 5


def shift_labels(batch):
    batch["labels"] = batch["labels"].roll(1, dims=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (train_the_prompt, "image tokens are trained on"),
        (forget_eos, "exactly one trained eos"),
        (cut_the_answer, "do not spell the text"),
        (train_the_padding, "padding is trained on|differ from the input ids"),
        (shift_labels, "differ from the input ids"),
    ],
)
def test_broken_labels_are_found(trainer, change, message):
    with pytest.raises(PreflightError, match=message):
        check(trainer, change)


def test_a_missing_image_token_is_found(trainer):
    def drop(batch):
        image = trainer.processing_class.image_token_id
        column = int((batch["input_ids"][0] == image).nonzero()[0])
        batch["input_ids"][:, column] = 60

    with pytest.raises((PreflightError, ValueError), match="image tokens|do not match"):
        check(trainer, drop)


def test_images_that_do_not_reach_the_model_are_found(trainer):
    trainer.model.get_base_model().model.multi_modal_projector.weight.data.zero_()
    with pytest.raises(PreflightError, match="does not change when the images are blanked"):
        check(trainer)


def test_a_parameter_without_gradient_is_found(trainer):
    stray = torch.nn.Parameter(torch.zeros(3))
    trainer.model.get_base_model().register_parameter("stray", stray)
    with pytest.raises(PreflightError, match="1 trainable parameters get no gradient: .*stray"):
        check(trainer)


def test_nothing_trainable_is_found(trainer):
    for parameter in trainer.model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(PreflightError, match="nothing is trainable"):
        check(trainer)


def test_a_first_loss_above_chance_stops_a_real_model_and_warns_of_a_random_one(trainer, caplog):
    trainer.model.get_base_model().lm_head.weight.data.mul_(200)
    assert check(trainer).first_loss > 6
    assert "above chance" in caplog.text
    with pytest.raises(PreflightError, match="above chance, ln.vocabulary. = 5.78"):
        trainer.preflight(strict=True)
