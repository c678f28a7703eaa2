"""Tokenizers: upstream's, exactly as its file defines it, and a byte-level one built in code for the tiny models."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast
from transformers.utils import cached_file

from dsocr.prompts import IMAGE_TOKEN


# Upstream's control tokens in the order of their ids 0, 1, 2.
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
RUSSIAN = "АБВГДЕЁЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯабвгдеёжзийклмнопрстуфхцчшщъыьэюя"


def find_file(name_or_path: str | Path, filename: str, revision: str | None = None) -> Path | None:
    """A file of a local folder or a Hub id; `None` when it is not there."""
    if Path(name_or_path).is_dir():
        path = Path(name_or_path) / filename
        return path if path.is_file() else None
    found = cached_file(str(name_or_path), filename, revision=revision, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


def read_json(name_or_path: str | Path, filename: str, revision: str | None = None) -> dict[str, Any]:
    """A JSON file of a local folder or a Hub id; `{}` when it is not there."""
    path = find_file(name_or_path, filename, revision)
    return json.loads(path.read_text(encoding="utf-8")) if path else {}


def load_tokenizer(name_or_path: str | Path, revision: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer exactly as `tokenizer.json` defines it.

    The class that upstream's tokenizer_config.json names (LlamaTokenizerFast) rebuilds the tokenizer in transformers 5
    and splits text differently, so the file is read directly.

    Raises:
        ValueError: when there is no tokenizer.json.
    """
    path = find_file(name_or_path, "tokenizer.json", revision)
    if path is None:
        raise ValueError(f"{name_or_path} has no tokenizer.json.")
    config = read_json(name_or_path, "tokenizer_config.json", revision)
    tokens = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        token = config.get(name)
        tokens[name] = token["content"] if isinstance(token, dict) else token
    return PreTrainedTokenizerFast(tokenizer_file=str(path), name_or_path=str(name_or_path), **tokens)


def build_byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with upstream's control tokens at ids 0, 1, 2 and `<image>` as the last id.

    One token per byte, and one per Russian letter (which is two bytes), so any text survives a round trip.
    """
    splitter = ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {token: index for index, token in enumerate((BOS, EOS, PAD, *sorted(ByteLevel.alphabet())))}
    merges = []
    for letter in RUSSIAN:
        first, second = splitter.pre_tokenize_str(letter)[0][0]
        merges.append((first, second))
        vocabulary[first + second] = len(vocabulary)
    backend = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (BOS, EOS, PAD, IMAGE_TOKEN)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD)
