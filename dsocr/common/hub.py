"""Small files of a local folder or a Hub id, and the question whether the Hub can be reached at all."""

import logging
import os
import socket
import urllib.request
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from dsocr.common.files import load_json


logger = logging.getLogger(__name__)

# Seconds that a connection to the Hub may take. huggingface_hub alone tries for 23 seconds, for every file.
_TIMEOUT = 5.0


@cache
def check_hub() -> bool:
    """Whether the Hub can be reached; when it cannot, say so once and use only files that were downloaded before.

    huggingface_hub repeats every request five times with growing pauses, so a machine without a network would wait
    minutes for the same answer.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    # Behind a proxy the Hub's own address says nothing.
    if urllib.request.getproxies().get("https"):
        return True
    address = urlparse(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=_TIMEOUT).close()
    except OSError as error:
        logger.warning(
            "%s cannot be reached (%s): only files that were downloaded before are used", constants.ENDPOINT, error
        )
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"
        return False
    return True


def find_file(name_or_path: str | Path, filename: str, revision: str | None = None) -> Path | None:
    """A file of a local folder or a Hub id; `None` when it is not there.

    Raises:
        OSError: the Hub cannot be reached and the file was not downloaded before, or there is no such model id.
    """
    if Path(name_or_path).is_dir():
        path = Path(name_or_path) / filename
        return path if path.is_file() else None
    check_hub()
    # Imported here: transformers takes seconds, and most callers read local files.
    from transformers.utils import cached_file

    found = cached_file(str(name_or_path), filename, revision=revision, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


def load_json_of(name_or_path: str | Path, filename: str, revision: str | None = None) -> dict[str, Any]:
    """A JSON file of a local folder or a Hub id; `{}` when it is not there.

    Raises:
        OSError: as `find_file`.
        ValueError: as `load_json`.
    """
    path = find_file(name_or_path, filename, revision)
    return load_json(path) if path else {}
