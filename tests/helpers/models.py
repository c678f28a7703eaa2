"""Models for tests: the built-in base, and checkpoints with changed tensors."""

from safetensors.torch import load_file, save_file

from dsocr.models import load_model
from dsocr.models.loading import TINY_BASE
from dsocr.samples.processor import OcrProcessor


def load_tiny_base():
    """The built-in base (fp32) and its processor."""
    return load_model(str(TINY_BASE), dtype="float32"), OcrProcessor.from_pretrained(TINY_BASE)


def rewrite_tensors(path, change) -> None:
    """Let `change` edit the tensors of a safetensors file in place."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
