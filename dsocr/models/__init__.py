"""Loading DeepSeek-OCR checkpoints and adapters. Importing this package registers checkpoint rules with transformers:
two repaired ones (`dsocr.models.checkpoint_rules`) and faster ones for experts (`dsocr.models.expert_merging`); that is
its only side effect."""

from dsocr.models.checkpoint_rules import repair_checkpoint_rules
from dsocr.models.expert_merging import speed_up_expert_merging


repair_checkpoint_rules()
speed_up_expert_merging()

from dsocr.models.adapter_targets import prepare_adapter  # noqa: E402
from dsocr.models.adapters import load_adapter, save_adapter_card, verify_saved_adapter  # noqa: E402
from dsocr.models.config import model_version, native_config  # noqa: E402
from dsocr.models.freezing import freeze_vision, vision_parameters  # noqa: E402
from dsocr.models.loading import ModelLoadError, load_model  # noqa: E402


__all__ = [
    "ModelLoadError",
    "freeze_vision",
    "load_adapter",
    "load_model",
    "model_version",
    "native_config",
    "prepare_adapter",
    "repair_checkpoint_rules",
    "save_adapter_card",
    "verify_saved_adapter",
    "vision_parameters",
]
