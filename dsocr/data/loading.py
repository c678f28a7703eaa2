"""Load rows of `image` and `text` from any source: a metadata file, a folder or a Hub dataset.

Three steps, each done once: parse the table (`_load_table`), choose the rows of a split (`_rows_of`), and measure the
remaining rows (`keep_usable`).
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import datasets
from datasets import Dataset

from dsocr.common.hub import check_hub
from dsocr.data.checking import BadSamples, Measure, OnBadSample, keep_usable, measure_row
from dsocr.data.image_files import UnreadableImageError
from dsocr.data.tables import IMAGE_COLUMNS, SUFFIXES, TEXT_COLUMNS, find_column, parse_table
from dsocr.data.texts import clean_transcription


KEPT_COLUMNS = ("page", "writer", "split")
# Column with a row's name for messages; removed before a dataset is returned.
_WHERE = "where"
# Rows per Arrow chunk, so that a table of a million rows is never held as Python objects.
_CHUNK = 2048
SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}

Row = dict[str, str]


def _find_metadata(folder: Path) -> Path | None:
    for name in ("metadata", "labels"):
        for suffix in SUFFIXES:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    tables = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    if len(tables) > 1:
        raise ValueError(f"{folder} holds several metadata files ({', '.join(t.name for t in tables)}); name the one.")
    return tables[0] if tables else None


def _find_in_split_folder(folder: Path, split: str) -> Path | None:
    for name in SPLIT_FOLDERS.get(split, (split,)):
        if (folder / name).is_dir() and (metadata := _find_metadata(folder / name)):
            return metadata
    return None


def _locate(source: str) -> dict[str | None, Path]:
    """Metadata files of a local source by split (`None`: rows of any split); empty for a Hub id or Parquet files."""
    path = Path(source)
    if path.is_file():
        return {None: path}
    if not path.is_dir():
        # A Hub id has at most one slash and no suffix; the user meant anything else as a path.
        if source.count("/") > 1 or path.suffix or source.startswith((".", "~", "/")):
            raise FileNotFoundError(f"--dataset_name {source}: there is no such file or folder.")
        return {}
    by_folder: dict[str | None, Path] = {
        split: metadata for split in SPLIT_FOLDERS if (metadata := _find_in_split_folder(path, split))
    }
    if by_folder:
        return by_folder
    metadata = _find_metadata(path)
    if metadata is not None:
        return {None: metadata}
    if any(path.rglob("*.parquet")):
        return {}
    raise FileNotFoundError(
        f"--dataset_name {source}: no metadata.jsonl, .csv or .tsv in this folder. Each line names an image "
        'relative to the file and its text: {"image": "images/1.png", "text": "..."}'
    )


def _inside(root: Path, name: str) -> Path:
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise UnreadableImageError(f"{name}: points outside the dataset folder {root}.", "outside_folder")
    return path


def _parse_rows(
    metadata: Path, bad: BadSamples, image_column: str | None, text_column: str | None, encoding: str | None
) -> Iterator[tuple[str, Row]]:
    found = None
    for number, row in parse_table(metadata, bad, encoding):
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


def parse_local_rows(
    source: str | Path,
    bad: BadSamples,
    *,
    image_column: str | None = None,
    text_column: str | None = None,
    encoding: str | None = None,
) -> Iterator[tuple[str, Row]]:
    """Parse the rows of a local source unchanged: texts not cleaned, images not opened.

    Args:
        source: A metadata file, or a folder with one (with `train/` and `test/` inside: both, each with its `split`).
        bad: Refuses or counts rows with missing columns, and paths outside the folder.
        image_column: See `load_ocr_dataset`.
        text_column: See `load_ocr_dataset`.
        encoding: See `load_ocr_dataset`.

    Yields:
        `(where, {"image", "text", "page", "writer", "split"})`, the last three if known.

    Raises:
        FileNotFoundError: no such file or folder, or no metadata file in it.
        ValueError: for a Hub id or a folder of Parquet files.
    """
    located = _locate(str(source))
    if not located:
        raise ValueError(f"{source}: only local files are examined; write a Hub dataset to a folder first.")
    for split, metadata in located.items():
        for where, row in _parse_rows(metadata, bad, image_column, text_column, encoding):
            yield where, row if split is None else {"split": split, **row}


def _chunks(rows: Iterator, size: int) -> Iterator[list]:
    while chunk := list(islice(rows, size)):
        yield chunk


def _to_dataset(rows: Iterator[tuple[str, Row]]) -> Dataset | None:
    """Put rows into an Arrow table of strings, with texts cleaned for training; `None` without rows."""
    names = ("image", "text", *KEPT_COLUMNS)
    features = datasets.Features({name: datasets.Value("string") for name in (_WHERE, *names)})
    parts = []
    for chunk in _chunks(rows, _CHUNK):
        columns = {name: [row.get(name) for _, row in chunk] for name in names}
        columns["text"] = [clean_transcription(text) for text in columns["text"]]
        parts.append(Dataset.from_dict({_WHERE: [where for where, _ in chunk], **columns}, features=features))
    if not parts:
        return None
    whole = datasets.concatenate_datasets(parts)
    empty = [name for name in KEPT_COLUMNS if whole.data.column(name).null_count == len(whole)]
    return whole.remove_columns(empty)


def _load_hub(
    source: str, split: str, config: str | None, revision: str | None, image_column: str | None, text_column: str | None
) -> Dataset:
    dataset = datasets.load_dataset(source, config, split=split, revision=revision)
    image = find_column(dataset.column_names, IMAGE_COLUMNS, image_column, "--image_column", source)
    text = find_column(dataset.column_names, TEXT_COLUMNS, text_column, "--text_column", source)
    kept = [column for column in KEPT_COLUMNS if column in dataset.column_names and column not in (image, text)]
    dataset = dataset.select_columns([image, text, *kept])
    if isinstance(dataset.features[image], datasets.Image):
        # Don't decode here: workers call `open_image`, as for files.
        dataset = dataset.cast_column(image, datasets.Image(decode=False))
    dataset = dataset.rename_columns({old: new for old, new in ((image, "image"), (text, "text")) if old != new})
    return dataset.map(lambda row: {"text": clean_transcription(row["text"] or "")}, desc="Cleaning texts")


def _rows_of(dataset: Dataset, split: str | None) -> Dataset:
    """Rows of a split; all rows when no split is asked for or the rows name none."""
    if split is None or "split" not in dataset.column_names:
        return dataset
    names = SPLIT_FOLDERS.get(split, (split,))
    return dataset.select([index for index, name in enumerate(dataset["split"]) if name in names])


class Source:
    """A source of transcribed images; its table is parsed once for all splits.

    Args:
        source: See `load_ocr_dataset`.
        bad: Refuses or counts bad samples.
        config: See `load_ocr_dataset`.
        revision: See `load_ocr_dataset`.
        image_column: See `load_ocr_dataset`.
        text_column: See `load_ocr_dataset`.
        encoding: See `load_ocr_dataset`.

    Raises:
        FileNotFoundError: no such file or folder, or no metadata file in it.
    """

    def __init__(
        self,
        source: str | Path,
        bad: BadSamples,
        *,
        config: str | None = None,
        revision: str | None = None,
        image_column: str | None = None,
        text_column: str | None = None,
        encoding: str | None = None,
    ):
        self.name = str(source)
        self._bad = bad
        self._hub = {"config": config, "revision": revision, "image_column": image_column, "text_column": text_column}
        self._is_local = bool(_locate(self.name))
        if not self._is_local and not Path(self.name).exists() and not check_hub():
            datasets.config.HF_HUB_OFFLINE = True
        self._table: Dataset | None = None
        if self._is_local:
            columns = {"image_column": image_column, "text_column": text_column, "encoding": encoding}
            self._table = _to_dataset(parse_local_rows(source, bad, **columns))

    def has_split(self, split: str) -> bool:
        """Whether the source has rows of a split: in a sub-folder, by a `split` column, or on the Hub."""
        if not self._is_local:
            return split in datasets.get_dataset_split_names(self.name, self._hub["config"])
        table = self._table
        return table is not None and "split" in table.column_names and len(_rows_of(table, split)) > 0

    def load(
        self,
        split: str | None = None,
        *,
        measure: Measure = measure_row,
        max_samples: int | None = None,
        progress: bool = True,
    ) -> Dataset:
        """Load the usable rows of a split; arguments and result are those of `load_ocr_dataset`.

        Raises:
            ValueError: no row of the split is usable.
            BadSampleError: a bad sample, with file and row.
        """
        rows = self._table if self._is_local else _load_hub(self.name, split or "train", **self._hub)
        chosen = None if rows is None else _rows_of(rows, split if self._is_local else None)
        if chosen is not None and _WHERE in chosen.column_names:
            wheres = chosen.select_columns(_WHERE)
            chosen = chosen.remove_columns(_WHERE)
        else:
            wheres = None

        def place(position: int) -> str:
            return f"{self.name}[{position}]" if wheres is None else wheres[position][_WHERE]

        if chosen is not None:
            chosen = keep_usable(chosen, place, self._bad, measure=measure, max_samples=max_samples, progress=progress)
        if chosen is None or not len(chosen):
            of_split = f" in split {split!r}" if split else ""
            raise ValueError(f"{self.name}: no usable sample{of_split}; {self._bad.summary()}.")
        return chosen


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
    measure: Measure = measure_row,
    max_samples: int | None = None,
    encoding: str | None = None,
    progress: bool = True,
) -> Dataset:
    """Load transcribed images.

    Args:
        source: A `.jsonl`, `.csv` or `.tsv` file; a folder with one (also the imagefolder layout, with `train/` and
            `test/` inside); a folder of Parquet files; or a Hub dataset id. Image paths are relative to the metadata
            file and must stay inside its folder.
        split: `"train"` or `"test"`: the sub-folder, the rows with that `split` value, or the Hub's split. `None` takes
            every row (`train` of a Hub dataset).
        config: Configuration name of a Hub dataset.
        revision: Revision of a Hub dataset.
        image_column: Column of the images when it has an unusual name.
        text_column: Column of the texts when it has an unusual name.
        on_bad_sample: `"raise"`, or `"skip"` to count and leave out.
        bad_samples: Collects the skipped samples over several calls; made from `on_bad_sample` when absent.
        measure: Measures each row and raises for an unusable one. `dsocr.samples.lengths.SampleMeter` also counts
            tokens, and refuses texts and lengths outside the model's limits.
        max_samples: Stop after this many usable rows.
        encoding: Encoding of the metadata file, see `parse_table`.
        progress: Show a progress bar when loading takes more than a second.
    Returns:
        Columns `image` (a path, or `{"bytes", "path"}`), `text` (NFC, stripped), if known `page`, `writer` and `split`,
        and the measured ones (`width`, `height`, ...). Images stay closed until a worker needs them.

    Raises:
        FileNotFoundError: no such file or folder, or no metadata file in it.
        ValueError: unknown columns, or no usable row.
        BadSampleError: a bad sample, with file and row.
    """
    columns = {"image_column": image_column, "text_column": text_column, "encoding": encoding}
    found = Source(source, bad_samples or BadSamples(on_bad_sample), config=config, revision=revision, **columns)
    return found.load(split, measure=measure, max_samples=max_samples, progress=progress)
