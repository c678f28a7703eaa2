"""Check a checkpoint's files, tensors and tokens, and run it if they are right."""

import time
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from dsocr.common.machine import describe_machine, find_unused_gpu, half_dtype, working_dtype
from dsocr.lab.verification.report import TokenId, Verification
from dsocr.lab.verification.running import Running, run_checkpoint
from dsocr.models import load_adapter, load_model
from dsocr.models.adapters import check_loaded_adapter, find_base
from dsocr.models.checkpoint_files import list_checkpoint_files
from dsocr.models.config import PAD_TOKEN_ID, model_version, native_config
from dsocr.models.loading import TensorDifferenceError, load_raw_config, local_checkpoint
from dsocr.reading.reader import SAMPLE_IMAGE, SAMPLE_TEXT
from dsocr.samples.processor import OcrProcessor
from dsocr.samples.tokenizer import BOS, EOS, IMAGE_TOKEN, PAD, load_tokenizer


# A checkpoint with more bytes than this is not tried on a CPU unasked.
_LARGE_BYTES = 2e9


def check_tokens(tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig) -> list[TokenId]:
    """Compare the ids of the control tokens with those that the model was built for."""
    text, vocabulary = config.get_text_config(), tokenizer.get_vocab()
    expected = {
        BOS: text.bos_token_id,
        EOS: text.eos_token_id,
        PAD: PAD_TOKEN_ID,
        IMAGE_TOKEN: config.image_token_id,
    }
    return [TokenId(token, vocabulary.get(token), identity) for token, identity in expected.items()]


def _refuse_large_on_cpu(name: str, folder: Path, unused_gpu: str | None) -> None:
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if size > _LARGE_BYTES:
        reason = unused_gpu or "torch sees no NVIDIA card."
        raise ValueError(
            f"{name} has {size / 1e9:.1f} GB of weights, too large to train on a CPU, and this process would use the CPU: "
            f"{reason} Give --use_cpu to check the files on the CPU all the same."
        )


def _load_and_run(
    base: str, adapter: str | None, revision: str | None, dtype: str, device: str, image_mode: str | None, image: str,
    text: str,
) -> tuple[Running, int | None]:  # fmt: skip
    start = time.perf_counter()
    chosen = (working_dtype() if device == "cuda" else torch.float32) if dtype == "auto" else dtype
    model, tensors = load_model(base, revision=revision, dtype=chosen).to(device), None
    if adapter is not None:
        model = load_adapter(model, adapter)
        tensors = check_loaded_adapter(model, adapter)
    model.eval()
    load_seconds = time.perf_counter() - start
    processor = OcrProcessor.from_pretrained(adapter or base, revision=revision, image_mode=image_mode)
    return run_checkpoint(model, processor, image, text, load_seconds), tensors


def verify_checkpoint(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    image_mode: str | None = None,
    image: str | None = None,
    text: str | None = None,
    use_cpu: bool = False,
) -> Verification:
    """Check the files of a checkpoint (or of an adapter's base), load it, read one line, and time training.

    Args:
        name: Hub id, checkpoint folder or adapter folder.
        revision: Revision of a Hub id.
        dtype: Dtype of the loaded weights; `"auto"` is the one that training uses on this machine.
        image_mode: Image mode; `None` takes the saved one.
        image: Image of one line; `None` takes the shipped sample.
        text: Text on the image; needed with `image`.
        use_cpu: Use the CPU, whatever the checkpoint's size and the machine's cards.

    Raises:
        ModelLoadError: when there is no such checkpoint, or its files cannot be read.
        ValueError: when an image is given without its text, an adapter does not fit its base, or a checkpoint of a
            released size would run on a CPU unasked.
    """
    if (image is None) is not (text is None):
        raise ValueError("--image and --text go together: the loss needs to know what the line says.")
    if image is None or text is None:
        image, text = str(SAMPLE_IMAGE), SAMPLE_TEXT
    base, adapter = name, None
    if (Path(name) / "adapter_config.json").is_file():
        adapter = name
        base, saved = find_base(name)
        revision = revision or saved
    device = "cuda" if torch.cuda.is_available() and not use_cpu else "cpu"
    unused_gpu = find_unused_gpu()
    # The config first: it tells at once whether this is a DeepSeek-OCR checkpoint.
    config = native_config(load_raw_config(base, revision))
    folder = local_checkpoint(base, revision)
    if device == "cpu" and not use_cpu:
        _refuse_large_on_cpu(base, folder, unused_gpu)
    checkpoint_files = list_checkpoint_files(folder)
    tokens = check_tokens(load_tokenizer(adapter or base, revision), config)
    differences: dict[str, list[str]] = {}
    running, adapter_tensors = None, None
    try:
        if all(token.found == token.expected for token in tokens):
            found = _load_and_run(base, adapter, revision, dtype, device, image_mode, image, text)
            running, adapter_tensors = found
        else:
            # The tensors are compared all the same; a model with other tokens cannot be run.
            load_model(base, revision=revision)
    except TensorDifferenceError as error:
        differences = error.differences
    half = half_dtype() if device == "cuda" else torch.bfloat16
    where = "weights and autocast" if device == "cuda" else "autocast alone; a CPU trains in float32"
    return Verification(
        model=name,
        version=model_version(config),
        machine=describe_machine(),
        half_type=f"{str(half).removeprefix('torch.')} ({where})",
        unused_gpu=unused_gpu,
        files=checkpoint_files,
        differences=differences,
        tokens=tokens,
        adapter_tensors=adapter_tensors,
        running=running,
    )
