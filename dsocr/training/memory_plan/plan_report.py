"""Report a run's memory plan as text or JSON: the need, the cards that fit, the flags that free most."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers.initialization import no_init_weights

from dsocr.common.hub import load_json_of
from dsocr.common.machine import find_unused_gpu
from dsocr.common.run_files import PROCESSOR_NAME
from dsocr.models.config import RELEASED, model_version, native_config, released_config
from dsocr.models.loading import TINY_BASE, find_model_class, load_raw_config
from dsocr.samples.geometry import PATCH_SIZE, ImageGeometry, image_geometry
from dsocr.samples.processor import DEFAULT_MODE
from dsocr.training.memory_plan.plan import CARDS_GIB, RESERVED_BYTES, MemoryPlan, plan_memory
from dsocr.training.memory_plan.settings import MemorySettings, cheaper_settings


logger = logging.getLogger(__name__)

_SMALLER_MODES = {"gundam": "base", "large": "base", "base": "small", "small": "tiny"}
# Parameters from which a model is not trained on a CPU unless asked for.
LARGE_MODEL = 1e9
# A plan may be wrong by this factor, so a run is refused only if it exceeds a card's memory by more.
TOLERANCE = 1.15


class NotEnoughMemoryError(ValueError):
    """The GPU is too small for the run."""


@dataclass(frozen=True)
class PlanReport:
    """A memory plan, with possible savings.

    Attributes:
        model: Name of the model.
        image_mode: Its image mode.
        plan: The plan.
        savings: Bytes that a flag would save at the peak, by flag, the largest first.
    """

    model: str
    image_mode: str
    plan: MemoryPlan
    savings: dict[str, int]

    def describe(self) -> list[str]:
        """The report, line by line, for a terminal."""
        plan = self.plan
        shown = [
            f"memory plan for {self.model}, image mode {self.image_mode} (up to {plan.image_tokens} image tokens an "
            f"image), {plan.trainable_parameters / 1e6:.2f} M trainable parameters"
        ]
        stays = {"weights": plan.weights_bytes, "LoRA": plan.adapter_bytes, "gradients": plan.gradient_bytes}
        stays["optimizer"] = plan.optimizer_bytes
        phases = {
            "vision": plan.vision_bytes,
            "language model, forward and backward": plan.language_bytes,
            "loss over the vocabulary": plan.logits_bytes,
            "optimizer step": plan.update_bytes,
            "generation in evaluation": plan.evaluation_bytes,
        }
        shown += [f"  {_gb(size)}  {name}" for name, size in stays.items()]
        largest = max(phases, key=lambda name: phases[name])
        shown += [f"  {_gb(size)}  {'+' if name == largest else ' '} {name}" for name, size in phases.items()]
        shown.append(f"  {_gb(plan.peak_bytes)}  peak: the first four and the largest phase (+)")
        reserve = f"{RESERVED_BYTES / 1e9:.2f} GB reserved for CUDA and rounding, an assumption"
        cards = ", ".join(f"{card} GB {'yes' if plan.fits(card) else 'no'}" for card in CARDS_GIB)
        shown.append(f"fits a card of: {cards} ({reserve})")
        if self.savings:
            freed = "; ".join(f"{flag} frees {size / 1e9:.2f} GB" for flag, size in self.savings.items())
            shown.append(f"frees most: {freed}")
        return shown

    def render(self, form: str) -> str:
        """Format the plan as `"text"` or `"json"`."""
        return self.to_json() if form == "json" else "\n".join(self.describe())

    def to_json(self) -> str:
        """Format all figures as JSON."""
        fields = {"model": self.model, "image_mode": self.image_mode, **self.plan.to_dict(), "savings": self.savings}
        return json.dumps(fields, indent=2)


def _gb(size: int) -> str:
    return f"{size / 1e9:8.3f} GB"


def _resolve(name: str | None, revision: str | None, image_mode: str | None):
    """Find config, geometry arguments and mode of a model; works offline for the released ones."""
    if name is None:
        name = str(TINY_BASE)
    if name in RELEASED:
        config, fields = released_config(RELEASED[name]), {}
    else:
        config = native_config(load_raw_config(name, revision))
        fields = load_json_of(Path(name), PROCESSOR_NAME, revision) if Path(name).is_dir() else {}
    mode = image_mode or fields.get("image_mode", DEFAULT_MODE)
    sizes = {"size_divisor": fields.get("size_divisor", 1), "patch_size": fields.get("patch_size", PATCH_SIZE)}
    return config, sizes, mode


def plan_run(
    name: str | None,
    settings: MemorySettings,
    *,
    revision: str | None = None,
    image_mode: str | None = None,
    with_savings: bool = True,
) -> PlanReport:
    """Plan a run's memory.

    Args:
        name: Hub id or local folder; `None` is the built-in tiny base. The released checkpoints' shapes are built in.
        settings: Everything but model and geometry.
        revision: Branch, tag or commit of a Hub id.
        image_mode: Image mode; `None` takes the model's default.
        with_savings: Also try the flags that could lower the peak; each takes a few seconds.
    """
    config, sizes, mode = _resolve(name, revision, image_mode)
    version = model_version(config)

    def geometry(chosen: str) -> ImageGeometry:
        return image_geometry(version, chosen, **sizes)

    plan = plan_memory(config, geometry(mode), settings)
    savings = {}
    if with_savings:
        tried = {flag: (mode, changed) for flag, changed in cheaper_settings(settings).items()}
        smaller = _SMALLER_MODES.get(mode)
        if smaller and not (version == "v2" and smaller == "tiny"):
            tried[f"--image_mode {smaller}"] = (smaller, settings)
        for flag, (chosen, changed) in tqdm(tried.items(), desc="Planning", leave=False):
            freed = plan.peak_bytes - plan_memory(config, geometry(chosen), changed).peak_bytes
            if freed > 0:
                savings[flag] = freed
    ordered = dict(sorted(savings.items(), key=lambda item: -item[1]))
    return PlanReport(name or "the built-in tiny model", mode, plan, ordered)


def check_memory(report: PlanReport, card_bytes: int) -> None:
    """Refuse a run too large for the GPU.

    Args:
        report: The plan of the run.
        card_bytes: Memory of the GPU.

    Raises:
        NotEnoughMemoryError: when the plan's peak is more than 15 % above the card's memory; the message shows the
            plan.
    """
    if report.plan.peak_bytes > TOLERANCE * card_bytes:
        advice = "\n".join(report.describe())
        raise NotEnoughMemoryError(f"this GPU has {card_bytes / 1e9:.1f} GB, which is not enough.\n{advice}")


def refuse_large_model(name: str, revision: str | None = None) -> None:
    """Refuse a model of a released size on a machine whose GPU, if there is one, torch cannot use.

    Args:
        name: See `plan_run`.
        revision: See `plan_run`.

    Raises:
        ValueError: for a model of more than a billion parameters.
    """
    config, _, _ = _resolve(name, revision, None)
    with torch.device("meta"), no_init_weights():
        parameters = sum(p.numel() for p in find_model_class(config.model_type)(config).parameters())
    if parameters > LARGE_MODEL:
        reason = find_unused_gpu() or "torch finds no GPU on this machine."
        raise ValueError(
            f"{name} has {parameters / 1e9:.1f} billion parameters, and {reason} On a CPU a step takes minutes; pass "
            "--use_cpu true to train there nevertheless."
        )


def check_gpu(
    name: str, settings: MemorySettings, *, revision: str | None = None, image_mode: str | None = None
) -> None:
    """Call `check_memory` for this machine's GPU, before anything is loaded; do nothing without a GPU.

    Args:
        name: See `plan_run`.
        settings: See `plan_run`.
        revision: See `plan_run`.
        image_mode: See `plan_run`.
    """
    if not torch.cuda.is_available():
        return
    card_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    report = plan_run(name, settings, revision=revision, image_mode=image_mode, with_savings=False)
    logger.info("planned peak %.2f GB of this GPU's %.2f GB", report.plan.peak_bytes / 1e9, card_bytes / 1e9)
    if report.plan.peak_bytes > TOLERANCE * card_bytes:
        check_memory(plan_run(name, settings, revision=revision, image_mode=image_mode), card_bytes)
