"""Look up features by image, for the collator."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dsocr.data.image_files import image_name
from dsocr.samples.geometry import ImageFeatures
from dsocr.samples.vision_cache.store import DiskStore, MemoryStore


def hash_bytes(content: bytes) -> str:
    """Digest of an image file's bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class KnownFile(NamedTuple):
    """Identity of a file at the time its features were computed.

    Attributes:
        key: Digest of its bytes.
        modified: Modification time, nanoseconds.
        size: Bytes.
    """

    key: str
    modified: int
    size: int


@dataclass
class FeatureCache:
    """Features by image.

    Attributes:
        store: Holds the features.
        known: By path, the file's identity when its features were computed.
    """

    store: MemoryStore | DiskStore
    known: dict[str, KnownFile] = field(default_factory=dict)

    def key(self, source: Any) -> str | None:
        """Key of an image (a path, or the `{"bytes", "path"}` of a dataset); `None` for an unknown image.

        Raises:
            ValueError: when the file has changed since its features were computed.
        """
        if isinstance(source, dict) and source.get("bytes") is not None:
            return hash_bytes(source["bytes"])
        path = source["path"] if isinstance(source, dict) else source
        if not isinstance(path, str | Path) or str(path) not in self.known:
            return None
        known, stat = self.known[str(path)], Path(path).stat()
        if (stat.st_mtime_ns, stat.st_size) != (known.modified, known.size):
            raise ValueError(
                f"{image_name(source)}: the file has changed since its vision features were computed. Start the run "
                "again, or switch the cache off with --vision_cache off."
            )
        return known.key

    def find(self, source: Any) -> ImageFeatures | None:
        """Features of an image; `None` if the cache does not hold it.

        Raises:
            ValueError: when the file has changed since its features were computed.
        """
        key = self.key(source)
        return self.store.get(key) if key is not None and key in self.store else None
