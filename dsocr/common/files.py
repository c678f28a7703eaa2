"""Files that are written whole or not at all, JSON, and marked passages of a page."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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


def name_partial(path: str | Path) -> Path:
    """The name `<name>.part` of a file or folder that is still being written."""
    return Path(path).with_name(f"{Path(path).name}.part")


@contextmanager
def write_then_rename(path: str | Path) -> Iterator[Path]:
    """Yield the name to write under, and rename the file (or folder) when the block ends without an error.

    Nobody ever sees half a file: an interrupted write leaves the old one whole, and its own part under `.part`.

    Example:
        >>> with write_then_rename("a.txt") as partial:  # doctest: +SKIP
        ...     partial.write_text("whole")
    """
    partial = name_partial(path)
    yield partial
    os.replace(partial, path)


def begin_waiting_folder(folder: str | Path) -> Path:
    """An empty folder `<name>.part`, for files that `move_waiting` puts in place together: those of the same names, which
    an earlier table refers to, stay until then."""
    waiting = name_partial(folder)
    shutil.rmtree(waiting, ignore_errors=True)
    waiting.mkdir(parents=True)
    return waiting


def set_aside(path: str | Path) -> None:
    """Rename a file, if it is there, to `<name>.old`: before what belongs to it is replaced.

    It fails, with nothing replaced yet, while another program (Excel, on Windows) holds the file open. A stop between this
    and the new file leaves the old one under that name.

    Raises:
        OSError: the file cannot be renamed.
    """
    path = Path(path)
    if path.exists():
        os.replace(path, path.with_name(f"{path.name}.old"))


def move_waiting(folder: str | Path) -> None:
    """Move the files of `<name>.part` into the folder, where other files stay."""
    folder, waiting = Path(folder), name_partial(folder)
    folder.mkdir(exist_ok=True)
    for path in sorted(waiting.iterdir()):
        os.replace(path, folder / path.name)
    waiting.rmdir()


def write_text(path: str | Path, text: str) -> Path:
    """Write a text in UTF-8, whole or not at all; returns the path.

    A file name that is no UTF-8 reaches Python with half characters; they are written as `\\udcff`, as JSON does.
    """
    with write_then_rename(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    return Path(path)


def write_json(path: str | Path, content: Any) -> Path:
    """Write JSON, whole or not at all; returns the path."""
    return write_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def let_others_read(folder: Path) -> None:
    """Give weights the mode of any new file: safetensors makes them readable for their owner alone, and a server often runs
    under another account."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o666 & ~mask)


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
    write_text(path, f"{before}{begin}\n{text}\n{end}{after}")
