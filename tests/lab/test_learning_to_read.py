"""A model that can read, through what is done with models: batches, 4 bit, adapters, merging, resuming."""

import itertools

import pytest
import torch
from helpers.models import load_tiny_base
from helpers.training import build_trainer, line_dataset, logged_losses

from dsocr.data.synthetic import generate_lines
from dsocr.lab.rendered_lines import evaluate_lines
from dsocr.models import load_adapter, load_model
from dsocr.models.loading import TINY_BASE
from dsocr.reading.evaluation import evaluate_dataset
from dsocr.reading.generation import ReadingOptions, transcribe


@pytest.fixture(scope="module")
def printed():
    return list(itertools.islice(generate_lines("print", seed=31337, min_length=4), 48))


@pytest.fixture(scope="module")
def handwritten():
    stream = generate_lines("handwriting", seed=31337, min_length=3, max_length=8, fonts=("Neucha",))
    return list(itertools.islice(stream, 96))


def test_batches_read_what_single_images_read(printed):
    model, processor = load_tiny_base()
    images = [line.image for line in printed[:12]]
    single = [transcribe(model, processor, [image], ReadingOptions(progress=False))[0] for image in images]
    assert transcribe(model, processor, images, ReadingOptions(batch_size=5, progress=False)) == single
    assert sum(read == line.text for read, line in zip(single, printed, strict=False)) >= 6


def test_swapped_images_are_noticed(tmp_path, printed):
    model, processor = load_tiny_base()
    dataset = line_dataset(tmp_path, printed)
    assert evaluate_dataset(model, processor, dataset, ReadingOptions(progress=False)).metrics.cer < 0.12
    shuffled = evaluate_dataset(model, processor, dataset, ReadingOptions(progress=False), shuffle_images=True)
    assert shuffled.metrics.cer > 0.6


def test_four_bit_reads_nearly_as_well(printed):
    model, processor = load_tiny_base()
    full = evaluate_lines(model, processor, printed).cer
    quantized = load_model(str(TINY_BASE), dtype="float32", load_in_4bit=True)
    with torch.no_grad():
        inputs = processor(images=[printed[0].image])
        difference = (quantized(**inputs).logits - model(**inputs).logits).abs().max()
    assert difference > 1e-3
    assert evaluate_lines(quantized, processor, printed).cer < full + 0.08


@pytest.mark.slow
def test_an_adapter_learns_a_hand_is_merged_and_resumed(tmp_path, handwritten):
    dataset = line_dataset(tmp_path / "data", handwritten)
    options = {
        "model": load_tiny_base(),
        "max_steps": 60,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-3,
        "save_strategy": "steps",
        "save_steps": 40,
    }
    trainer = build_trainer(tmp_path / "run", dataset, **options)
    before = evaluate_dataset(
        trainer.model, trainer.processing_class, dataset, ReadingOptions(progress=False)
    ).metrics.cer
    trainer.train()
    trained = evaluate_dataset(trainer.model, trainer.processing_class, dataset, ReadingOptions(progress=False))
    assert trained.metrics.cer < 0.75 * before
    trainer.save_model(tmp_path / "run")

    merged = load_adapter(load_tiny_base()[0], tmp_path / "run").merge_and_unload()
    read = evaluate_dataset(merged, trainer.processing_class, dataset, ReadingOptions(progress=False))
    assert read.metrics.cer == pytest.approx(trained.metrics.cer, abs=0.02)

    resumed = build_trainer(tmp_path / "run", dataset, **{**options, "model": load_tiny_base()})
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-40"))
    assert logged_losses(resumed) == pytest.approx(logged_losses(trainer), abs=1e-4)
