"""Training steps of random models, timed by part: every lever alone and all together, interleaved."""

import itertools
import statistics
import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedConfig
from trl.trainer.utils import add_fused_lm_head

from dsocr.lab.flops import count_step_flops
from dsocr.lab.levers import TowerClock, levers_on, synchronize, variants
from dsocr.lab.random_models import build_random_model, random_batch
from dsocr.models import freeze_vision
from dsocr.models.adapter_targets import LANGUAGE_MODEL_TARGETS
from dsocr.samples.geometry import ImageGeometry
from dsocr.samples.vision_cache.tower import accept_features
from dsocr.training.compact_head import CompactHead
from dsocr.training.memory_plan.live_memory import LiveMemory


@dataclass(frozen=True)
class TrainingOptions:
    """What a measured step is.

    Attributes:
        config: Native config of the model.
        geometry: Image geometry.
        image_size: Width and height of every image, pixels; decides the tiles.
        batch_size: Samples a step.
        answer_tokens: Length of every answer, eos included.
        dtype: Type of the weights, and of autocast unless it is float32.
        load_in_4bit: Pack language model and experts.
        checkpointing: Activation checkpointing.
        levers: Names of `LEVERS` to measure.
        repeats: Timed rounds; in each every variant is measured once.
    """

    config: PreTrainedConfig
    geometry: ImageGeometry
    image_size: tuple[int, int]
    batch_size: int = 2
    answer_tokens: int = 200
    dtype: torch.dtype = torch.bfloat16
    load_in_4bit: bool = False
    checkpointing: bool = False
    levers: tuple[str, ...] = ()
    repeats: int = 3


@dataclass
class _Bench:
    options: TrainingOptions
    device: torch.device
    model: nn.Module
    adapted: nn.Module
    optimizer: torch.optim.Optimizer
    head: CompactHead
    batches: dict[bool, dict]
    clock: TowerClock

    def step(self, chosen: tuple[str, ...]) -> dict[str, float]:
        """Seconds of one step, by part."""
        batch = dict(self.batches["features" in chosen])
        if "compact_head" in chosen:
            batch = self.head.compact(batch)
        is_fp32 = self.options.dtype == torch.float32
        self.clock.seconds = 0.0
        marks = [self._now()]
        with levers_on(self.model, chosen):
            with nullcontext() if is_fp32 else torch.autocast(self.device.type, self.options.dtype):
                loss = self.adapted(**batch, fused_lm_head=True, use_cache=False).loss
            marks.append(self._now())
            vision_forward = self.clock.seconds
            loss.backward()
            marks.append(self._now())
        self.optimizer.step()
        # Gradients stay allocated, as with gradient accumulation.
        self.optimizer.zero_grad(set_to_none=False)
        marks.append(self._now())
        forward, backward, update = (after - before for before, after in itertools.pairwise(marks))
        return {
            "vision": vision_forward,
            "language_forward": forward - vision_forward,
            "backward": backward,
            "optimizer": update,
            "step": marks[-1] - marks[0],
            "loss": float(loss.detach()),
        }

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()

    def peak_bytes(self, chosen: tuple[str, ...]) -> int:
        """Most memory of one step: on a GPU the allocator's, on a CPU that of live tensors."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.step(chosen)
            return torch.cuda.max_memory_allocated()
        with LiveMemory() as memory:
            states = [value for state in self.optimizer.state.values() for value in state.values()]
            gradients = [parameter.grad for parameter in self.adapted.parameters() if parameter.grad is not None]
            memory.follow([*self.adapted.parameters(), *self.adapted.buffers(), *gradients, *states])
            memory.follow(v for b in self.batches.values() for v in b.values() if torch.is_tensor(v))
            self.step(chosen)
        return memory.peak


def _build(options: TrainingOptions, device: torch.device) -> _Bench:
    model = build_random_model(options.config, dtype=options.dtype, device=device)
    if options.load_in_4bit:
        from dsocr.models.quantization import quantize_model

        quantize_model(model)
    model.requires_grad_(False)
    freeze_vision(model)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules=LANGUAGE_MODEL_TARGETS))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if options.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        adapted.enable_input_require_grads()
    adapted.train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.0)
    pixels = random_batch(
        options.config,
        options.geometry,
        size=options.image_size,
        batch_size=options.batch_size,
        answer_tokens=options.answer_tokens,
        dtype=options.dtype,
        device=device,
    )
    batches = {False: pixels}
    if "features" in options.levers:
        batches[True] = dict(pixels)
        for name in ("pixel_values", "pixel_values_local"):
            if name in pixels:
                with torch.no_grad():
                    views = [model.model.vision_tower(view[None]).last_hidden_state for view in pixels[name]]
                batches[True][name] = torch.cat(views).to(options.dtype)
        accept_features(model)
    return _Bench(options, device, model, adapted, optimizer, CompactHead(model), batches, TowerClock(model, device))


def measure_training(
    options: TrainingOptions,
    device: torch.device,
    *,
    matrix_rate: float,
    only: str | None = None,
    progress: bool = True,
) -> dict[str, dict]:
    """Measure every variant of a step.

    Args:
        options: The step.
        device: Where.
        matrix_rate: Operations per second of the device in this type.
        only: Measure this variant alone.
        progress: Show a progress bar.

    Returns:
        By variant (`plain`, each lever, `all`): `samples_per_second`, `image_tokens_per_second`,
        `text_tokens_per_second`, `seconds` by part (medians), `ratio` of samples/s to the first variant (median over the
        rounds), `peak_bytes`, `model_flops`, `mfu` (share of the matrix rate, 0..1), `loss`.
    """
    bench = _build(options, device)
    chosen = {name: levers for name, levers in variants(list(options.levers)).items() if only in (None, name)}
    first = next(iter(chosen))
    flops = count_step_flops(
        options.config,
        options.geometry,
        size=options.image_size,
        batch_size=options.batch_size,
        answer_tokens=options.answer_tokens,
    )
    times: dict[str, list[dict]] = defaultdict(list)
    # One round that is not counted.
    rounds = tqdm(range(options.repeats + 1), desc="Measuring", disable=not progress, leave=False)
    for number in rounds:
        for name, levers in chosen.items():
            rounds.set_postfix_str(name)
            measured = bench.step(levers)
            if number:
                times[name].append(measured)
    image_tokens = options.geometry.count_tokens(*options.image_size) * options.batch_size
    rows = {}
    for name, levers in chosen.items():
        seconds = {part: statistics.median(row[part] for row in times[name]) for part in times[name][0]}
        loss = seconds.pop("loss")
        per_second = options.batch_size / seconds["step"]
        needed = flops.total - (flops.vision if "features" in levers else 0)
        ratios = [plain["step"] / row["step"] for plain, row in zip(times[first], times[name], strict=True)]
        rows[name] = {
            "samples_per_second": per_second,
            "image_tokens_per_second": image_tokens / seconds["step"],
            "text_tokens_per_second": per_second * options.answer_tokens,
            "seconds": seconds,
            "ratio": statistics.median(ratios),
            "peak_bytes": bench.peak_bytes(levers),
            "model_flops": needed,
            "mfu": needed / seconds["step"] / matrix_rate,
            "loss": loss,
        }
    return rows
