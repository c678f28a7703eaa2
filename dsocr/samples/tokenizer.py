"""Prompts (plain text around one image, no roles: upstream's `plain` template) and upstream's tokenizer."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from dsocr.common.hub import find_file, load_json_of


IMAGE_TOKEN = "<image>"
DEFAULT_PROMPTS = {
    "v1": f"{IMAGE_TOKEN}\nFree OCR.",
    "v2": f"{IMAGE_TOKEN}\nFree OCR.",
    "unlimited": f"{IMAGE_TOKEN}document parsing.",
}


def split_prompt(prompt: str) -> tuple[str, str]:
    """Split a prompt into the text before and after the image; strip surrounding white space as upstream does.

    Raises:
        ValueError: when the prompt does not contain `<image>` exactly once.

    Example:
        >>> split_prompt("<image>\\nFree OCR. ")
        ('', '\\nFree OCR.')
    """
    parts = prompt.strip().split(IMAGE_TOKEN)
    if len(parts) != 2:
        raise ValueError(
            f"prompt={prompt!r} must hold {IMAGE_TOKEN} exactly once, for example {DEFAULT_PROMPTS['v1']!r}."
        )
    return parts[0], parts[1]


# Upstream's control tokens in the order of their ids 0, 1, 2.
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"


def load_tokenizer(name_or_path: str | Path, revision: str | None = None) -> PreTrainedTokenizerFast:
    """Load the tokenizer exactly as `tokenizer.json` defines it.

    Load the file directly: upstream's tokenizer_config.json names LlamaTokenizerFast, and in transformers 5 that class
    rebuilds the tokenizer and splits text differently.

    Raises:
        ValueError: when there is no tokenizer.json.
    """
    path = find_file(name_or_path, "tokenizer.json", revision)
    if path is None:
        raise ValueError(f"{name_or_path} has no tokenizer.json.")
    config = load_json_of(name_or_path, "tokenizer_config.json", revision)
    tokens = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        token = config.get(name)
        tokens[name] = token["content"] if isinstance(token, dict) else token
    return PreTrainedTokenizerFast(tokenizer_file=str(path), name_or_path=str(name_or_path), **tokens)
