"""Evaluate an adapter trained on a 4-bit base on the 16-bit base, where it will be merged and served."""

import logging
from pathlib import Path

import torch
from datasets import Dataset

from dsocr.models import load_adapter, load_model
from dsocr.models.loading import planned_dtype
from dsocr.reading.evaluation import EvaluatedSet, evaluate_dataset
from dsocr.reading.generation import ReadingOptions
from dsocr.samples.processor import OcrProcessor
from dsocr.training.memory_plan.plan_report import plan_run
from dsocr.training.memory_plan.settings import MemorySettings


logger = logging.getLogger(__name__)


def evaluate_on_full_precision(
    name: str,
    adapter: str | Path,
    processor: OcrProcessor,
    dataset: Dataset,
    options: ReadingOptions,
    *,
    revision: str | None,
    dtype: str,
) -> EvaluatedSet | str:
    """Load the base model unquantised, put the saved adapter on it strictly, and read the dataset.

    Args:
        name: Hub id or folder of the base model.
        adapter: Folder of the adapter.
        processor: Its processor.
        dataset: Columns `image` and `text`.
        options: See `read_lines`.
        revision: Branch, tag or commit of a Hub id.
        dtype: See `load_model`.

    Returns:
        Predictions with error rates, or the reason for skipping the evaluation.
    """
    device_map = None
    if torch.cuda.is_available():
        device_map = {"": torch.cuda.current_device()}
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        settings = MemorySettings(
            dtype=planned_dtype(dtype), eval_batch_size=options.batch_size, answer_tokens=options.max_new_tokens
        )
        report = plan_run(name, settings, revision=revision, image_mode=processor.image_mode, with_savings=False)
        plan = report.plan
        # The model only reads: no gradients, no optimizer.
        needed = plan.weights_bytes + max(plan.vision_bytes, plan.evaluation_bytes)
        if needed > free:
            reason = f"the {dtype} base needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
            logger.warning("the adapter is not measured on the full-precision base: %s", reason)
            return reason
    model = load_model(name, revision=revision, dtype=dtype, device_map=device_map)
    return evaluate_dataset(load_adapter(model, adapter), processor, dataset, options)
