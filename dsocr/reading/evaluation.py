"""Compute a model's error rates on one dataset, or on several by name."""

import contextlib
from dataclasses import dataclass, replace

import torch.distributed as dist
from datasets import Dataset
from transformers import PreTrainedModel

from dsocr.common.machine import process_rank
from dsocr.reading.generation import ReadingOptions, transcribe
from dsocr.reading.metrics import TextMetrics, compute_metrics
from dsocr.samples.lengths import PROMPT_TOKENS
from dsocr.samples.processor import OcrProcessor
from dsocr.samples.vision_cache.cache import FeatureCache


@dataclass(frozen=True)
class EvaluatedSet:
    """Predictions for one dataset, with their error rates.

    Attributes:
        metrics: Error rates.
        references: True texts of the lines.
        predictions: Texts read by the model.
    """

    metrics: TextMetrics
    references: list[str]
    predictions: list[str]


def _gather_texts(texts: list[str]) -> list[list[str]]:
    gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, texts)
    return gathered


def evaluate_dataset(
    model: PreTrainedModel,
    processor: OcrProcessor,
    dataset: Dataset,
    options: ReadingOptions = ReadingOptions(),
    *,
    shuffle_images: bool = False,
    features: FeatureCache | None = None,
    description: str = "Reading",
) -> EvaluatedSet:
    """Compute error rates by generation; in a process group every process reads its share and all get the result.

    Args:
        model: Native model or `PeftModel`.
        processor: Its processor.
        dataset: Columns `image` and `text`; `prompt_tokens` is used if present.
        options: See `read_lines`.
        shuffle_images: Show each line the next line's image. An adapter that really reads gets clearly worse; an
            adapter that only learned letter frequencies does not.
        features: See `read_lines`.
        description: See `read_lines`.
    """
    images, references = list(dataset["image"]), list(dataset["text"])
    counts = list(dataset[PROMPT_TOKENS]) if PROMPT_TOKENS in dataset.column_names else None
    if shuffle_images:
        images = images[1:] + images[:1]
        counts = None if counts is None else counts[1:] + counts[:1]
    rank, ranks = process_rank()
    share = transcribe(
        model,
        processor,
        images[rank::ranks],
        options if rank == 0 else replace(options, progress=False),
        features=features,
        prompt_tokens=None if counts is None else counts[rank::ranks],
        description=description,
    )
    predictions = share
    if ranks > 1:
        predictions = [""] * len(images)
        for other, texts in enumerate(_gather_texts(share)):
            predictions[other::ranks] = texts
    return EvaluatedSet(compute_metrics(references, predictions), references, predictions)


def evaluate_sets(
    model: PreTrainedModel,
    processor: OcrProcessor,
    sets: dict[str, Dataset],
    options: ReadingOptions = ReadingOptions(),
    *,
    without_adapter: bool = False,
    features: FeatureCache | None = None,
) -> dict[str, EvaluatedSet]:
    """Call `evaluate_dataset` on several named sets.

    Args:
        model: Native model or `PeftModel`.
        processor: Its processor.
        sets: Datasets by name.
        options: See `read_lines`.
        without_adapter: Switch the adapter of a `PeftModel` off, to evaluate the base model.
        features: See `read_lines`.
    """
    off = without_adapter and hasattr(model, "disable_adapter")
    with model.disable_adapter() if off else contextlib.nullcontext():
        return {
            name: evaluate_dataset(model, processor, dataset, options, features=features, description=f"Reading {name}")
            for name, dataset in sets.items()
        }
