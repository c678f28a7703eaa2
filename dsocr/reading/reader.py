"""Load everything needed for reading: a base model, its adapter, and the matching processor."""

import logging
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from dsocr.common.machine import working_dtype
from dsocr.common.run_files import PROCESSOR_NAME
from dsocr.models import load_adapter, load_model
from dsocr.models.adapters import find_base
from dsocr.models.loading import TINY_BASE
from dsocr.samples.processor import OcrProcessor


logger = logging.getLogger(__name__)

# A shipped line, for trying a model out.
SAMPLE_IMAGE = files("dsocr.data") / "examples" / "printed_line.png"
SAMPLE_TEXT = "The quick brown fox jumps over the lazy dog"


class Reader(NamedTuple):
    """A model with its processor, ready to read.

    Attributes:
        model: Native model, or a `PeftModel` when there is an adapter; on the GPU if there is one.
        processor: Its processor.
        name: Hub id or folder of the base model.
    """

    model: PreTrainedModel
    processor: OcrProcessor
    name: str


def load_reader(
    name: str | None, adapter: str | None = None, *, revision: str | None = None, load_in_4bit: bool = False
) -> Reader:
    """Load a base model, put an adapter on it strictly, and find the processor.

    Weights are bfloat16 on a GPU (float16 if it has no bfloat16) and float32 on a CPU. The adapter's folder gives image mode, layout and prompt.

    Args:
        name: Hub id or folder of the base; `None` takes the adapter's own, or the built-in tiny model.
        adapter: Folder of an adapter, or `None`.
        revision: Branch, tag or commit of a Hub id.
        load_in_4bit: See `load_model`.

    Raises:
        ValueError: when the adapter belongs to another base, or a file of it is missing.
    """
    if name is None and adapter is not None:
        name, saved = find_base(adapter)
        revision = revision or saved
    if name is None:
        name = str(TINY_BASE)
        logger.warning("no --model_name_or_path: reading with the built-in tiny model, which is no model for real work")
    model = load_model(
        name,
        revision=revision,
        dtype=working_dtype(),
        load_in_4bit=load_in_4bit,
        device_map={"": "cuda" if torch.cuda.is_available() else "cpu"},
    )
    if adapter is not None:
        model = load_adapter(model, adapter)
    if adapter is not None and (Path(adapter) / PROCESSOR_NAME).is_file():
        processor = OcrProcessor.from_pretrained(adapter)
    else:
        processor = OcrProcessor.from_pretrained(name, revision=revision)
    return Reader(model, processor, name)
