"""A trainer on a tiny model, for tests."""

import bitsandbytes
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from trl import SFTConfig

from dsocr.arguments import LANGUAGE_MODEL_TARGETS, recipe_defaults
from dsocr.collator import OcrCollator
from dsocr.data.synthetic import write_dataset
from dsocr.models import freeze_vision
from dsocr.models.tiny import build_tiny_model
from dsocr.trainer import OcrTrainer
from dsocr.wrapper import make_peft_safe


def sft_config(output_dir, **options) -> SFTConfig:
    """The recipes' defaults, for a few quiet steps on the CPU."""
    script_fields = {"dtype", "use_peft", "lora_target_modules"}
    defaults = {key: value for key, value in recipe_defaults().items() if key not in script_fields}
    quiet = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "bf16": False,
        "fp16": False,
        "activation_checkpointing": False,
        "gradient_accumulation_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    return SFTConfig(**{**defaults, **quiet, **options})


def line_dataset(folder, lines) -> Dataset:
    write_dataset(folder, lines)
    images = [str(folder / "images" / f"{index:06d}.png") for index in range(len(lines))]
    return Dataset.from_dict({"image": images, "text": [line.text for line in lines]})


def build_trainer(
    output_dir,
    dataset,
    *,
    version="v1",
    task_type="CAUSAL_LM",
    dropout=0.0,
    lora=True,
    freeze=True,
    model=None,
    callbacks=None,
    eval_dataset=None,
    **options,
) -> OcrTrainer:
    model, processor = model or build_tiny_model(version)
    make_peft_safe(model)
    if freeze:
        freeze_vision(model)
    config = None
    if lora:
        config = LoraConfig(r=4, task_type=task_type, lora_dropout=dropout, target_modules=LANGUAGE_MODEL_TARGETS)
    return OcrTrainer(
        model=model,
        args=sft_config(output_dir, **options),
        data_collator=OcrCollator(processor, dtype=model.dtype),
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        peft_config=config,
        callbacks=callbacks,
        max_new_tokens=16,
    )


def logged_losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def quantize_language_model(model) -> int:
    """Put the language model's linear layers into NF4, in place; returns how many. (The experts are not linear layers.)"""
    names = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "language_model" in name
    ]
    for name in names:
        linear = model.get_submodule(name)
        layer = bitsandbytes.nn.Linear4bit(
            linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4"
        )
        layer.weight = bitsandbytes.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4").to("cpu")
        # Otherwise one forward in evaluation repacks the weights and a later backward loses its gradient.
        layer.support_avx512bf16_for_cpu = False
        model.set_submodule(name, layer)
    return len(names)
