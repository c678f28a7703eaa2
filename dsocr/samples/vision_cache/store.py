"""Store features in memory, or on disk in memory-mapped safetensors files."""

import logging
import time
import uuid
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dsocr.common.files import name_partial, write_then_rename
from dsocr.samples.geometry import ImageFeatures


logger = logging.getLogger(__name__)

# Age in seconds at which a half-written file counts as left by a killed process and is deleted.
_STALE_SECONDS = 3600


def _checksum(features: ImageFeatures) -> int:
    checksum = 0
    for tensor in (features.global_view, features.tiles):
        checksum = zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), checksum)
    return checksum


class MemoryStore:
    """Features in memory, by key; for a single process."""

    def __init__(self):
        self._items: dict[str, ImageFeatures] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._items

    def get(self, key: str) -> ImageFeatures:
        """Features of a key.

        Raises:
            KeyError: when the store does not hold the key.
        """
        return self._items[key]

    def add(self, items: dict[str, ImageFeatures]) -> None:
        """Store features."""
        self._items |= items

    def scan(self) -> None:
        """Do nothing: no other process writes here."""


class DiskStore:
    """Features in a folder, by key; any number of processes may read and write it.

    Writers rename a complete file into place and never change it afterwards.

    Args:
        folder: Folder of the files; it is created.

    Raises:
        OSError: when the folder cannot be created.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._places: dict[str, tuple[str, tuple[int, int], int, int]] = {}
        self._checked: set[str] = set()
        self._scanned: set[str] = set()
        self._open: dict[str, safe_open] = {}
        self.scan()

    def __getstate__(self) -> dict:
        # Each worker maps the files itself: open files cannot be pickled.
        return self.__dict__ | {"_open": {}}

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def scan(self) -> None:
        """Find files of other processes; delete damaged files and leftovers of killed processes."""
        for path in sorted(self.folder.iterdir()):
            if path.name in self._scanned:
                continue
            if path.suffix == ".part" and time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink(missing_ok=True)
            if path.suffix != ".safetensors":
                continue
            try:
                with safe_open(path, framework="pt") as file:
                    entries = file.metadata() or {}
            except (SafetensorError, OSError) as error:
                logger.warning("%s is damaged (%s); its images are computed anew", path, error)
                path.unlink(missing_ok=True)
                continue
            self._scanned.add(path.name)
            try:
                parsed = {key: tuple(map(int, entry.split())) for key, entry in entries.items()}
                places = {
                    key: (path.name, (columns, rows), n_tokens, checksum)
                    for key, (columns, rows, n_tokens, checksum) in parsed.items()
                }
            except ValueError:
                logger.warning("%s holds no vision features of this version; left alone", path)
                continue
            self._places |= places

    def get(self, key: str) -> ImageFeatures:
        """Features of a key.

        Raises:
            KeyError: when the store does not hold the key.
            ValueError: when the file was damaged after it was written.
        """
        name, grid, n_tokens, checksum = self._places[key]
        if name not in self._open:
            self._open[name] = safe_open(self.folder / name, framework="pt")
        file = self._open[name]
        found = ImageFeatures(file.get_tensor(f"{key}.global"), file.get_tensor(f"{key}.tiles"), grid, n_tokens)
        # Once a process: later reads come from the same pages of memory.
        if key not in self._checked:
            if _checksum(found) != checksum:
                raise ValueError(f"{self.folder / name} was damaged after it was written. Delete it and start again.")
            self._checked.add(key)
        return found

    def add(self, items: dict[str, ImageFeatures]) -> None:
        """Write features as one file.

        Raises:
            OSError: when the disk is full or the folder cannot be written.
        """
        tensors: dict[str, torch.Tensor] = {}
        entries: dict[str, str] = {}
        for key, features in items.items():
            tensors |= {f"{key}.global": features.global_view, f"{key}.tiles": features.tiles}
            entries[key] = f"{features.grid[0]} {features.grid[1]} {features.n_tokens} {_checksum(features)}"
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        try:
            with write_then_rename(path) as partial:
                save_file(tensors, partial, metadata=entries)
        except SafetensorError as error:
            # safetensors reports a full disk with its own exception type.
            raise OSError(str(error)) from error
        finally:
            name_partial(path).unlink(missing_ok=True)
        self.scan()
