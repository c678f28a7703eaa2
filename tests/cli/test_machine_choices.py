"""What the machine decides when the user names nothing."""

from types import SimpleNamespace

import pytest
import torch

from dsocr.cli.machine_choices import FILLED, choose_batch, choose_workers
from dsocr.cli.training import Undecided, parse_arguments
from dsocr.training.memory_plan.plan import RESERVED_BYTES


def parse(*argv, **options):
    return parse_arguments(["--dataset_name", "x", *argv], **options)


def plan_evenly(name, settings, **options):
    """A plan of 10 GB and 1 GB a line, 4 GB without checkpointing; true plans are tested in training."""
    peak = 10e9 + settings.batch_size * (1e9 if settings.checkpointing else 4e9)
    return SimpleNamespace(plan=SimpleNamespace(training_peak_bytes=peak))


@pytest.mark.parametrize(
    ("peak", "batch_size", "checkpointing"), [(42e9, 8, False), (41e9, 8, True), (17e9, 4, True), (5e9, 1, True)]
)
def test_the_largest_batch_that_fits_is_taken_and_the_effective_batch_stays(
    monkeypatch, peak, batch_size, checkpointing
):
    monkeypatch.setattr("dsocr.cli.machine_choices.plan_run", plan_evenly)
    args = parse("--per_device_train_batch_size", "auto", "--activation_checkpointing", "true")
    choose_batch(args, None, (peak + RESERVED_BYTES) / FILLED + 1)
    assert args.training.per_device_train_batch_size == batch_size
    assert args.training.per_device_train_batch_size * args.training.gradient_accumulation_steps == 8
    assert args.training.activation_checkpointing is checkpointing


def test_without_a_gpu_or_with_a_named_size_nothing_changes(tmp_path):
    config = tmp_path / "auto.yaml"
    config.write_text("per_device_train_batch_size: auto\n")
    for argv in (["--per_device_train_batch_size", "auto"], ["--config", str(config)]):
        args = parse(*argv)
        assert isinstance(args.training.per_device_train_batch_size, Undecided)
        choose_batch(args, None, None)
        training = args.training
        assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (2, 4)
    named = parse("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "6")
    choose_batch(named, None, 80e9)
    assert (named.training.per_device_train_batch_size, named.training.gradient_accumulation_steps) == (1, 6)
    quantized = parse("--per_device_train_batch_size", "auto", qlora=True).training
    assert quantized.per_device_train_batch_size * quantized.gradient_accumulation_steps == 8


def test_a_word_that_is_no_size_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse("--per_device_train_batch_size", "car")
    assert "invalid int value: 'car'" in capsys.readouterr().err


def test_workers_are_chosen_where_images_are_cut_on_a_gpu(monkeypatch):
    monkeypatch.setattr("dsocr.cli.machine_choices.count_cores", lambda: 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    args, named = parse(), parse("--dataloader_num_workers", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    choose_workers(args, images_are_cut=True)
    choose_workers(named, images_are_cut=True)
    assert (args.training.dataloader_num_workers, named.training.dataloader_num_workers) == (2, 1)
    args.training.dataloader_num_workers = Undecided(0)
    choose_workers(args, images_are_cut=False)
    assert args.training.dataloader_num_workers == 0
