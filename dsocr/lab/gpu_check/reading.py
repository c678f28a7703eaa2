"""Reading by generation: lines per second in small and large batches, and whether autocast changes what is read."""

import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

import torch
from transformers import PreTrainedModel

from dsocr.data.synthetic import generate_lines
from dsocr.lab.gpu_check.setup import CheckSetup, Figures, Probe
from dsocr.lab.parts import measure_reading
from dsocr.lab.random_models import StepOptions, image_with_tiles
from dsocr.lab.rendered_lines import EVALUATION_SEED
from dsocr.lab.verification.running import autocast_dtype
from dsocr.models import load_model
from dsocr.models.loading import TINY_BASE
from dsocr.reading.generation import ReadingOptions, transcribe
from dsocr.reading.metrics import compute_metrics
from dsocr.samples.processor import OcrProcessor


def _time_reading(setup: CheckSetup, model: PreTrainedModel, batch_size: int, autocast: bool) -> Figures:
    geometry = setup.processor("base").geometry
    options = StepOptions(geometry, image_with_tiles(geometry, 0), batch_size, dtype=model.dtype)
    with torch.autocast(setup.device, autocast_dtype(setup.place)) if autocast else nullcontext():
        return {"batch": batch_size, **measure_reading(model, options, 1, setup.new_tokens)}


def _compare_texts(setup: CheckSetup) -> Figures:
    """The built-in base reads rendered print; random weights would read noise, where every rounding shows."""
    model = load_model(str(TINY_BASE), dtype=setup.dtype).to(setup.place)
    processor = OcrProcessor.from_pretrained(TINY_BASE)
    lines = list(itertools.islice(generate_lines("print", seed=EVALUATION_SEED), setup.images))
    options = ReadingOptions(batch_size=8, max_new_tokens=32, progress=False)
    images, texts = [line.image for line in lines], [line.text for line in lines]
    plain = transcribe(model, processor, images, options)
    with torch.autocast(setup.device, autocast_dtype(setup.place)):
        under = transcribe(model, processor, images, options)
    return {
        "lines": len(lines),
        "same_text": sum(one == two for one, two in zip(plain, under, strict=True)),
        "cer": compute_metrics(texts, plain).cer,
        "cer_autocast": compute_metrics(texts, under).cer,
    }


def reading_probes(setup: CheckSetup) -> Iterator[Probe]:
    """Every batch size with and without autocast, then the texts of the built-in base."""
    model = setup.model()
    for batch_size in setup.reading_batches:
        yield f"batch {batch_size}", partial(_time_reading, setup, model, batch_size, False)
        yield f"batch {batch_size}, autocast", partial(_time_reading, setup, model, batch_size, True)
    yield "the same text with autocast", partial(_compare_texts, setup)
