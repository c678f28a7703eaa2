"""Verify a checkpoint or adapter on one shipped line."""

import math
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch

from dsocr.common.machine import peak_memory_gib
from dsocr.common.run_files import ADAPTER_CONFIG_NAME
from dsocr.models import load_adapter, load_model
from dsocr.models.adapters import find_base
from dsocr.reading.generation import ReadingOptions, transcribe
from dsocr.reading.metrics import compute_metrics
from dsocr.samples.collator import OcrCollator
from dsocr.samples.processor import OcrProcessor


SAMPLE_IMAGE = files("dsocr.data") / "examples" / "printed_line.png"
SAMPLE_TEXT = "The quick brown fox jumps over the lazy dog"
MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class Verification:
    """Results of verifying a checkpoint.

    Attributes:
        model: Name of the loaded checkpoint or adapter.
        parameters: Number of parameters.
        dtype: Their dtype.
        device: Device of the check.
        load_seconds: Time of loading.
        image_tokens: Image tokens of the sample.
        reference: True text of the sample.
        read: Text read by the model.
        cer: Character error rate of that text.
        loss: Loss per answer token, nats.
        chance_loss: ln(vocabulary).
        peak_memory_gib: Peak memory of the process, GiB.
    """

    model: str
    parameters: int
    dtype: str
    device: str
    load_seconds: float
    image_tokens: int
    reference: str
    read: str
    cer: float
    loss: float
    chance_loss: float
    peak_memory_gib: float

    @property
    def sound(self) -> bool:
        """Whether the loss is below chance; a loss above it means wrong weights or wiring."""
        return math.isfinite(self.loss) and self.loss < self.chance_loss

    def describe(self) -> list[str]:
        """The report, one line per fact."""
        verdict = "below chance: sound" if self.sound else "NOT below chance: weights, prompt or wiring are wrong"
        return [
            f"model        {self.model}",
            f"parameters   {self.parameters / 1e6:.1f} M in {self.dtype} on {self.device}; 0 tensors missing, 0 unexpected",
            f"loaded in    {self.load_seconds:.1f} s",
            f"image        {self.image_tokens} image tokens",
            f"reference    {self.reference}",
            f"read         {self.read}",
            f"CER          {self.cer:.3f}",
            f"first loss   {self.loss:.3f} per answer token, ln(vocabulary) {self.chance_loss:.3f}: {verdict}",
            f"peak memory  {self.peak_memory_gib:.2f} GiB",
        ]


def verify_checkpoint(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    image_mode: str | None = None,
    image: str | None = None,
    text: str | None = None,
) -> Verification:
    """Load a checkpoint (or an adapter and its base) strictly, read one line, and measure loss and memory.

    Args:
        name: Hub id, checkpoint folder or adapter folder.
        revision: Revision of a Hub id.
        dtype: Dtype of the loaded weights.
        image_mode: Image mode; `None` takes the saved one.
        image: Image of one line; `None` takes the shipped sample.
        text: Text on the image; needed with `image`.

    Raises:
        ModelLoadError: when the checkpoint is not complete.
        ValueError: when an image is given without its text, or an adapter does not fit its base.
    """
    if (image is None) is not (text is None):
        raise ValueError("--image and --text go together: the loss needs to know what the line says.")
    if image is None or text is None:
        image, text = str(SAMPLE_IMAGE), SAMPLE_TEXT
    base, adapter = name, None
    if (Path(name) / ADAPTER_CONFIG_NAME).is_file():
        adapter = name
        base, saved = find_base(name)
        revision = revision or saved
    start = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(base, revision=revision, dtype=dtype).to(device)
    if adapter is not None:
        model = load_adapter(model, adapter)
    model.eval()
    load_seconds = time.perf_counter() - start
    processor = OcrProcessor.from_pretrained(adapter or base, revision=revision, image_mode=image_mode)
    batch = OcrCollator(processor, dtype=model.dtype)([{"image": image, "text": text}])
    batch = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
    with torch.inference_mode():
        loss = float(model(**batch).loss)
    read = transcribe(model, processor, [image], ReadingOptions(max_new_tokens=MAX_NEW_TOKENS, progress=False))[0]
    return Verification(
        model=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        device=device,
        load_seconds=load_seconds,
        image_tokens=int((batch["input_ids"] == processor.image_token_id).sum()),
        reference=text,
        read=read,
        cer=compute_metrics([text], [read]).cer,
        loss=loss,
        chance_loss=math.log(model.config.get_text_config().vocab_size),
        peak_memory_gib=peak_memory_gib(),
    )
