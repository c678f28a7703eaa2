"""The native model inside a PeftModel."""

from torch import nn


def bare_model(model: nn.Module) -> nn.Module:
    """The native model, whether it comes alone or inside a `PeftModel`."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
