"""Run a loaded checkpoint: first loss, a line read with and without autocast, memory, experts, lines per second."""

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass

import psutil
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from dsocr.common.machine import half_dtype, peak_memory_gib
from dsocr.data.image_files import measure_image_size
from dsocr.lab.levers import ALL, PATHS
from dsocr.lab.profiling import ExpertPath, RoutingRecorder, observe_experts
from dsocr.lab.random_models import StepOptions
from dsocr.lab.training_step import TrainingStep
from dsocr.models.freezing import bare_model
from dsocr.reading.generation import ReadingOptions, transcribe
from dsocr.reading.metrics import compute_metrics
from dsocr.samples.collator import OcrCollator
from dsocr.samples.processor import OcrProcessor


MAX_NEW_TOKENS = 128
# The recipes' default batch.
BATCH_SIZE = 2
_TIMED_STEPS = {"cpu": 1, "cuda": 5}


@dataclass(frozen=True)
class Peak:
    """Most memory of a phase, GiB; `reserved` is what CUDA's allocator kept for it, `None` on a CPU."""

    used: float
    reserved: float | None

    def describe(self) -> str:
        """The peak in words."""
        if self.reserved is None:
            return f"{self.used:.2f} GiB"
        return f"{self.used:.2f} GiB allocated, {self.reserved:.2f} GiB reserved"


@dataclass(frozen=True)
class Reading:
    """The sample's loss and text.

    Attributes:
        image_tokens: Image tokens of the sample.
        reference: True text of the sample.
        read: Text read by the model in its own type.
        read_autocast: Text read under autocast to `autocast_dtype`, as training computes.
        autocast_dtype: The 16-bit type of autocast.
        cer: Character error rate of `read`.
        loss: Loss per answer token, nats.
        chance_loss: ln(vocabulary).
        rerouted: Share of tokens that autocast sends to another set of experts, over all layers, 0..1.
        lines_per_second: Lines read per second, one at a time.
        peak: Memory.
    """

    image_tokens: int
    reference: str
    read: str
    read_autocast: str
    autocast_dtype: str
    cer: float
    loss: float
    chance_loss: float
    rerouted: float
    lines_per_second: float
    peak: Peak

    @property
    def sound(self) -> bool:
        """Whether the loss is below chance; a loss above it means wrong weights or wiring."""
        return math.isfinite(self.loss) and self.loss < self.chance_loss


@dataclass(frozen=True)
class Training:
    """A training step with LoRA on lines like the sample.

    Attributes:
        lines_per_second: Lines per second with kept vision features, as from the second epoch on.
        vision_seconds: Time of the vision tower for one line, which is seen once.
        peak: Memory; `None` when it ran out.
        checkpointing: Whether activations are computed again.
    """

    lines_per_second: float
    vision_seconds: float
    peak: Peak | None
    checkpointing: bool


@dataclass(frozen=True)
class Running:
    """Everything that was measured on the loaded model; `experts` is the way of its routed experts."""

    parameters: int
    dtype: str
    device: str
    load_seconds: float
    total_gib: float
    reading: Reading
    experts: ExpertPath
    training: Training


def _restart_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(device: torch.device) -> Peak:
    if device.type == "cuda":
        return Peak(torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30)
    return Peak(peak_memory_gib(), None)


def total_memory_gib(device: torch.device) -> float:
    """Memory of the GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    return psutil.virtual_memory().total / 2**30


def autocast_dtype(device: torch.device) -> torch.dtype:
    """The 16-bit type of autocast on a device; CPUs know bfloat16."""
    return half_dtype() if device.type == "cuda" else torch.bfloat16


def read_sample(model: PreTrainedModel, processor: OcrProcessor, image: str, text: str) -> Reading:
    """Compute the loss of one line and read it, plainly and under autocast."""
    bare, device = bare_model(model), next(model.parameters()).device
    half = autocast_dtype(device)
    batch = OcrCollator(processor, dtype=model.dtype)([{"image": image, "text": text}])
    batch = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
    options = ReadingOptions(batch_size=1, max_new_tokens=MAX_NEW_TOKENS, progress=False)
    _restart_peak(device)
    losses, routings, texts, seconds = [], [], [], []
    for autocast in (False, True):
        with torch.autocast(device.type, half) if autocast else nullcontext():
            with torch.inference_mode(), RoutingRecorder(bare) as routing:
                losses.append(float(model(**batch).loss))
            start = time.perf_counter()
            texts.append(transcribe(model, processor, [image], options)[0])
            seconds.append(time.perf_counter() - start)
        routings.append(routing)
    return Reading(
        image_tokens=int((batch["input_ids"] == processor.image_token_id).sum()),
        reference=text,
        read=texts[0],
        read_autocast=texts[1],
        autocast_dtype=str(half).removeprefix("torch."),
        cer=compute_metrics([text], [texts[0]]).cer,
        loss=losses[0],
        chance_loss=math.log(bare.config.get_text_config().vocab_size),
        rerouted=routings[1].share_changed(routings[0]),
        lines_per_second=1 / min(seconds),
        peak=_peak(device),
    )


def time_training(model: PreTrainedModel, processor: OcrProcessor, image: str, text: str) -> Training:
    """Time a step on random lines as large and as long as the sample; the model is changed for good."""
    device = next(model.parameters()).device
    options = StepOptions(
        processor.geometry,
        measure_image_size(image),
        batch_size=BATCH_SIZE,
        answer_tokens=len(processor.encode_answer(text)),
        dtype=model.dtype,
        # As the recipes do.
        checkpointing=device.type == "cuda",
    )
    _restart_peak(device)
    try:
        step = TrainingStep(model, options)
        seen = [step.run(())["vision"] for _ in range(2)]
        kept = [step.run(PATHS[ALL])["step"] for _ in range(1 + _TIMED_STEPS[device.type])]
    except torch.OutOfMemoryError:
        return Training(0.0, 0.0, None, options.checkpointing)
    seconds = sorted(kept[1:])[len(kept[1:]) // 2]
    return Training(BATCH_SIZE / seconds, min(seen) / BATCH_SIZE, _peak(device), options.checkpointing)


def run_checkpoint(
    model: PreTrainedModel, processor: OcrProcessor, image: str, text: str, load_seconds: float
) -> Running:
    """Read one line and time training on a loaded model, with or without an adapter; the model is changed for good."""
    device = next(model.parameters()).device
    reading = read_sample(model, processor, image, text)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    bare = model.unload() if isinstance(model, PeftModel) else model
    return Running(
        parameters=parameters,
        dtype=str(model.dtype).removeprefix("torch."),
        device=device.type,
        load_seconds=load_seconds,
        total_gib=total_memory_gib(device),
        reading=reading,
        experts=observe_experts(bare),
        training=time_training(bare, processor, image, text),
    )
