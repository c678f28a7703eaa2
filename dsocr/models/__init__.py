"""MODEL: checkpoints, adapters, 4-bit weights, merging and export.

Importing this package has one side effect: it registers two repaired checkpoint rules with transformers
(`dsocr.models.checkpoint_rules`).
"""

from dsocr.models.checkpoint_rules import repair_checkpoint_rules


repair_checkpoint_rules()

from dsocr.models.adapter_targets import prepare_adapter  # noqa: E402
from dsocr.models.adapters import load_adapter, save_adapter_card, verify_saved_adapter  # noqa: E402
from dsocr.models.config import model_version, native_config  # noqa: E402
from dsocr.models.freezing import freeze_vision, vision_parameters  # noqa: E402
from dsocr.models.loading import ModelLoadError, load_model  # noqa: E402
from dsocr.models.peft_wrapper import make_peft_safe  # noqa: E402


__all__ = [
    "ModelLoadError",
    "freeze_vision",
    "load_adapter",
    "load_model",
    "make_peft_safe",
    "model_version",
    "native_config",
    "prepare_adapter",
    "repair_checkpoint_rules",
    "save_adapter_card",
    "verify_saved_adapter",
    "vision_parameters",
]
