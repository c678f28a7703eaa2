"""Write a dataset folder: numbered images, and a `metadata.jsonl` that has its name only when it is whole."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from dsocr.common.files import name_partial, write_then_rename
from dsocr.common.run_files import IMAGES_FOLDER, METADATA_NAME


# The names that this file gives to images, and nobody else is likely to.
_OWN_IMAGE = re.compile(r"\d{7}(\.\w+)?")


class DatasetWriter:
    """Adds rows to a dataset folder.

    Args:
        folder: The folder.
        table: Its table, open for writing.

    Attributes:
        count: Rows written so far.
    """

    def __init__(self, folder: Path, table: TextIO):
        self.count = 0
        self._folder, self._table = folder, table

    def add(self, write_image: Callable[[Path], object], fields: dict[str, Any], suffix: str = ".png") -> None:
        """Write one row.

        Args:
            write_image: Writes the image under the path it is called with.
            fields: What the row says beside the image: text, page, ...
            suffix: Suffix of the image file.
        """
        name = f"{IMAGES_FOLDER}/{self.count:07d}{suffix}"
        write_image(self._folder / name)
        self._table.write(json.dumps({"image": name, **fields}, ensure_ascii=False) + "\n")
        self.count += 1


def _own_images(folder: Path) -> list[Path]:
    images = folder / IMAGES_FOLDER
    return sorted(path for path in images.iterdir() if _OWN_IMAGE.fullmatch(path.name)) if images.is_dir() else []


def _sweep(folder: Path) -> None:
    """Delete what an unfinished run wrote; other files stay. The table goes last: it tells that there is something to sweep."""
    for path in _own_images(folder):
        path.unlink()
    name_partial(folder / METADATA_NAME).unlink(missing_ok=True)


@contextmanager
def write_dataset_folder(folder: str | Path, flag: str) -> Iterator[DatasetWriter]:
    """Write a new dataset folder; the table gets its name when the block ends without an error.

    What an earlier, unfinished run left in the folder is deleted first: its images would lie about without a row.

    Args:
        folder: Folder to write; it must not hold a dataset yet.
        flag: The flag that named it, for messages.

    Raises:
        ValueError: when the folder holds a dataset, or images that would be overwritten and that no unfinished run left.
    """
    folder = Path(folder)
    table, images = folder / METADATA_NAME, folder / IMAGES_FOLDER
    if table.exists():
        raise ValueError(f"{flag} {folder}: holds a dataset already; name another folder, or delete it.")
    if name_partial(table).exists():
        _sweep(folder)
    elif own := _own_images(folder):
        raise ValueError(
            f"{flag} {folder}: {own[0].relative_to(folder)} is there already and would be overwritten; name another folder."
        )
    images.mkdir(parents=True, exist_ok=True)
    with write_then_rename(table) as partial, partial.open("w", encoding="utf-8") as file:
        writer = DatasetWriter(folder, file)
        try:
            yield writer
        except BaseException:
            if not writer.count:
                file.close()
                _sweep(folder)
                if not any(images.iterdir()):
                    images.rmdir()
            raise
