"""A trained adapter, and the checkpoint rules as transformers ships them."""

import contextlib

import torch
from peft import LoraConfig, get_peft_model
from transformers import conversion_mapping

from dsocr.models import repair_checkpoint_rules
from dsocr.models.adapter_targets import LANGUAGE_MODEL_TARGETS
from dsocr.models.checkpoint_rules import MODEL_TYPES


@contextlib.contextmanager
def shipped_rules():
    """The rules as transformers ships them; the repaired ones come back afterwards."""
    shipped = conversion_mapping._build_checkpoint_conversion_mapping()
    for model_type in MODEL_TYPES:
        conversion_mapping.register_checkpoint_conversion_mapping(model_type, shipped[model_type], overwrite=True)
    yield
    repair_checkpoint_rules()


def save_trained_adapter(model, folder):
    """Save an adapter whose second factors are not zero; returns the `PeftModel`."""
    peft_model = get_peft_model(model, LoraConfig(r=4, target_modules=LANGUAGE_MODEL_TARGETS, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    peft_model.save_pretrained(folder)
    return peft_model
