"""Repair transformers' checkpoint renaming rules: without the repair, saved LoRA adapters do not load back.

transformers 5.23 renames upstream's tensors with rules such as `(^|model\\.)layers\\.` -> `\\1language_model.layers.`.
The second alternative is not anchored, so it also matches inside `language_model.layers.`. PEFT applies the same rules
to an adapter's keys and turns them into `language_model.language_model.layers.`: every text tensor of the adapter is
then "missing", and PEFT only warns. The repair anchors the known patterns at the start of the key. It copies the rules
of the installed transformers, so other upstream changes are kept, and does nothing once upstream has anchored them.
Remove it when transformers' `conversion_mapping.py` anchors these patterns.
"""

import logging

from transformers import conversion_mapping
from transformers.core_model_loading import WeightRenaming


logger = logging.getLogger(__name__)

MODEL_TYPES = ("unlimited_ocr", "deepseek_ocr2")
_UNANCHORED = r"(^|model\.)"
# `^` inside the group still matches a bare-backbone key (`layers.0...`), as upstream's rule did.
_ANCHORED = r"(^model\.|^)"
_NAMES = ("embed_tokens", "layers", "norm")


def _is_unanchored(rule) -> bool:
    patterns = rule._original_source_patterns
    return (
        isinstance(rule, WeightRenaming)
        and len(patterns) == 1
        and patterns[0] in {rf"{_UNANCHORED}{name}\." for name in _NAMES}
    )


def _anchor(rule: WeightRenaming) -> WeightRenaming:
    source = rule._original_source_patterns[0].replace(_UNANCHORED, _ANCHORED)
    return WeightRenaming(source_patterns=source, target_patterns=list(rule._original_target_patterns))


def repair_checkpoint_rules() -> dict[str, int]:
    """Anchor the unanchored renaming rules of the DeepSeek-OCR model types.

    Returns:
        Number of rules changed, by model type; 0 if upstream (or an earlier call) has anchored them.

    Raises:
        ImportError: transformers has no rules for one of the model types, which means an unsupported version.
    """
    changed = {}
    for model_type in MODEL_TYPES:
        rules = conversion_mapping.get_checkpoint_conversion_mapping(model_type)
        if rules is None:
            raise ImportError(
                f"transformers has no checkpoint rules for model type {model_type!r} any more; "
                "install the versions that requirements.txt names."
            )
        changed[model_type] = sum(_is_unanchored(rule) for rule in rules)
        if changed[model_type]:
            repaired = [_anchor(rule) if _is_unanchored(rule) else rule for rule in rules]
            conversion_mapping.register_checkpoint_conversion_mapping(model_type, repaired, overwrite=True)
        elif model_type not in conversion_mapping.USER_REGISTERED_MAPPINGS:
            logger.info("checkpoint rules of %s are anchored upstream; no repair needed", model_type)
    return changed
