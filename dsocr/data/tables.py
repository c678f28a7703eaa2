"""Parse metadata files: JSON lines, and CSV or TSV with or without a header."""

import codecs
import csv
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from dsocr.data.checking import BadSamples


IMAGE_COLUMNS = ("image", "file_name", "image_path", "filename", "path")
TEXT_COLUMNS = ("text", "transcription", "transcript", "label", "ground_truth")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl", ".csv", ".tsv")


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


def _read_jsonl(path: Path, bad: BadSamples, encoding: str | None) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(_read_lines(path, encoding), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            bad.add("not_json", f"{path}:{number}", f"not a line of JSON: {error}")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            bad.add("not_json", f"{path}:{number}", f"expected a JSON object, found {type(row).__name__}")


def _read_delimited(path: Path, bad: BadSamples, encoding: str | None) -> Iterator[tuple[int, dict]]:
    separator = SEPARATORS[path.suffix.lower()]
    # Keep line ends as they are: the csv module needs those inside quotes.
    lines = _read_lines(path, encoding, newline="")
    first = next(lines, "")
    names = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
    if set(names) & set(IMAGE_COLUMNS) and set(names) & set(TEXT_COLUMNS):
        reader = csv.DictReader(lines, fieldnames=names, delimiter=separator)
        for row in reader:
            number = reader.line_num + 1
            if row.get(None) or None in row.values():
                bad.add("wrong_columns", f"{path}:{number}", f"expected {len(names)} columns {names}")
            else:
                yield number, row
        return
    # Without a header a line is: path, separator, text. The text may contain the separator again.
    for number, line in enumerate(chain([first], lines), start=1):
        if not line.strip():
            continue
        image, found, text = line.partition(separator)
        if found:
            yield number, {"image": image.strip().strip('"'), "text": text.strip().strip('"')}
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
        return _read_jsonl(path, bad, encoding)
    if suffix in SEPARATORS:
        return _read_delimited(path, bad, encoding)
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
