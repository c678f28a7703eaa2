"""Chat data with images: `messages` (the assistant's first answer is the text) and `images`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dsocr.common.errors import UnusableSampleError
from dsocr.data.checking import BadSamples
from dsocr.data.importers.annotations import AnnotatedImage, find_image, parse_entries


def is_messages(row: Any) -> bool:
    """Whether a row holds a conversation."""
    return isinstance(row, dict) and ("messages" in row or "conversations" in row)


def _content(message: dict) -> str:
    content = message.get("content", message.get("value", ""))
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if part.get("type") == "text")
    if not isinstance(content, str):
        raise UnusableSampleError(f"the answer is {content!r:.80}, expected a text", "not_text")
    return content


def _images(row: dict, messages: list[dict]) -> list[str]:
    found = row.get("images", row.get("image", []))
    names = [found] if isinstance(found, str | dict) else list(found)
    for message in messages:
        parts = message.get("content")
        names += [part.get("image") for part in parts if part.get("type") == "image"] if isinstance(parts, list) else []
    return [name.get("path", "") if isinstance(name, dict) else str(name) for name in names if name]


def parse_messages(path: Path, rows: Iterable[tuple[int, dict]], bad: BadSamples) -> Iterator[AnnotatedImage]:
    """Yield the rows that have one image each.

    Args:
        path: The file.
        rows: Row numbers and rows.
        bad: Counts rows without an answer, rows with no image or several, and malformed ones.
    """

    def parse(where: str, row: dict) -> AnnotatedImage:
        messages = row.get("messages") or row.get("conversations") or []
        answers = [m for m in messages if m.get("role", m.get("from")) in ("assistant", "gpt", "model")]
        names = _images(row, messages)
        if not answers:
            raise UnusableSampleError("no message of the assistant in this row", "no_answer")
        if len(set(names)) != 1:
            message = f"{len(set(names))} images in this row; exactly one can be used"
            raise UnusableSampleError(message, "not_one_image")
        image, expected = find_image(path.parent, names[0])
        page = str(row.get("page", image.stem))
        return AnnotatedImage(image, expected, where, page, text=_content(answers[0]).strip())

    return parse_entries(((f"{path}:{number}", row) for number, row in rows), parse, bad)
