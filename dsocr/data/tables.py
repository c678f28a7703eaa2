"""Parse metadata files: JSON lines, and CSV or TSV with or without a header."""

import codecs
import csv
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from dsocr.data.checking import BadSamples
from dsocr.data.image_files import IMAGE_SUFFIXES


IMAGE_COLUMNS = ("image", "file_name", "image_path", "filename", "path")
TEXT_COLUMNS = ("text", "transcription", "transcript", "label", "ground_truth")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl", ".csv", ".tsv")
# Column that names the cells of its row with an apostrophe in front, "text" or "page text"; `guard_cells` writes it.
GUARD_COLUMN = "guarded_cells"
# How a cell begins that a spreadsheet takes for a formula.
FORMULA_START = "[=+\\-@\t\r]"
# Lines of the longest cell that is looked for behind an open quote.
_MAX_CELL_LINES = 200


def _read_lines(path: Path, encoding: str | None, newline: str | None = None) -> Iterator[str]:
    """Yield the lines of a file one at a time, with their line ends."""
    if encoding is None:
        # Excel's "Unicode text" is UTF-16 with a byte order mark in its first two bytes.
        with path.open("rb") as file:
            encoding = "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        with path.open(encoding=encoding, newline=newline) as file:
            yield from file
    except LookupError as error:
        raise ValueError(f"--encoding {encoding}: Python knows no such encoding.") from error
    except UnicodeError as error:
        raise ValueError(
            f"{path} is not {encoding.removesuffix('-sig').upper()} ({error}); save it as UTF-8, or convert it with "
            "recipes/prepare_data.py --encoding cp1251 (Windows, Cyrillic), cp1252 (Windows, Western), ..."
        ) from error


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        doubled = next(key for key, _ in pairs if [name for name, _ in pairs].count(key) > 1)
        raise ValueError(f"the key {doubled!r} stands in it twice")
    return row


def _parse_jsonl(path: Path, bad: BadSamples, encoding: str | None) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(_read_lines(path, encoding), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_refuse_duplicates)
        # ValueError: a doubled key, or a number of more digits than Python converts. RecursionError: brackets in brackets.
        except (ValueError, RecursionError) as error:
            bad.add("not_json", f"{path}:{number}", f"not a line of JSON: {error}")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            bad.add("not_json", f"{path}:{number}", f"expected a JSON object, found {type(row).__name__}")


def _split_quoted(text: str, separator: str) -> list[str] | None:
    """Fields of one record in which quotes quote; `None` when its quotes are no quoting: `"Hail" he said`."""
    try:
        records = list(csv.reader(text.splitlines(keepends=True), delimiter=separator, strict=True))
    except csv.Error:
        return None
    return records[0] if len(records) == 1 else None


def _looks_like_a_row(line: str, separator: str, columns: int) -> bool:
    fields = line.rstrip("\r\n").split(separator)
    return len(fields) >= columns and any(field.strip('"').lower().endswith(IMAGE_SUFFIXES) for field in fields)


def _records(lines: Iterator[str], separator: str, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Line numbers (from 1) and fields of the records of a table without its header.

    A quote opens a quoted field only when the quoting is sound. A text that merely begins with a quotation mark stays as
    it is, and never takes the following rows into itself.
    """
    waiting: list[str] = []
    number = 0

    def next_line() -> str | None:
        return waiting.pop(0) if waiting else next(lines, None)

    while (line := next_line()) is not None:
        number += 1
        if not line.strip():
            continue
        start, record = number, line
        fields = _split_quoted(record, separator)
        taken: list[str] = []
        # A field with line breaks: go on until its quotes close, but not over what is a row of its own.
        while fields is None and len(taken) < _MAX_CELL_LINES:
            following = next_line()
            if following is None:
                break
            taken.append(following)
            if _looks_like_a_row(following, separator, columns):
                break
            fields = _split_quoted(record + "".join(taken), separator)
            if fields is not None and len(fields) != columns:
                fields = None
        if fields is None:
            # No sound quoting: the line stands for itself, and what was looked at comes back.
            waiting[:0] = taken
            fields = line.rstrip("\r\n").split(separator)
        else:
            number += len(taken)
        yield start, fields


def guard_cells(row: dict[str, str]) -> dict[str, str]:
    """Put an apostrophe in front of the cells of a row that a spreadsheet would take for formulas, and name them.

    Example:
        >>> guard_cells({"image": "1.png", "text": "=2+3"})
        {'image': '1.png', 'text': "'=2+3", 'guarded_cells': 'text'}
    """
    names = [name for name, cell in row.items() if re.match(FORMULA_START, cell)]
    return {name: f"'{cell}" if name in names else cell for name, cell in row.items()} | {GUARD_COLUMN: " ".join(names)}


def undo_guards(row: dict[str, str]) -> dict[str, str]:
    """Undo `guard_cells`; a row without its column comes back unchanged.

    A person may have taken the apostrophe away, and a spreadsheet takes it when a cell is edited, or may have written a text
    that begins with one: only an apostrophe before the beginning of a formula is a guard.
    """
    names = (row.get(GUARD_COLUMN) or "").split()
    return {
        name: cell[1:] if name in names and re.match(f"'{FORMULA_START}", cell) else cell for name, cell in row.items()
    }


def _parse_delimited(path: Path, bad: BadSamples, encoding: str | None) -> Iterator[tuple[int, dict]]:
    separator = SEPARATORS[path.suffix.lower()]
    # Keep line ends as they are: the csv module needs those inside quotes.
    lines = _read_lines(path, encoding, newline="")
    first = next(lines, "")
    names = [name.strip() for name in _split_quoted(first, separator) or first.split(separator)]
    if set(names) & set(IMAGE_COLUMNS) and set(names) & set(TEXT_COLUMNS):
        for number, fields in _records(lines, separator, len(names)):
            if len(fields) != len(names):
                message = f"expected {len(names)} columns {names}, found {len(fields)}"
                bad.add("wrong_columns", f"{path}:{number + 1}", message)
            else:
                yield number + 1, undo_guards(dict(zip(names, fields, strict=True)))
        return
    # Without a header a line is: path, separator, text. The text may contain the separator again.
    for number, line in enumerate(chain([first], lines), start=1):
        if not line.strip():
            continue
        quoted = _split_quoted(line, separator) if '"' in line else None
        image, found, text = line.strip().partition(separator)
        if quoted is not None and len(quoted) == 2:
            image, text = quoted
        if found:
            yield number, {"image": image.strip(), "text": text.strip()}
        else:
            bad.add("wrong_columns", f"{path}:{number}", f"no {separator!r} between the image's path and the text")


def parse_table(path: Path, bad: BadSamples, encoding: str | None = None) -> Iterator[tuple[int, dict]]:
    """Yield a metadata file's rows with their line numbers (from 1); the file is never held whole.

    Args:
        path: The file.
        bad: Refuses or counts damaged rows.
        encoding: The file's encoding; `None` takes UTF-16 if the file begins with that mark, else UTF-8.

    Raises:
        ValueError: when the file is not in that encoding, or its suffix is not one of `SUFFIXES`.
        BadSampleError: for a damaged row, unless bad rows are skipped.
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _parse_jsonl(path, bad, encoding)
    if suffix in SEPARATORS:
        return _parse_delimited(path, bad, encoding)
    raise ValueError(f"{path}: metadata files end in {', '.join(SUFFIXES)}.")


def find_column(names: list[str], known: tuple[str, ...], wanted: str | None, flag: str, where: str) -> str:
    """Choose the column of the images or of the texts.

    Raises:
        ValueError: when the wanted column, or every known one, is missing; the message lists the file's columns.
    """
    if wanted is not None:
        if wanted not in names:
            raise ValueError(f"{where}: {flag}={wanted!r} is not one of the columns {sorted(names)}.")
        return wanted
    for name in known:
        if name in names:
            return name
    raise ValueError(f"{where}: none of the columns {sorted(names)} is one of {', '.join(known)}; name it with {flag}.")
