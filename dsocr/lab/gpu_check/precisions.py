"""The same batch in float32 on the CPU and in 16 bit on the device: losses, and the angle between gradients."""

import copy
from collections.abc import Iterator
from functools import partial

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cosine_similarity

from dsocr.lab.gpu_check.setup import CheckSetup, Figures, Probe
from dsocr.lab.random_models import StepOptions, build_random_model, image_with_tiles, random_batch
from dsocr.models import freeze_vision
from dsocr.models.adapter_targets import LANGUAGE_MODEL_TARGETS


# As GradScaler does: small gradients would vanish in float16. The angle does not depend on it.
_SCALE = 1024.0
_ANSWER_TOKENS = 24


def _adapted_model(setup: CheckSetup) -> PeftModel:
    model = build_random_model(setup.config(setup.part_size), torch.float32, "cpu").requires_grad_(False)
    freeze_vision(model)
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=LANGUAGE_MODEL_TARGETS))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            # PEFT's own second factors are zero, and the gradients of the first ones with them.
            if "lora_B" in name:
                parameter.normal_(std=0.02, generator=generator)
    return adapted.train()


def _loss_and_gradient(
    adapted: PeftModel, batch: dict, place: torch.device, dtype: torch.dtype
) -> tuple[float, torch.Tensor]:
    """Loss and all gradients `[n]` on the CPU; the base in `dtype`, LoRA in float32, as the trainer has them."""
    model = copy.deepcopy(adapted).to(place, dtype)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    moved = {
        key: value.to(place, dtype if value.is_floating_point() else None) if torch.is_tensor(value) else value
        for key, value in batch.items()
    }
    with torch.autocast(place.type, dtype, enabled=dtype != torch.float32):
        loss = model(**moved).loss
    (loss.float() * _SCALE).backward()
    gradient = torch.cat([parameter.grad.flatten().float().cpu() for parameter in trained])
    return float(loss.detach()), gradient / _SCALE


def precision_probes(setup: CheckSetup) -> Iterator[Probe]:
    """One batch in float32 on the CPU, then in bfloat16, float16 and (on a GPU) float32 on the device."""
    geometry = setup.processor("base").geometry
    options = StepOptions(geometry, image_with_tiles(geometry, 0), answer_tokens=_ANSWER_TOKENS, dtype=torch.float32)
    adapted = _adapted_model(setup)
    batch = random_batch(setup.config(setup.part_size), options, "cpu")
    reference: list[tuple[float, torch.Tensor]] = []

    def first() -> Figures:
        reference.append(_loss_and_gradient(adapted, batch, torch.device("cpu"), torch.float32))
        return {"loss": reference[0][0], "gradient_norm": float(reference[0][1].norm())}

    def compare(dtype: torch.dtype) -> Figures:
        if not reference:
            raise RuntimeError("there is nothing to compare with: float32 on the CPU failed")
        loss, gradient = _loss_and_gradient(adapted, batch, setup.place, dtype)
        return {
            "loss": loss,
            "loss_difference": loss - reference[0][0],
            "gradient_cosine": float(cosine_similarity(gradient, reference[0][1], dim=0)),
            "gradient_norm": float(gradient.norm()),
        }

    yield "float32 on the CPU", first
    name = "the GPU" if setup.on_gpu else "the CPU"
    yield f"bfloat16 on {name}", partial(compare, torch.bfloat16)
    yield f"float16 on {name}", partial(compare, torch.float16)
    if setup.on_gpu:
        yield "float32 on the GPU", partial(compare, torch.float32)
