"""The files of a checkpoint: sizes, digests, and whether they are what the Hub sent."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm


_PATTERNS = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json")
# Bytes that are digested at a time.
_BLOCK = 16 * 2**20


@dataclass(frozen=True)
class CheckpointFile:
    """A file of a checkpoint.

    Attributes:
        name: Its name in the folder.
        size: Bytes.
        sha256: Digest of its bytes, hexadecimal.
        as_sent: Whether the bytes are those that the Hub names; `None` when the Hub's digest is not known.
        tensors: Number of tensors in it; `None` for another kind of file and for a damaged one.
    """

    name: str
    size: int
    sha256: str
    as_sent: bool | None
    tensors: int | None


def _count_tensors(path: Path) -> int | None:
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return len(list(file.keys()))
    except (SafetensorError, OSError):
        return None


def _digest(path: Path, bar: tqdm) -> tuple[str, str]:
    """SHA-256 of the bytes, and git's own SHA-1 of them, by which the Hub names small files."""
    sha256, git = hashlib.sha256(), hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    small = path.stat().st_size < _BLOCK
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha256.update(block)
            if small:
                git.update(block)
            bar.update(len(block))
    return sha256.hexdigest(), git.hexdigest()


def _name_on_hub(path: Path) -> str | None:
    """The digest that the Hub gives a downloaded file: huggingface_hub stores it under this name, with a link to it."""
    stored = path.resolve()
    known = stored.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", stored.name)
    return stored.name if known else None


def list_checkpoint_files(folder: str | Path, *, progress: bool = True) -> list[CheckpointFile]:
    """Digest the config, weights and tokenizer files of a checkpoint.

    Args:
        folder: A local folder, or a snapshot folder of huggingface_hub's cache.
        progress: Show a progress bar of the bytes.

    Returns:
        The files in the order of their names.
    """
    paths = sorted({path for pattern in _PATTERNS for path in Path(folder).glob(pattern)})
    total = sum(path.stat().st_size for path in paths)
    files = []
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="Digests", disable=not progress, delay=1, leave=False
    ) as bar:
        for path in paths:
            sha256, git = _digest(path, bar)
            known = _name_on_hub(path)
            as_sent = None if known is None else known in (sha256, git)
            files.append(CheckpointFile(path.name, path.stat().st_size, sha256, as_sent, _count_tensors(path)))
    return files
