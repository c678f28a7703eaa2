"""Check one batch before the first step: a wrongly wired run stops here instead of after a night."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dsocr.common.errors import PreflightError
from dsocr.data.texts import normalize
from dsocr.models.freezing import bare_model, vision_parameters
from dsocr.samples.collator import IGNORED
from dsocr.samples.processor import OcrProcessor


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreflightReport:
    """Results of the preflight.

    Attributes:
        image_tokens: Image tokens of the batch, equal to the vision features.
        answer_tokens: Trained tokens, eos included.
        trainable_text: Trainable parameters outside the vision side.
        trainable_vision: Trainable parameters of the vision side.
        first_loss: Loss per answer token before training, nats.
        chance_loss: ln(vocabulary), the loss of uniform guessing.
        image_effect: Change of the loss when the images are replaced by grey.
    """

    image_tokens: int
    answer_tokens: int
    trainable_text: int
    trainable_vision: int
    first_loss: float
    chance_loss: float
    image_effect: float

    def describe(self) -> list[str]:
        """The report, one line per check."""
        return [
            f"image tokens {self.image_tokens} = vision features",
            f"answer tokens trained {self.answer_tokens}, eos among them; prompt, image tokens and padding are not",
            f"trainable parameters: text {self.trainable_text:,}, vision {self.trainable_vision:,}",
            f"first loss {self.first_loss:.3f}, chance {self.chance_loss:.3f}; "
            f"images change it by {self.image_effect:.4f}",
        ]


def check_labels(batch: dict[str, Any], processor: OcrProcessor, texts: list[str]) -> list[str]:
    """List the faults in a training batch's labels; empty if they are exactly the answers, each with one eos."""
    problems = []
    eos = processor.tokenizer.eos_token_id
    for row, text in enumerate(texts):
        ids, labels = batch["input_ids"][row], batch["labels"][row]
        trained = labels[labels != IGNORED].tolist()
        if trained.count(eos) != 1 or trained[-1] != eos:
            problems.append(f"row {row}: the answer does not end in exactly one trained eos")
        if processor.image_token_id in trained:
            problems.append(f"row {row}: image tokens are trained on")
        if normalize(processor.tokenizer.decode(trained[:-1])) != normalize(text):
            problems.append(
                f"row {row}: the labels do not spell the text {text[:40]!r}; it was cut or holds the prompt"
            )
        if bool((labels[batch["attention_mask"][row] == 0] != IGNORED).any()):
            problems.append(f"row {row}: padding is trained on")
        if bool(((labels != IGNORED) & (labels != ids)).any()):
            problems.append(f"row {row}: labels differ from the input ids they stand over")
    return problems


def count_features(model: nn.Module, batch: dict[str, Any]) -> int:
    """Number of vision features that the model computes for a batch's images."""
    names = ("pixel_values", "pixel_values_local", "num_local_patches", "patches_grid")
    inputs = {name: batch[name] for name in names if name in batch}
    with torch.no_grad():
        features = model.get_image_features(**inputs, return_dict=True).pooler_output
    return sum(feature.shape[0] for feature in features)


def _blank(pixels: torch.Tensor) -> torch.Tensor:
    """Grey pixels, or features of nothing."""
    return torch.full_like(pixels, 127 if pixels.dtype == torch.uint8 else 0)


def run_preflight(
    model: nn.Module,
    processor: OcrProcessor,
    batch: dict[str, Any],
    texts: list[str],
    compute_loss: Callable[[dict[str, Any]], torch.Tensor],
    *,
    strict: bool = True,
) -> PreflightReport:
    """Check one training batch end to end.

    Args:
        model: The trainer's model, PEFT included, in training mode.
        processor: Its processor.
        batch: Output of the training collator, on the model's device.
        texts: The texts of its rows.
        compute_loss: Computes a batch's loss as the trainer does.
        strict: Whether a first loss above chance stops the run. For the built-in model it only causes a warning: that
            model may meet unfamiliar writing.

    Raises:
        PreflightError: when a check failed; the message lists all failed checks.
    """
    base = bare_model(model)
    problems = check_labels(batch, processor, texts)
    image_tokens = int((batch["input_ids"] == processor.image_token_id).sum())
    features = count_features(base, batch)
    if image_tokens != features:
        problems.append(f"{image_tokens} image tokens, but {features} vision features")

    vision = {id(parameter) for parameter in vision_parameters(model).values()}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    trainable_vision = sum(p.numel() for p in trainable.values() if id(p) in vision)
    trainable_text = sum(p.numel() for p in trainable.values()) - trainable_vision
    if not trainable:
        problems.append("nothing is trainable; check --lora_target_modules")

    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        loss = compute_loss(dict(batch))
        if trainable:
            loss.backward()
        without_gradient = [name for name, parameter in trainable.items() if parameter.grad is None]
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            grey = {k: _blank(v) if k.startswith("pixel_values") else v for k, v in batch.items()}
            # Both with the same dropout, on every device.
            with torch.random.fork_rng(devices=devices):
                loss_seen = float(compute_loss(dict(batch)))
            image_effect = abs(float(compute_loss(grey)) - loss_seen)
    if without_gradient:
        problems.append(
            f"{len(without_gradient)} trainable parameters get no gradient: {', '.join(without_gradient[:3])}"
        )
    if image_effect == 0:
        problems.append("the loss does not change when the images are blanked: they do not reach the model")
    first_loss, chance = float(loss.detach()), math.log(base.config.get_text_config().vocab_size)
    if not math.isfinite(first_loss):
        problems.append(f"the first loss is {first_loss}")
    elif first_loss > chance:
        message = f"the first loss {first_loss:.3f} is above chance, ln(vocabulary) = {chance:.3f}"
        if strict:
            problems.append(f"{message}: labels, prompt or weights are wrong")
        else:
            logger.warning("preflight: %s", message)
    if problems:
        raise PreflightError("preflight failed:\n" + "\n".join(f"  - {problem}" for problem in problems))
    answer_tokens = int((batch["labels"] != IGNORED).sum())
    return PreflightReport(
        image_tokens, answer_tokens, trainable_text, trainable_vision, first_loss, chance, image_effect
    )
