"""One test per library internal that this project relies on; each names what moved when a new version breaks it."""

import inspect

import torch
import transformers
import trl


def test_transformers_conversion_mapping():
    from transformers import conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    for name in (
        "get_checkpoint_conversion_mapping",
        "register_checkpoint_conversion_mapping",
        "USER_REGISTERED_MAPPINGS",
    ):
        assert hasattr(conversion_mapping, name), f"transformers.conversion_mapping.{name} moved"
    rule = WeightRenaming(r"(^|model\.)a\.", r"\1b.")
    assert rule._original_source_patterns == [r"(^|model\.)a\."], "WeightRenaming._original_source_patterns moved"
    assert rule._original_target_patterns == [r"\1b."], "WeightRenaming._original_target_patterns moved"


def test_transformers_keyword_type():
    from transformers.utils import TransformersKwargs

    assert "num_items_in_batch" in TransformersKwargs.__annotations__, "transformers.utils.TransformersKwargs changed"


def test_transformers_native_forwards_name_their_inputs():
    from dsocr.models.loading import find_model_class
    from dsocr.models.peft_wrapper import accepted_keywords

    for kind in ("deepseek_ocr2", "unlimited_ocr"):
        model_class = find_model_class(kind)
        accepted = accepted_keywords(model_class)
        wanted = {"pixel_values", "pixel_values_local", "num_local_patches", "mm_encoder_outputs", "logits_to_keep"}
        assert wanted <= accepted, f"{model_class.__name__}.forward lost {wanted - accepted}"
        assert ("patches_grid" in accepted) == (kind == "unlimited_ocr")


def test_transformers_reference_sliding_window_still_is_the_default():
    """The v1 config sets full attention by hand because of this default."""
    assert set(transformers.UnlimitedOcrTextConfig().layer_types) == {"reference_sliding_attention"}


def test_transformers_loop_guard():
    from transformers.models.unlimited_ocr.generation_unlimited_ocr import (
        UnlimitedOcrSlidingWindowNoRepeatNgramLogitsProcessor as Guard,
    )

    scores = Guard(2, 4)(torch.tensor([[5, 6, 7, 5]]), torch.zeros(1, 9))
    assert scores[0, 6] == float("-inf"), "the windowed n-gram processor of transformers changed"


def test_trainer_hooks_that_are_overridden():
    signatures = {
        "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
        "_load_best_model": ["self"],
        "_save": ["self", "output_dir", "state_dict"],
        "evaluation_loop": [
            "self",
            "dataloader",
            "description",
            "prediction_loss_only",
            "ignore_keys",
            "metric_key_prefix",
        ],
    }
    for name, expected in signatures.items():
        parameters = list(inspect.signature(getattr(transformers.Trainer, name)).parameters)
        assert parameters == expected, f"transformers.Trainer.{name} changed: {parameters}"


def test_trl_calls_the_model_with_its_fused_head():
    """The guard lets through exactly what TRL's own forward is called with."""
    from trl.trainer import utils

    source = inspect.getsource(utils.add_fused_lm_head)
    for keyword in ("fused_lm_head", "shift_labels", "num_items_in_batch"):
        assert keyword in source, f"trl.trainer.utils.add_fused_lm_head lost {keyword}"
    assert "fused_lm_head=True" in inspect.getsource(trl.SFTTrainer.compute_loss), "SFTTrainer.compute_loss changed"


def test_trl_metrics_that_the_preflight_clears():
    source = inspect.getsource(trl.SFTTrainer)
    for name in ("self._metrics", "self._total_train_tokens"):
        assert name in source, f"SFTTrainer.{name} moved"


def test_trl_detects_a_vision_run_by_the_image_column():
    source = inspect.getsource(trl.SFTTrainer.__init__)
    assert '"image" in dataset_sample' in source, "SFTTrainer's detection of vision datasets changed"


def test_trl_telemetry_is_off():
    from huggingface_hub import constants

    assert constants.HF_HUB_DISABLE_TELEMETRY is True, "prepare_process no longer switches telemetry off"


def test_peft_hands_the_bare_model_its_hooks():
    """PEFT calls the base model as a module, so a forward pre-hook on it is reached."""
    from peft import LoraConfig, get_peft_model

    from dsocr.lab.tiny import build_tiny_model

    model, _ = build_tiny_model("v1")
    seen = []
    model.register_forward_pre_hook(lambda *args: seen.append(True))
    get_peft_model(model, LoraConfig(target_modules=["q_proj"]))(input_ids=torch.tensor([[5, 6]]))
    assert seen == [True], "PEFT no longer calls the base model through __call__"


def test_transformers_loading_of_quantized_tensors():
    from transformers.core_model_loading import ConversionOps, WeightConverter, revert_weight_conversion
    from transformers.integrations.bitsandbytes import Bnb4bitQuantize
    from transformers.integrations.moe import _grouped_mm
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

    assert issubclass(Bnb4bitQuantize, ConversionOps), "Bnb4bitQuantize is no ConversionOps any more"
    assert "force_cpu" in inspect.signature(WeightConverter).parameters, "WeightConverter.force_cpu moved"
    assert list(inspect.signature(revert_weight_conversion).parameters)[:2] == ["model", "state_dict"]
    assert list(inspect.signature(_grouped_mm).parameters) == ["input", "weight", "offs"], "_grouped_mm changed"
    for name in ("param_needs_quantization", "get_quantize_ops", "update_weight_conversions"):
        assert hasattr(Bnb4BitHfQuantizer, name), f"Bnb4BitHfQuantizer.{name} moved"


def test_peft_wrapper_of_stacked_parameters():
    from peft import LoraConfig
    from peft.tuners.lora.layer import ParamWrapper

    for name in ("get_param", "get_delta_factors", "_activate_lora", "merge", "unmerge"):
        assert hasattr(ParamWrapper, name), f"peft's ParamWrapper.{name} moved"
    assert hasattr(LoraConfig, "_register_custom_module"), "LoraConfig._register_custom_module moved"


def test_trl_fused_head_of_the_memory_plan():
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

    assert _CHUNKED_LOGPROB_CHUNK_SIZE > 0
    names = list(inspect.signature(_ChunkedLogProbFunction.forward).parameters)
    assert names[:6] == ["ctx", "hidden", "weight", "bias", "targets", "temperature"], names
