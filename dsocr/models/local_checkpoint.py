"""A checkpoint as a local folder, whose small files can be carried over."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from dsocr.models.loading import ModelLoadError


# Weights, configs and tokenizers; never pickles.
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.py"]


def local_checkpoint(name_or_path: str, revision: str | None = None) -> Path:
    """The folder itself, or the Hub's snapshot in the local cache (downloaded if need be, never executed).

    Raises:
        ModelLoadError: when it is neither a folder nor a model id that can be reached.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    try:
        return Path(snapshot_download(name_or_path, revision=revision, allow_patterns=_PATTERNS))
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise ModelLoadError(
            f"{name_or_path!r} is neither a local folder nor a model id that can be reached on the Hub: {error}"
        ) from error
