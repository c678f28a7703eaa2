"""The way in for everything that reads: a base model, the adapter on it, and the processor that fits both."""

import logging
from pathlib import Path

import torch
from transformers import PreTrainedModel

from dsocr.demo import TINY_BASE
from dsocr.models import load_adapter, load_model
from dsocr.models.adapters import find_base
from dsocr.processor import OcrProcessor


logger = logging.getLogger(__name__)


def load_reader(
    name: str | None,
    adapter: str | None,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    load_in_4bit: bool = False,
    image_mode: str | None = None,
    image_layout: str | None = None,
    prompt: str | None = None,
) -> tuple[PreTrainedModel, OcrProcessor, str]:
    """Load a base model, put an adapter on it strictly, and find the processor.

    Args:
        name: Hub id or folder of the base; `None` takes the adapter's own, or the built-in tiny model.
        adapter: Folder of an adapter, or `None`.
        revision: Branch, tag or commit of a Hub id.
        dtype: See `load_model`.
        load_in_4bit: See `load_model`.
        image_mode: `None` takes the adapter's, or the version's usual one.
        image_layout: `None` takes the adapter's, or upstream's own.
        prompt: `None` takes the adapter's, or the version's usual one.

    Returns:
        Model (on the GPU if there is one), processor, and the base's name.

    Raises:
        ValueError: when the adapter belongs to another base, or a file of it is missing.
    """
    if name is None and adapter is not None:
        name, saved = find_base(adapter)
        revision = saved or revision
    if name is None:
        name = str(TINY_BASE)
        logger.warning("no --model_name_or_path: reading with the built-in tiny model, which is no model for real work")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(name, revision=revision, dtype=dtype, load_in_4bit=load_in_4bit, device_map={"": str(device)})
    if adapter is not None:
        model = load_adapter(model, adapter)
    saved_processor = adapter if adapter and (Path(adapter) / "processor_config.json").is_file() else name
    processor = OcrProcessor.from_pretrained(
        saved_processor,
        revision=None if saved_processor == adapter else revision,
        image_mode=image_mode,
        image_layout=image_layout,
        prompt=prompt,
    )
    return model, processor, name
