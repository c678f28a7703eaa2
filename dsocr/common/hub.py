"""Find small files in a local folder or on the Hub, and check once whether the Hub can be reached."""

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

# Seconds to wait for a connection to the Hub. huggingface_hub alone would try for 23 seconds, for every file.
_TIMEOUT = 5.0


@cache
def check_hub() -> bool:
    """Whether the Hub can be reached. If not, warn once and use only files downloaded before.

    huggingface_hub retries every request five times with growing pauses, so without a network each file would cost
    minutes.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    # A proxy makes the connection, so trying the Hub's own address from here proves nothing.
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
    """Find a file in a local folder or under a Hub id; `None` when it is not there.

    Raises:
        OSError: the Hub cannot be reached and the file was not downloaded before, or there is no such model id.
    """
    if Path(name_or_path).is_dir():
        path = Path(name_or_path) / filename
        return path if path.is_file() else None
    check_hub()
    # Import here: transformers takes seconds to import, and most callers need local files only.
    from transformers.utils import cached_file

    found = cached_file(str(name_or_path), filename, revision=revision, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


def load_json_of(name_or_path: str | Path, filename: str, revision: str | None = None) -> dict[str, Any]:
    """Load a JSON file of a local folder or a Hub id; `{}` when it is not there.

    Raises:
        OSError: as `find_file`.
        ValueError: as `load_json`.
    """
    path = find_file(name_or_path, filename, revision)
    return load_json(path) if path else {}
