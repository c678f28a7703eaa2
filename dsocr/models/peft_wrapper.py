"""The PEFT-safe wrapper: a forward pre-hook that checks the keywords of every call; the model object stays the same.

PEFT adds `decoder_input_ids` and its relatives for SEQ_2_SEQ_LM and `start_positions`/`end_positions` for QUESTION_ANS.
The native forwards silently ignore unknown keywords, so a misspelt `pixel_values` would train without images. A wrapper
module would change adapter keys and hide the model from TRL, and TRL's own forward bypasses an overridden `forward`;
only a forward pre-hook with keywords is reached on every path.
"""

import inspect
import logging
from collections import Counter
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.utils import TransformersKwargs


logger = logging.getLogger(__name__)

DROPPED = (
    "decoder_input_ids",
    "decoder_attention_mask",
    "decoder_inputs_embeds",
    "start_positions",
    "end_positions",
)
# Names of the native inputs in other processors and in upstream's own code.
ALIASES = {
    "images": "pixel_values",
    "image": "pixel_values",
    "images_crop": "pixel_values_local",
    "local_pixel_values": "pixel_values_local",
    "images_spatial_crop": "patches_grid",
}
# Keywords added by wrappers around the forward: `can_return_tuple` of transformers, and TRL's `add_fused_lm_head`.
_WRAPPER_KEYWORDS = frozenset({"return_dict", "fused_lm_head", "shift_labels", "num_items_in_batch"})


@cache
def accepted_keywords(model_class: type[nn.Module]) -> frozenset[str]:
    """Keywords that a native class's forward takes: its named parameters and the library's own keyword type."""
    parameters = inspect.signature(model_class.forward).parameters.values()
    named = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name != "self"}
    return frozenset(named | set(TransformersKwargs.__annotations__) | _WRAPPER_KEYWORDS)


class KeywordGuard:
    """Forward pre-hook: drop the keywords that PEFT adds, rename aliases, and raise on any other unknown keyword.

    It holds no reference to the model, so it is copied and pickled with it.

    Attributes:
        dropped: How often each keyword was dropped.
        renamed: How often each alias was renamed.

    Raises (when called):
        TypeError: for an unknown keyword, an input given twice, or an alias that is no tensor.
    """

    def __init__(self):
        self.dropped: Counter[str] = Counter()
        self.renamed: Counter[str] = Counter()

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        accepted = accepted_keywords(module.__class__)
        cleaned: dict[str, Any] = {}
        for name, value in kwargs.items():
            if name in accepted:
                self._put(cleaned, name, value)
            elif name in DROPPED:
                self._drop(name, value)
            elif name in ALIASES:
                self._rename(cleaned, name, value, accepted)
            else:
                raise TypeError(
                    f"{type(module).__name__}.forward got an unexpected keyword {name!r}. The native model would have "
                    f"ignored it silently. It takes: {', '.join(sorted(accepted))}."
                )
        return args, cleaned

    @staticmethod
    def _put(cleaned: dict[str, Any], name: str, value: Any) -> None:
        if cleaned.get(name) is not None and value is not None:
            raise TypeError(f"{name!r} was given twice, once under another name.")
        if value is not None or name not in cleaned:
            cleaned[name] = value

    def _drop(self, name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor) and name not in self.dropped:
            logger.warning("dropped %s: this is a decoder-only model; use task_type=CAUSAL_LM", name)
        self.dropped[name] += 1

    def _rename(self, cleaned: dict[str, Any], name: str, value: Any, accepted: frozenset[str]) -> None:
        self.renamed[name] += 1
        if name != "images_spatial_crop":
            if value is not None and not isinstance(value, torch.Tensor):
                raise TypeError(
                    f"{name!r} must be a tensor of {ALIASES[name]} [n, 3, side, side], not {type(value).__name__}; "
                    "upstream's list of (tiles, view) pairs has to be split into pixel_values and pixel_values_local."
                )
            self._put(cleaned, ALIASES[name], value)
            return
        grids = [list(map(int, grid)) for grid in torch.as_tensor(value).reshape(-1, 2).tolist()]
        if "patches_grid" in accepted:
            self._put(cleaned, "patches_grid", grids)
        self._put(cleaned, "num_local_patches", [c * r if (c, r) != (1, 1) else 0 for c, r in grids])

    def counts(self) -> dict[str, dict[str, int]]:
        """`{"dropped": {...}, "renamed": {...}}`, for the run's results."""
        return {"dropped": dict(self.dropped), "renamed": dict(self.renamed)}


def find_guard(model: nn.Module) -> KeywordGuard | None:
    """The guard of a model, or of the base model inside a `PeftModel`; `None` without one."""
    for module in (model, *(model.modules() if hasattr(model, "peft_config") else ())):
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, KeywordGuard):
                return hook
    return None


def make_peft_safe(model: nn.Module) -> nn.Module:
    """Guard a native model's forward. Apply it before PEFT; a second call changes nothing.

    Args:
        model: A native DeepSeek-OCR model.

    Returns:
        The same object, with all its attributes, parameter names and state-dict keys.

    Raises:
        TypeError: when the model is already a PeftModel.

    Example:
        >>> model = make_peft_safe(load_model("deepseek-ai/DeepSeek-OCR"))  # doctest: +SKIP
        >>> model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM"))  # doctest: +SKIP
    """
    if hasattr(model, "peft_config"):
        raise TypeError("make_peft_safe must be applied before PEFT; this model is a PeftModel already.")
    if find_guard(model) is None:
        # Prepend the guard: it must rename aliases before other hooks look for the native names.
        model.register_forward_pre_hook(KeywordGuard(), with_kwargs=True, prepend=True)
    return model


def remove_peft_safe(model: nn.Module) -> nn.Module:
    """Remove the guard, if there is one."""
    for handle, hook in list(model._forward_pre_hooks.items()):
        if isinstance(hook, KeywordGuard):
            del model._forward_pre_hooks[handle]
            model._forward_pre_hooks_with_kwargs.pop(handle, None)
    return model
