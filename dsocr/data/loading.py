"""One door for data: a metadata file, a folder or a Hub dataset becomes rows of `image` and `text`."""

import logging
import unicodedata
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import datasets
from datasets import Dataset

from dsocr.data.bad_samples import BadSamples, OnBadSample
from dsocr.data.sieve import Sieve, find_problem
from dsocr.data.tables import IMAGE_COLUMNS, SUFFIXES, TEXT_COLUMNS, find_column, read_table
from dsocr.image_files import UnreadableImageError
from dsocr.processor import OcrProcessor


logger = logging.getLogger(__name__)

KEPT_COLUMNS = ("page", "writer", "split")
# Rows that are checked, and then kept as Arrow, at a time: a table of a million rows is never held as Python objects.
_CHUNK = 2048
SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}


def _find_metadata(folder: Path) -> Path | None:
    for name in ("metadata", "labels"):
        for suffix in SUFFIXES:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    tables = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    if len(tables) > 1:
        raise ValueError(f"{folder} holds several metadata files ({', '.join(t.name for t in tables)}); name the one.")
    return tables[0] if tables else None


def _find_in_split_folder(folder: Path, split: str | None) -> Path | None:
    for name in SPLIT_FOLDERS.get(split, (split,)) if split else ():
        if (folder / name).is_dir() and (metadata := _find_metadata(folder / name)):
            return metadata
    return None


def _locate(source: str, split: str | None) -> Path | None:
    """The metadata file of a local source; `None` when the source is a Hub id or a folder of Parquet files."""
    path = Path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        # A Hub id has one slash at most and no suffix; anything else was meant as a path.
        if source.count("/") > 1 or path.suffix or source.startswith((".", "~", "/")):
            raise FileNotFoundError(f"--dataset_name {source}: there is no such file or folder.")
        return None
    metadata = _find_in_split_folder(path, split) or _find_metadata(path)
    if metadata is None and split is None:
        metadata = _find_in_split_folder(path, "train")
    if metadata is None and not any(path.rglob("*.parquet")):
        raise FileNotFoundError(
            f"--dataset_name {source}: no metadata.jsonl, .csv or .tsv in this folder. Each line names an image "
            'relative to the file and its text: {"image": "images/1.png", "text": "..."}'
        )
    return metadata


def has_test_split(source: str | Path, split: str = "test", config: str | None = None) -> bool:
    """Whether a source brings held-out lines of its own: a sub-folder, a `split` column, or the Hub's split."""
    if Path(source).is_dir() and _find_in_split_folder(Path(source), split):
        return True
    metadata = _locate(str(source), None)
    if metadata is not None:
        names = SPLIT_FOLDERS.get(split, (split,))
        return any(row.get("split") in names for _, row in read_table(metadata, BadSamples("skip")))
    return split in datasets.get_dataset_split_names(str(source), config)


def _has_split_column(metadata: Path, encoding: str | None) -> bool:
    return any("split" in row for _, row in read_table(metadata, BadSamples("skip"), encoding))


def _inside(root: Path, name: str) -> Path:
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise UnreadableImageError(f"{name}: points outside the dataset folder {root}.", "outside_folder")
    return path


def _local_rows(
    metadata: Path, bad: BadSamples, image_column: str | None, text_column: str | None, encoding: str | None
):
    found = None
    for number, row in read_table(metadata, bad, encoding):
        where = f"{metadata}:{number}"
        if found is None:
            found = (
                find_column(list(row), IMAGE_COLUMNS, image_column, "--image_column", where),
                find_column(list(row), TEXT_COLUMNS, text_column, "--text_column", where),
            )
        absent = [column for column in found if row.get(column) is None]
        if absent:
            bad.add("missing_column", where, f"no {' and no '.join(absent)} in this row")
            continue
        try:
            image = str(_inside(metadata.parent, str(row[found[0]])))
        except UnreadableImageError as error:
            bad.add(error.reason, where, str(error))
            continue
        kept = {column: str(row[column]) for column in KEPT_COLUMNS if row.get(column) is not None}
        yield where, {"image": image, "text": str(row[found[1]]), **kept}


def _hub_rows(source: str, split: str, config: str | None, revision: str | None, image_column, text_column):
    dataset = datasets.load_dataset(source, config, split=split, revision=revision)
    image = find_column(dataset.column_names, IMAGE_COLUMNS, image_column, "--image_column", source)
    text = find_column(dataset.column_names, TEXT_COLUMNS, text_column, "--text_column", source)
    kept = [column for column in KEPT_COLUMNS if column in dataset.column_names and column not in (image, text)]
    dataset = dataset.select_columns([image, text, *kept])
    if isinstance(dataset.features[image], datasets.Image):
        # Decoded by `open_image` in the workers, like files.
        dataset = dataset.cast_column(image, datasets.Image(decode=False))
    return dataset.rename_columns({old: new for old, new in ((image, "image"), (text, "text")) if old != new})


def _clean_text(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _chunks(rows: Iterator, size: int) -> Iterator[list]:
    while chunk := list(islice(rows, size)):
        yield chunk


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _local_dataset(located: Iterator[tuple[str, dict]], sieve: Sieve) -> Dataset | None:
    parts = []
    features = datasets.Features({name: datasets.Value("string") for name in ("image", "text", *KEPT_COLUMNS)})
    for chunk in _chunks(located, _CHUNK):
        rows = [row | {"text": _clean_text(row["text"])} for _, row in chunk]
        kept = sieve.usable(rows, [where for where, _ in chunk])
        columns = {name: [rows[index].get(name) for index in kept] for name in features}
        parts.append(Dataset.from_dict(columns, features=features))
        if sieve.is_full:
            break
    if not sieve.count:
        return None
    whole = datasets.concatenate_datasets(parts)
    empty = [name for name in KEPT_COLUMNS if whole.data.column(name).null_count == len(whole)]
    return whole.remove_columns(empty)


def _hub_dataset(rows: Dataset, source: str, sieve: Sieve) -> Dataset | None:
    usable = []
    for start in range(0, len(rows), _CHUNK):
        chunk = rows.select(range(start, min(start + _CHUNK, len(rows))))
        places = [f"{source}[{start + index}]" for index in range(len(chunk))]
        usable += [start + index for index in sieve.usable(chunk, places)]
        if sieve.is_full:
            break
    return rows.select(usable) if usable else None


def read_local_rows(
    source: str | Path,
    bad: BadSamples,
    *,
    image_column: str | None = None,
    text_column: str | None = None,
    encoding: str | None = None,
) -> list[tuple[str, dict[str, str]]]:
    """Rows of a local source as they stand there: texts untouched, images not opened.

    Args:
        source: A metadata file, or a folder with one (with `train/` and `test/` inside: both, with a `split` each).
        bad: Refuses or counts rows without columns, and paths that leave the folder.
        image_column: See `load_ocr_dataset`.
        text_column: See `load_ocr_dataset`.
        encoding: See `load_ocr_dataset`.

    Returns:
        `(where, {"image", "text", "page", "writer", "split"})`, the last three when they are known.

    Raises:
        FileNotFoundError: no such file, folder, or metadata file in it.
        ValueError: for a Hub id or a folder of Parquet files.
    """
    folder, rows = Path(source), []
    columns = (image_column, text_column, encoding)
    for split in SPLIT_FOLDERS:
        if folder.is_dir() and (metadata := _find_in_split_folder(folder, split)):
            rows += [(where, {"split": split, **row}) for where, row in _local_rows(metadata, bad, *columns)]
    if rows:
        return rows
    metadata = _locate(str(source), None)
    if metadata is None:
        raise ValueError(f"{source}: only local files are examined; write a Hub dataset to a folder first.")
    return list(_local_rows(metadata, bad, *columns))


def load_ocr_dataset(
    source: str | Path,
    *,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    on_bad_sample: OnBadSample = "raise",
    bad_samples: BadSamples | None = None,
    processor: OcrProcessor | None = None,
    max_length: int | None = None,
    max_samples: int | None = None,
    encoding: str | None = None,
    progress: bool = True,
) -> Dataset:
    """Load transcribed images.

    Args:
        source: A `.jsonl`, `.csv` or `.tsv` file; a folder that holds one (also the imagefolder layout, with `train/`
            and `test/` inside); a folder of Parquet files; or a Hub dataset id. Image paths are relative to the
            metadata file and must stay inside its folder.
        split: `"train"` or `"test"`: the sub-folder, the rows of that `split` column, or the Hub's split. `None` takes
            every row (`train` of a Hub dataset).
        config: Configuration name of a Hub dataset.
        revision: Revision of a Hub dataset.
        image_column: Column of the images when it has an unusual name.
        text_column: Column of the texts when it has an unusual name.
        on_bad_sample: `"raise"`, or `"skip"` to count and leave out.
        bad_samples: Collects the skipped samples over several calls; made from `on_bad_sample` when absent.
        processor: When given, texts with reserved tokens and samples over `max_length` are found too.
        max_length: Longest sample in tokens, image tokens included.
        max_samples: Read no more than this many usable rows.
        encoding: Encoding of the metadata file, see `read_table`.
        progress: Show a progress bar when it takes more than a second.

    Returns:
        Columns `image` (a path, or `{"bytes", "path"}`), `text` (NFC, stripped) and, when known, `page`, `writer` and `split`.
        Images stay closed until a worker needs them.

    Raises:
        FileNotFoundError: no such file, folder, or metadata file in it.
        ValueError: unknown columns, nothing usable in it.
        BadSampleError: a bad sample, with file and row.
    """
    bad = bad_samples or BadSamples(on_bad_sample)
    metadata = _locate(str(source), split)

    def sieve_of(total: int) -> Sieve:
        return Sieve(
            partial(find_problem, processor=processor, max_length=max_length), bad, max_samples, progress, total
        )

    if metadata is None:
        rows = _hub_rows(str(source), split or "train", config, revision, image_column, text_column)
        rows = rows.map(lambda row: {"text": _clean_text(row["text"] or "")}, desc="Cleaning texts")
        with sieve_of(len(rows)) as sieve:
            dataset = _hub_dataset(rows, str(source), sieve)
    else:
        located = _local_rows(metadata, bad, image_column, text_column, encoding)
        if split and _has_split_column(metadata, encoding):
            names = SPLIT_FOLDERS.get(split, (split,))
            located = ((where, row) for where, row in located if row.get("split") in names)
        with sieve_of(_count_lines(metadata)) as sieve:
            dataset = _local_dataset(located, sieve)
    if dataset is None:
        raise ValueError(
            f"{source}: no usable sample" + (f" in split {split!r}" if split else "") + f"; {bad.summary()}."
        )
    return dataset
