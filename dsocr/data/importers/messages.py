"""Chat data with images: `messages` (the assistant's first answer is the text) and `images`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsocr.data.checking import BadSamples
from dsocr.data.importers.annotations import AnnotatedImage, find_image


def is_messages(row: Any) -> bool:
    """Whether a row holds a conversation."""
    return isinstance(row, dict) and ("messages" in row or "conversations" in row)


def _content(message: dict) -> str:
    content = message.get("content", message.get("value", ""))
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if part.get("type") == "text")
    return str(content)


def _images(row: dict, messages: list[dict]) -> list[str]:
    found = row.get("images", row.get("image", []))
    names = [found] if isinstance(found, str | dict) else list(found)
    for message in messages:
        parts = message.get("content")
        names += [part.get("image") for part in parts if part.get("type") == "image"] if isinstance(parts, list) else []
    return [name.get("path", "") if isinstance(name, dict) else str(name) for name in names if name]


def parse_messages(path: Path, rows: Iterator[tuple[int, dict]], bad: BadSamples) -> Iterator[AnnotatedImage]:
    """Yield the rows that have one image each.

    Args:
        path: The file.
        rows: Row numbers and rows.
        bad: Counts rows without an answer, and rows with no image or several.
    """
    for number, row in rows:
        where = f"{path}:{number}"
        messages = row.get("messages") or row.get("conversations") or []
        answers = [m for m in messages if m.get("role", m.get("from")) in ("assistant", "gpt", "model")]
        images = _images(row, messages)
        if not answers:
            bad.add("no_answer", where, "no message of the assistant in this row")
        elif len(set(images)) != 1:
            bad.add("not_one_image", where, f"{len(set(images))} images in this row; exactly one can be used")
        else:
            image = find_image(path.parent, images[0])
            yield AnnotatedImage(image, where, str(row.get("page", image.stem)), text=_content(answers[0]).strip())
