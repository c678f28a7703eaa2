"""A trainer on a tiny model, for tests."""

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig

from dsocr.cli.training import recipe_defaults
from dsocr.data.synthetic import write_dataset
from dsocr.lab.tiny import build_tiny_model
from dsocr.models import freeze_vision, prepare_adapter
from dsocr.models.adapter_targets import LANGUAGE_MODEL_TARGETS
from dsocr.models.peft_wrapper import make_peft_safe
from dsocr.reading.generation import ReadingOptions
from dsocr.samples.collator import OcrCollator
from dsocr.training.trainer import OcrTrainer


# What PEFT accepts as task_type; each hands other keywords to the base model.
TASK_TYPES = [None, "CAUSAL_LM", "FEATURE_EXTRACTION", "TOKEN_CLS", "SEQ_CLS", "SEQ_2_SEQ_LM", "QUESTION_ANS"]


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
        "train_sampling_strategy": "random",
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
    peft_config=None,
    **options,
) -> OcrTrainer:
    model, processor = model or build_tiny_model(version)
    make_peft_safe(model)
    if freeze:
        freeze_vision(model)
    config = prepare_adapter(model, peft_config) if peft_config else None
    if lora and config is None:
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
        reading=ReadingOptions(max_new_tokens=16, progress=False),
    )


def logged_losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def loss_and_gradients(trainer, rows):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.data_collator(rows)))
    loss.backward()
    return float(loss), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
