"""Small files: load and write JSON, and replace a marked passage of a page."""

import json
import os
from pathlib import Path
from typing import Any


_REQUIRED = object()


def load_json(path: str | Path, default: Any = _REQUIRED, *, kind: type = dict) -> Any:
    """Load and parse a JSON file.

    Args:
        path: A file in UTF-8, with or without a byte order mark.
        default: Returned when there is no such file; without it a missing file raises.
        kind: What the file holds: `dict` or `list`; `object` takes anything.

    Raises:
        FileNotFoundError: there is no such file and no default.
        ValueError: the file is not JSON, or not of that kind; the message names it.
    """
    path = Path(path)
    if default is not _REQUIRED and not path.is_file():
        return default
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    # ValueError: damage, no UTF-8, an integer of over 4300 digits.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or not JSON in UTF-8: {error}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} is damaged: it holds a {type(content).__name__}, expected a {kind.__name__}.")
    return content


def write_json(path: str | Path, content: Any) -> Path:
    """Write JSON to a temporary file and rename it, so that nobody ever sees half a file."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.part")
    text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    # A file name that is no UTF-8 reaches Python with half characters, which JSON writes as \udcff.
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(partial, path)
    return path


def replace_between(path: str | Path, mark: str, text: str) -> None:
    """Replace the text between `<!-- mark -->` and `<!-- end of mark -->` in a hand-written file.

    Raises:
        ValueError: the marks are not there.
    """
    path = Path(path)
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    content = path.read_text(encoding="utf-8")
    if begin not in content or end not in content:
        raise ValueError(f"{path} has no {begin} ... {end}.")
    before, rest = content.split(begin, 1)
    after = rest.split(end, 1)[1]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
