"""What loading and a training step really cost in each precision, on whatever device is at hand."""

import gc
import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig, PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from dsocr.data.synthetic import generate_lines
from dsocr.lab.random_models import random_batch
from dsocr.lab.tiny_training import EVALUATION_SEED, evaluate_lines
from dsocr.models import freeze_vision, load_model, native_config
from dsocr.models.adapter_targets import LANGUAGE_MODEL_TARGETS
from dsocr.models.loading import TINY_BASE, find_model_class, load_raw_config
from dsocr.models.quantization import OcrQuantizationConfig, weight_bytes
from dsocr.samples.geometry import ImageGeometry
from dsocr.samples.processor import OcrProcessor
from dsocr.training.memory_plan.live_memory import LiveMemory
from dsocr.training.memory_plan.plan import largest_image, plan_memory
from dsocr.training.memory_plan.settings import MemorySettings


VARIANTS = {
    "bf16": "bf16 LoRA",
    "bnb": "4 bit as bitsandbytes does it",
    "4bit": "4 bit here",
    "4bit_vision": "4 bit here, vision too",
}
_SETTINGS = {
    "bf16": {},
    "bnb": {"load_in_4bit": True, "quantize_vision": True, "quantize_experts": False},
    "4bit": {"load_in_4bit": True},
    "4bit_vision": {"load_in_4bit": True, "quantize_vision": True},
}
CER_LINES = 400


class _AnonymousMemory:
    """Peak of this process's own memory (mapped files not counted) above its start, sampled every 2 ms; Linux."""

    def __enter__(self):
        self._start, self.peak, self._ended = self._now(), 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    @staticmethod
    def _now() -> int:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise OSError("this system's /proc/self/status has no RssAnon; measure on Linux or on a GPU.")

    def _sample(self) -> None:
        while not self._ended.wait(0.002):
            self.peak = max(self.peak, self._now() - self._start)

    def __exit__(self, *exception):
        self._ended.set()
        self._thread.join()
        self.peak = max(self.peak, self._now() - self._start)


class _GpuMemory:
    def __enter__(self):
        torch.cuda.reset_peak_memory_stats()
        self._start = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *exception):
        self.peak = torch.cuda.max_memory_allocated() - self._start


def _load(folder: str, variant: str, device: torch.device) -> PreTrainedModel:
    place = {"": str(device)}
    if variant == "bf16":
        return load_model(folder, dtype="bfloat16", device_map=place)
    if variant == "bnb":
        config = native_config(load_raw_config(folder))
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        model = find_model_class(config.model_type).from_pretrained(
            folder, config=config, dtype=torch.bfloat16, quantization_config=settings, device_map=place
        )
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return model
    return load_model(
        folder, dtype="bfloat16", device_map=place, load_in_4bit=True, quantize_vision=variant == "4bit_vision"
    )


@dataclass(frozen=True)
class StepOptions:
    """One training step.

    Attributes:
        geometry: Image geometry; its largest image is taken.
        batch_size: Samples in a step.
        answer_tokens: Length of the answers.
        steps: Timed steps, after one that is not.
    """

    geometry: ImageGeometry
    batch_size: int = 1
    answer_tokens: int = 64
    steps: int = 3


def measure_steps(model: PreTrainedModel, options: StepOptions, optim: str) -> dict[str, float]:
    """Seconds a step (median) and peak bytes of a step, model included."""
    device = next(model.parameters()).device
    batch = random_batch(
        model.config,
        options.geometry,
        size=largest_image(options.geometry),
        batch_size=options.batch_size,
        answer_tokens=options.answer_tokens,
        dtype=torch.bfloat16,
        device=device,
    )
    model.requires_grad_(False)
    freeze_vision(model)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules=LANGUAGE_MODEL_TARGETS))
    model.activation_checkpointing_enable({"use_reentrant": False})
    adapted.enable_input_require_grads()
    adapted.train()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    if optim == "paged_adamw_8bit":
        import bitsandbytes

        optimizer = bitsandbytes.optim.PagedAdamW8bit(trained)
    else:
        optimizer = torch.optim.AdamW(trained)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = adapted(**batch, fused_lm_head=True, use_cache=False).loss
        loss.backward()
        optimizer.step()
        # Kept allocated, as with gradient accumulation.
        optimizer.zero_grad(set_to_none=False)

    step()
    seconds = []
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(options.steps):
            start = time.perf_counter()
            step()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated()
        free, total = torch.cuda.mem_get_info()
        outside = total - free - torch.cuda.memory_reserved()
    else:
        for _ in range(options.steps):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        with LiveMemory() as memory:
            states = [value for state in optimizer.state.values() for value in state.values()]
            memory.follow([*adapted.parameters(), *adapted.buffers(), *(p.grad for p in trained), *states])
            extra = weight_bytes(adapted) - sum(t.nbytes for t in [*adapted.parameters(), *adapted.buffers()])
            step()
            peak = memory.peak + extra
        outside = None
    return {"seconds": statistics.median(seconds), "step_peak_bytes": peak, "context_bytes": outside}


def _pretend_card(card_gib: float) -> None:
    """Leave this process what it would have on a smaller card, whose CUDA context takes its share too."""
    torch.cuda.init()
    torch.zeros(1, device="cuda")
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((card_gib * 2**30 - context) / total)


def measure_variant(folder: str, variant: str, options: StepOptions, card_gib: float | None = None) -> dict:
    """Everything about one precision; to be called in a process of its own.

    Args:
        folder: A bf16 checkpoint.
        variant: One of `VARIANTS`.
        options: The training step.
        card_gib: On a GPU: allow no more memory than a card of so many GiB would.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if card_gib and device.type == "cuda":
        _pretend_card(card_gib)
    OcrQuantizationConfig()
    optim = "paged_adamw_8bit" if device.type == "cuda" and variant != "bf16" else "adamw_torch"
    with _GpuMemory() if device.type == "cuda" else _AnonymousMemory() as loading:
        model = _load(folder, variant, device)
    gc.collect()
    weights = weight_bytes(model)
    measured = measure_steps(model, options, optim)
    compact = device.type == "cuda"
    settings = MemorySettings(
        **_SETTINGS[variant],
        target_modules=LANGUAGE_MODEL_TARGETS,
        batch_size=options.batch_size,
        eval_batch_size=1,
        answer_tokens=options.answer_tokens,
        optim=optim,
        compact_head=compact,
    )
    planned = plan_memory(model.config, options.geometry, settings)
    return {
        "weights_bytes": weights,
        "loading_peak_bytes": loading.peak,
        **measured,
        "planned_weights_bytes": planned.weights_bytes,
        "planned_peak_bytes": planned.training_peak_bytes,
    }


def read_in_precision(variant: str) -> float:
    """CER of the built-in base, on unseen printed lines, in one precision."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _load(str(TINY_BASE), variant, device)
    lines = list(itertools.islice(generate_lines("print", seed=EVALUATION_SEED), CER_LINES))
    return evaluate_lines(model, OcrProcessor.from_pretrained(TINY_BASE), lines).cer


def run_in_process(arguments: dict) -> dict:
    """Call `measure_variant` or `read_in_precision` in a fresh Python process, whose memory nothing else has used."""
    command = [sys.executable, "-m", "dsocr.lab.memory", json.dumps(arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise RuntimeError(f"measuring {arguments} failed:\n{ended.stderr[-3000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def _main(arguments: dict) -> dict:
    torch.set_flush_denormal(True)
    if "folder" not in arguments:
        return {"cer": read_in_precision(arguments["variant"])}
    options = StepOptions(ImageGeometry(**arguments["geometry"]), **arguments["step"])
    return measure_variant(arguments["folder"], arguments["variant"], options, arguments.get("card_gib"))


if __name__ == "__main__":
    print(json.dumps(_main(json.loads(sys.argv[1]))))
