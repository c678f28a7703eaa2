"""dsocr: fine-tune DeepSeek-OCR (v1, v2) and Unlimited-OCR on your own handwriting.

Importing this package is light: a name below imports torch and transformers when it is first used.

    >>> import dsocr
    >>> model = dsocr.load_model("deepseek-ai/DeepSeek-OCR", dtype="bfloat16")  # doctest: +SKIP
    >>> processor = dsocr.OcrProcessor.from_pretrained("deepseek-ai/DeepSeek-OCR")  # doctest: +SKIP
    >>> model = dsocr.load_adapter(model, "outputs/my_adapter")  # doctest: +SKIP
"""

import logging
from importlib import import_module


__version__ = "0.2.0"

_PUBLIC = {
    "OcrCollator": "dsocr.samples.collator",
    "OcrProcessor": "dsocr.samples.processor",
    "load_adapter": "dsocr.models",
    "load_model": "dsocr.models",
    "load_ocr_dataset": "dsocr.data",
    "make_peft_safe": "dsocr.models.peft_wrapper",
    "native_config": "dsocr.models",
    "remove_peft_safe": "dsocr.models.peft_wrapper",
}
__all__ = ["__version__", *_PUBLIC]

# PEFT imports bitsandbytes. On a CPU with AVX512-BF16 bitsandbytes warns that an optional Hub kernel is missing. This
# project downloads no code and the built-in kernel works, so hide the warning: it would mislead a newcomer.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "gemm_4bit_forward" not in record.getMessage()
)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'dsocr' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
