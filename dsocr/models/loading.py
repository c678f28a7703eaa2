"""Load a base model strictly, with transformers' native classes."""

import logging
import math
from importlib.resources import files
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from dsocr.common.errors import blamed_on
from dsocr.common.files import load_json
from dsocr.common.hub import check_hub
from dsocr.common.run_files import ADAPTER_CONFIG_NAME
from dsocr.models.config import PAD_TOKEN_ID, native_config
from dsocr.models.frozen_experts import use_frozen_experts
from dsocr.models.precision import keep_routers_in_fp32
from dsocr.models.sam_attention import split_global_attention


logger = logging.getLogger(__name__)


def find_model_class(model_type: str) -> type[PreTrainedModel]:
    """The native class of a model type.

    Import it only when needed: modelling code takes a third of a second, too much for `--help`.

    Raises:
        ValueError: for another model type.
    """
    if model_type == "unlimited_ocr":
        from transformers import UnlimitedOcrForConditionalGeneration

        return UnlimitedOcrForConditionalGeneration
    if model_type == "deepseek_ocr2":
        from transformers import DeepseekOcr2ForConditionalGeneration

        return DeepseekOcr2ForConditionalGeneration
    raise ValueError(f"model_type={model_type!r} is not one of deepseek_ocr2, unlimited_ocr.")


class ModelLoadError(ValueError):
    """A checkpoint is missing, or its tensors are not exactly the model's."""


class TensorDifferenceError(ModelLoadError):
    """The tensors of a checkpoint are not exactly the model's.

    Attributes:
        differences: Names of the tensors by kind: `missing_keys`, `unexpected_keys`, `mismatched_keys` (another shape).
    """

    def __init__(self, message: str, differences: dict[str, list[str]]):
        super().__init__(message)
        self.differences = differences


def load_raw_config(name_or_path: str, revision: str | None = None) -> dict:
    """Load the `config.json` of a Hub id or a local folder.

    Raises:
        ModelLoadError: when there is no such folder, Hub id or file.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        path = folder / "config.json"
        if not path.is_file():
            adapter = (folder / ADAPTER_CONFIG_NAME).is_file()
            raise ModelLoadError(
                f"{folder} has no config.json. "
                + (
                    "It holds an adapter: give its base model with --model_name_or_path, and load the adapter with "
                    "dsocr.load_adapter()."
                    if adapter
                    else "Give the folder of a DeepSeek-OCR checkpoint (config.json and *.safetensors)."
                )
            )
    else:
        try:
            check_hub()
            path = cached_file(name_or_path, "config.json", revision=revision)
        except OSError as error:
            raise ModelLoadError(
                f"{name_or_path!r} is neither a local folder nor a model id that can be reached on the Hub"
                f" (revision {revision or 'main'}): {error}"
            ) from error
    return load_json(path)


def parse_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """`"bfloat16"` -> `torch.bfloat16`; `"auto"` stays.

    Raises:
        ValueError: when the word names no floating-point type.
    """
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    parsed = getattr(torch, dtype, None)
    if not isinstance(parsed, torch.dtype) or not parsed.is_floating_point:
        raise ValueError(f"dtype={dtype!r} is not one of auto, bfloat16, float16, float32.")
    return parsed


def planned_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The dtype that a memory plan counts with: bfloat16 for `"auto"`, as the released checkpoints are stored.

    Raises:
        ValueError: as `parse_dtype`.
    """
    parsed = parse_dtype(dtype)
    return parsed if isinstance(parsed, torch.dtype) else torch.bfloat16


def _raise_on_difference(name: str, info: dict) -> None:
    problems = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    problems = {kind: keys for kind, keys in problems.items() if keys}
    if problems or info.get("error_msgs"):
        listing = "; ".join(f"{len(keys)} {kind}: {', '.join(keys[:5])}" for kind, keys in problems.items())
        raise TensorDifferenceError(
            f"{name}: the checkpoint does not hold exactly the model's tensors ({listing or info['error_msgs']}). "
            "A download that broke off, or another model's weights?",
            problems,
        )


def _check_size(name_or_path: str, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> None:
    """Refuse a local folder whose config describes a far larger model than its files hold.

    transformers would make the missing weights first, gigabytes of them, and only then find them missing.
    """
    stored = 0
    for path in Path(name_or_path).glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())
    with torch.device("meta"):
        described = sum(parameter.numel() for parameter in model_class(config).parameters())
    if stored and described > 2 * stored:
        raise ModelLoadError(
            f"{name_or_path}: config.json describes {described / 1e6:.0f} million parameters, and the *.safetensors beside "
            f"it hold {stored / 1e6:.0f} million. One of them is damaged, or belongs to another model."
        )


def _stored_dtype(raw: dict) -> torch.dtype:
    return parse_dtype(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16")


def _quantization_config(quantize_vision: bool, compute_dtype: torch.dtype, quant_type: str, double_quant: bool):
    try:
        from dsocr.models.quantization import OcrQuantizationConfig
    except ImportError as error:
        raise ModelLoadError(
            f"--load_in_4bit needs bitsandbytes, which cannot be imported ({error}); pip install -r requirements.txt"
        ) from error
    return OcrQuantizationConfig(quantize_vision, compute_dtype, quant_type, double_quant)


def load_model(
    name_or_path: str,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str | None = None,
    device_map: str | dict | None = None,
    load_in_4bit: bool = False,
    quantize_vision: bool = False,
    quant_type: str = "nf4",
    double_quant: bool = True,
) -> PreTrainedModel:
    """Load DeepSeek-OCR v1, v2 or Unlimited-OCR, from upstream's or the native layout, without remote code.

    Args:
        name_or_path: Hub id, or local folder with `config.json` and `*.safetensors`.
        revision: Branch, tag or commit of a Hub id.
        dtype: `"auto"` (as stored), `"bfloat16"`, `"float16"`, `"float32"` or a `torch.dtype`.
        attn_implementation: `"sdpa"` (default) or `"eager"`.
        device_map: As in transformers; `None` loads on the CPU, and a 4-bit model on the GPU if there is one.
        load_in_4bit: Quantise the language model's linear layers and routed experts while the checkpoint loads; the
            device never holds more than the packed model and its largest 16-bit tensor.
        quantize_vision: With `load_in_4bit`, quantise the vision tower and the projector too.
        quant_type: `"nf4"` or `"fp4"`.
        double_quant: Quantise the scales of the 4-bit blocks as well.

    Returns:
        The model in evaluation mode. `model.name_or_path` and `model.config._commit_hash` name its source.

    Raises:
        ModelLoadError: when the checkpoint is missing or already quantised; when a tensor is missing, unexpected or of
            another shape; when 4 bit is asked for but bitsandbytes is missing or does not support the device.
        ValueError: when the config cannot be expressed natively (see `native_config`).
    """
    raw = load_raw_config(name_or_path, revision)
    if "quantization_config" in raw:
        method = raw["quantization_config"].get("quant_method")
        raise ModelLoadError(
            f"{name_or_path} is quantised already ({method}). Give the 16-bit checkpoint: --load_in_4bit quantises it "
            "while it is read, its routed experts included."
        )
    with blamed_on(f"config.json of {name_or_path}"):
        config = native_config(raw)
    model_class = find_model_class(config.model_type)
    parsed_dtype = parse_dtype(dtype)
    quantization_config = None
    if load_in_4bit:
        compute_dtype = _stored_dtype(raw) if parsed_dtype == "auto" else parsed_dtype
        quantization_config = _quantization_config(quantize_vision, compute_dtype, quant_type, double_quant)
    with blamed_on(name_or_path):
        try:
            if Path(name_or_path).is_dir():
                _check_size(name_or_path, model_class, config)
            model, info = model_class.from_pretrained(
                name_or_path,
                config=config,
                revision=revision or "main",
                dtype=parsed_dtype,
                attn_implementation=attn_implementation,
                device_map=device_map,
                quantization_config=quantization_config,
                use_safetensors=True,
                # Let mismatches pass here: `_raise_on_difference` raises below and names the tensors.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ModelLoadError(f"{name_or_path}: the weights could not be loaded: {error}") from error
    _raise_on_difference(name_or_path, info)
    split_global_attention(model)
    keep_routers_in_fp32(model)
    use_frozen_experts(model)
    with blamed_on(f"generation_config.json of {name_or_path}"):
        if model.generation_config.pad_token_id is None:
            model.generation_config.pad_token_id = PAD_TOKEN_ID
        # Set pad_token_id only now: nn.Embedding(padding_idx=...) freezes that row if it is set before the model is built.
        model.config.text_config.pad_token_id = model.generation_config.pad_token_id
        model.generation_config.eos_token_id = config.text_config.eos_token_id
        model.generation_config.bos_token_id = config.text_config.bos_token_id
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters()) / 1e9
    kind = quant_type if load_in_4bit else str(model.dtype).removeprefix("torch.")
    logger.info("loaded %s: %.3f GB of %s weights, 0 tensors missing, 0 unexpected", name_or_path, size, kind)
    return model


# Weights, configs and tokenizers; never pickles.
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.py"]


def local_checkpoint(name_or_path: str, revision: str | None = None) -> Path:
    """A local folder as it is, or the Hub snapshot in the local cache (downloaded if need be, never executed).

    Raises:
        ModelLoadError: when there is no such folder and no such model id can be reached.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    check_hub()
    try:
        return Path(snapshot_download(name_or_path, revision=revision, allow_patterns=_PATTERNS))
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise ModelLoadError(
            f"{name_or_path!r} is neither a local folder nor a model id that can be reached on the Hub: {error}"
        ) from error


TINY_BASE = Path(str(files("dsocr.models") / "tiny_base"))
