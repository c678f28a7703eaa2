"""Freeze the vision tower, and find the native model inside a `PeftModel`."""

import torch
from torch import nn


def bare_model(model: nn.Module) -> nn.Module:
    """Return the native model, also from inside a `PeftModel`."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


_VISION_NAMES = ("vision_tower", "multi_modal_projector", "image_newline", "view_separator")
_PREVIOUS_MODE = "_dsocr_grad_was_enabled"


def vision_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the vision tower, the projector and the two learned separator vectors, by name."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if any(part in _VISION_NAMES for part in name.split("."))
    }


def _disable_grad(module: nn.Module, args) -> None:
    setattr(module, _PREVIOUS_MODE, torch.is_grad_enabled())
    if not any(parameter.requires_grad for parameter in module.parameters()):
        torch.set_grad_enabled(False)


def _restore_grad(module: nn.Module, args, output) -> None:
    torch.set_grad_enabled(module.__dict__.pop(_PREVIOUS_MODE, torch.is_grad_enabled()))


def freeze_vision(model: nn.Module) -> int:
    """Freeze vision tower, projector and separators, and run the tower under `no_grad` while no part of it is trained.

    Freezing alone is not enough: gradient checkpointing makes the outputs of every embedding layer require a gradient,
    also of SAM's patch embedding, so autograd would still walk back through the tower for nothing. The two hooks check
    the tower's parameters at each call: if an adapter is put on the tower later, gradients return.

    Args:
        model: A bare native model (`model.model.vision_tower` exists). Calling it twice changes nothing.

    Returns:
        The number of frozen parameters.
    """
    frozen = vision_parameters(model)
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    tower = model.model.vision_tower
    if _disable_grad not in tower._forward_pre_hooks.values():
        tower.register_forward_pre_hook(_disable_grad)
        tower.register_forward_hook(_restore_grad, always_call=True)
    return sum(parameter.numel() for parameter in frozen.values())
