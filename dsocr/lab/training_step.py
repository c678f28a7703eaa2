"""One training step of LoRA on a frozen model, timed by part, and the memory that it takes."""

import time
from contextlib import nullcontext
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from dsocr.lab.levers import levers_on
from dsocr.lab.random_models import StepOptions, random_batch
from dsocr.models import freeze_vision
from dsocr.models.adapter_targets import LANGUAGE_MODEL_TARGETS
from dsocr.models.expert_lora import adapt_experts
from dsocr.models.quantization import weight_bytes
from dsocr.samples.vision_cache.tower import extend_tower
from dsocr.training.compact_head import CompactHead
from dsocr.training.memory_plan.live_memory import LiveMemory


def timestamp(device: torch.device) -> float:
    """Seconds of a clock, read after a GPU has finished the work that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class TowerClock:
    """Adds up the time that a model's vision tower takes.

    Args:
        model: A bare native model.
        device: Its device.

    Attributes:
        seconds: Time in the tower; set it to zero to begin anew.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        self.seconds = 0.0
        self._device = device
        tower = model.model.vision_tower
        self._inner = tower.forward
        tower.forward = self._timed

    def _timed(self, *args: Any, **kwargs: Any) -> Any:
        start = timestamp(self._device)
        output = self._inner(*args, **kwargs)
        self.seconds += timestamp(self._device) - start
        return output


def _build_optimizer(trained: list[nn.Parameter], optim: str) -> torch.optim.Optimizer:
    # The learning rate is zero, so that every path, in every round, computes the same loss.
    if optim == "paged_adamw_8bit":
        import bitsandbytes

        return bitsandbytes.optim.PagedAdamW8bit(trained, lr=0.0)
    return torch.optim.AdamW(trained, lr=0.0)


class TrainingStep:
    """A model with LoRA of rank 16, its optimizer and a random batch.

    Args:
        model: A bare native model in any precision; it is changed for good.
        options: The step.
        target_parameters: LoRA on stacked parameters too (the routed experts, packed or not).

    Attributes:
        model: The bare model.
        device: Its device.
        options: The options of the batch at hand.
    """

    def __init__(self, model: PreTrainedModel, options: StepOptions, target_parameters: list[str] | None = None):
        self.model, self.device = model, next(model.parameters()).device
        model.requires_grad_(False)
        freeze_vision(model)
        extend_tower(model)
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        lora = LoraConfig(r=16, target_modules=LANGUAGE_MODEL_TARGETS, target_parameters=target_parameters)
        self._adapted = get_peft_model(model, adapt_experts(lora) if target_parameters else lora)
        if options.checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            self._adapted.enable_input_require_grads()
        self._adapted.train()
        self._trained = [parameter for parameter in self._adapted.parameters() if parameter.requires_grad]
        self._optimizer = _build_optimizer(self._trained, options.optim)
        self._head = CompactHead(model)
        self._clock = TowerClock(model, self.device)
        self.resize(options)

    def resize(self, options: StepOptions) -> None:
        """Take another batch: other images, batch size or answers. Checkpointing and optimizer stay as they were built."""
        self.options = options
        self._pixels = random_batch(self.model.config, options, self.device)
        self._features: dict[str, Any] | None = None

    def _feature_batch(self) -> dict[str, Any]:
        """The batch with the tower's features in the place of pixels, computed at the first call."""
        if self._features is None:
            self._features = dict(self._pixels)
            for name in ("pixel_values", "pixel_values_local"):
                if name in self._pixels:
                    with torch.no_grad():
                        tower = self.model.model.vision_tower
                        views = [tower(view[None]).last_hidden_state for view in self._pixels[name]]
                    self._features[name] = torch.cat(views).to(self.options.dtype)
        return self._features

    def keep_features_alone(self) -> None:
        """Drop the pixels of the batch, as a run from the cache never has them; steps with pixels need a `resize` then."""
        self._pixels = self._feature_batch()

    def run(self, levers: tuple[str, ...]) -> dict[str, float]:
        """Make one step.

        Args:
            levers: Names of `LEVERS`.

        Returns:
            Seconds of `vision`, `language_forward`, `backward`, `optimizer` and of the whole `step`; `loss`.
        """
        batch = self._feature_batch() if "features" in levers else self._pixels
        if "compact_head" in levers:
            batch = self._head.compact(batch)
        is_fp32 = self.options.dtype == torch.float32
        self._clock.seconds = 0.0
        begun = timestamp(self.device)
        with levers_on(self.model, levers):
            with nullcontext() if is_fp32 else torch.autocast(self.device.type, self.options.dtype):
                loss = self._adapted(**batch, fused_lm_head=True, use_cache=False).loss
            forwarded = timestamp(self.device)
            loss.backward()
            returned = timestamp(self.device)
        self._optimizer.step()
        # Gradients stay allocated, as they do under gradient accumulation.
        self._optimizer.zero_grad(set_to_none=False)
        ended = timestamp(self.device)
        vision = self._clock.seconds
        return {
            "vision": vision,
            "language_forward": forwarded - begun - vision,
            "backward": returned - forwarded,
            "optimizer": ended - returned,
            "step": ended - begun,
            "loss": float(loss.detach()),
        }

    def measure_peak_bytes(self, levers: tuple[str, ...]) -> int:
        """Most memory during a step, model and batch included: the allocator's on a GPU, that of live tensors on a CPU.

        Run a step before, so that gradients and optimizer states exist.
        """
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.run(levers)
            return torch.cuda.max_memory_allocated()
        weights = [*self._adapted.parameters(), *self._adapted.buffers()]
        # The scales of packed weights are neither parameters nor buffers.
        scales = weight_bytes(self._adapted) - sum(tensor.nbytes for tensor in weights)
        states = [value for state in self._optimizer.state.values() for value in state.values()]
        batches = [*self._pixels.values(), *(self._features or {}).values()]
        with LiveMemory() as memory:
            memory.follow([*weights, *states, *(parameter.grad for parameter in self._trained)])
            memory.follow(value for value in batches if torch.is_tensor(value))
            self.run(levers)
        return memory.peak + scales
