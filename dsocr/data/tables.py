"""Readers of metadata files: JSON lines, and CSV or TSV with or without a header."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from dsocr.data.bad_samples import BadSamples


IMAGE_COLUMNS = ("image", "file_name", "image_path", "filename", "path")
TEXT_COLUMNS = ("text", "transcription", "transcript", "label", "ground_truth")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl", ".csv", ".tsv")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8.") from error


def _read_jsonl(path: Path, bad: BadSamples) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
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


def _read_delimited(path: Path, bad: BadSamples) -> Iterator[tuple[int, dict]]:
    separator = SEPARATORS[path.suffix.lower()]
    lines = _read_text(path).splitlines()
    header = next(csv.reader(lines[:1], delimiter=separator), [])
    names = [name.strip() for name in header]
    if set(names) & set(IMAGE_COLUMNS) and set(names) & set(TEXT_COLUMNS):
        reader = csv.DictReader(lines, fieldnames=names, delimiter=separator)
        next(reader)
        for row in reader:
            if row.get(None) or None in row.values():
                bad.add("wrong_columns", f"{path}:{reader.line_num}", f"expected {len(names)} columns {names}")
            else:
                yield reader.line_num, row
        return
    # Without a header: path, separator, and the rest of the line, which may hold the separator again.
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        image, found, text = line.partition(separator)
        if found:
            yield number, {"image": image.strip().strip('"'), "text": text.strip().strip('"')}
        else:
            bad.add("wrong_columns", f"{path}:{number}", f"no {separator!r} between the image's path and the text")


def read_table(path: Path, bad: BadSamples) -> Iterator[tuple[int, dict]]:
    """Rows of a metadata file with their line numbers (from 1).

    Raises:
        ValueError: when the file is not UTF-8, or its suffix is not one of `SUFFIXES`.
        BadSampleError: for a damaged row, unless it is to be skipped.
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _read_jsonl(path, bad)
    if suffix in SEPARATORS:
        return _read_delimited(path, bad)
    raise ValueError(f"{path}: metadata files end in {', '.join(SUFFIXES)}.")


def find_column(names: list[str], known: tuple[str, ...], wanted: str | None, flag: str, where: str) -> str:
    """The column that holds the images or the texts.

    Raises:
        ValueError: when the wanted column, or any known one, is not there; the columns that are there are named.
    """
    if wanted is not None:
        if wanted not in names:
            raise ValueError(f"{where}: {flag}={wanted!r} is not one of the columns {sorted(names)}.")
        return wanted
    for name in known:
        if name in names:
            return name
    raise ValueError(f"{where}: none of the columns {sorted(names)} is one of {', '.join(known)}; name it with {flag}.")
