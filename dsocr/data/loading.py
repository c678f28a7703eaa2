"""Load rows of `image` and `text` from any source: a metadata file, a folder or a Hub dataset.

Three steps, each done once: parse the table (`parse_table`), choose the rows of a split (`Source.rows`), and measure the
remaining rows (`keep_usable`).
"""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from dsocr.common.errors import UnusableSampleError
from dsocr.common.hub import check_hub
from dsocr.data.checking import BadSamples, Measure, OnBadSample, keep_usable, measure_row
from dsocr.data.image_files import UnreadableImageError
from dsocr.data.split_names import SPLITS, find_split, folder_names, name_split
from dsocr.data.tables import IMAGE_COLUMNS, SUFFIXES, TEXT_COLUMNS, find_column, parse_table
from dsocr.data.texts import clean_transcription


KEPT_COLUMNS = ("page", "writer", "split")
# Column with a row's name for messages; removed before a dataset is returned.
_WHERE = "where"
# Rows per Arrow chunk, so that a table of a million rows is never held as Python objects.
_CHUNK = 2048

Row = dict[str, str]


def _find_metadata(folder: Path) -> Path | None:
    usual = [folder / f"{name}{suffix}" for name in ("metadata", "labels") for suffix in SUFFIXES]
    tables = [path for path in usual if path.is_file()]
    if not tables:
        tables = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    if len(tables) > 1:
        raise ValueError(f"{folder} holds several metadata files ({', '.join(t.name for t in tables)}); name the one.")
    return tables[0] if tables else None


def has_metadata(folder: Path) -> bool:
    """Whether a folder lists its images in a metadata file, itself or in its split folders."""
    return bool(_find_metadata(folder) or _find_split_folders(folder) or any(folder.rglob("*.parquet")))


def concatenate_images(parts: list[Dataset]) -> Dataset:
    """Put datasets one after the other, whether their images are paths or stored in the dataset; absent columns are None."""
    if len({str(part.features["image"]) for part in parts}) > 1:
        parts = [part.cast_column("image", datasets.Image(decode=False)) for part in parts]
    return datasets.concatenate_datasets(parts)


def _find_split_folders(folder: Path) -> list[tuple[str | None, Path]]:
    """Splits and metadata files of the sub-folders `train/`, `validation/`, `test/` and those of like names."""
    named = [(split, folder / name) for split in SPLITS for name in folder_names(split)]
    found = [(split, _find_metadata(path)) for split, path in named if path.is_dir()]
    return [(split, metadata) for split, metadata in found if metadata is not None]


def _locate(source: str) -> list[tuple[str | None, Path]]:
    """Splits and metadata files of a local source (`None`: rows of any split); empty for a Hub id or Parquet files."""
    path = Path(source)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"--dataset_name {source[:100]!r}: no such file or folder ({error}).") from error
    if is_file:
        return [(None, path)]
    if not is_folder:
        # A Hub id has at most one slash and no suffix; the user meant anything else as a path.
        if source.count("/") > 1 or path.suffix or source.startswith((".", "~", "/")):
            raise FileNotFoundError(f"--dataset_name {source}: there is no such file or folder.")
        return []
    by_folder, metadata = _find_split_folders(path), _find_metadata(path)
    if by_folder and metadata is not None:
        raise ValueError(
            f"--dataset_name {source}: {metadata.name} lies beside {by_folder[0][1].relative_to(path)}; name the one to take."
        )
    if by_folder:
        return by_folder
    if metadata is not None:
        return [(None, metadata)]
    if any(path.rglob("*.parquet")):
        return []
    raise FileNotFoundError(
        f"--dataset_name {source}: no metadata.jsonl, .csv or .tsv in this folder. Each line names an image "
        'relative to the file and its text: {"image": "images/1.png", "text": "..."}'
    )


def _inside(root: Path, name: str) -> Path:
    try:
        path = (root / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        # A NUL character, a name of over 255 bytes, a circle of links.
        raise UnreadableImageError(f"{name[:100]!r}: no path of a file ({error}).", "missing") from error
    if not path.is_relative_to(root.resolve()):
        raise UnreadableImageError(f"{name}: points outside the dataset folder {root}.", "outside_folder")
    return path


def _to_text(value: Any, column: str) -> str:
    # A whole number is a text that a converter took for a number: 1905. Anything else would become Python's own notation.
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UnusableSampleError(f"{column} is {value!r:.80}, expected a text", "not_text")
    text = str(value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnusableSampleError(f"{column} holds half of a character ({error.reason})", "not_text") from error
    return text


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
            image = str(_inside(metadata.parent, _to_text(row[found[0]], found[0])))
            text = _to_text(row[found[1]], found[1])
            kept = {name: _to_text(row[name], name) for name in KEPT_COLUMNS if row.get(name) not in (None, "")}
        except UnusableSampleError as error:
            bad.add(error.reason, where, str(error))
            continue
        if "split" in kept:
            kept["split"] = name_split(kept["split"])
        yield where, {"image": image, "text": text, **kept}


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
    for split, metadata in located:
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
        own_splits: Names of splits beside train, validation and test that rows may carry.

    Raises:
        FileNotFoundError: no such file, folder, or metadata file in it.
        ValueError: several metadata files, or unknown columns.
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
        own_splits: tuple[str, ...] = (),
    ):
        self.name = str(source)
        self._bad = bad
        self._config, self._revision = config, revision
        self._image_column, self._text_column = image_column, text_column
        self._own_splits = own_splits
        self._is_local = bool(_locate(self.name))
        if not self._is_local and not Path(self.name).exists() and not check_hub():
            datasets.config.HF_HUB_OFFLINE = True
        self._table: Dataset | None = None
        self._refused_rows_without_split = False
        if self._is_local:
            rows = parse_local_rows(source, bad, image_column=image_column, text_column=text_column, encoding=encoding)
            self._table = _to_dataset(rows)

    def count_splits(self) -> dict[str | None, int]:
        """Rows of a local source by split, `None` for rows that name none; empty when no row names one."""
        if self._table is None or "split" not in self._table.column_names:
            return {}
        return dict(Counter(self._table["split"]))

    def has_split(self, split: str) -> bool:
        """Tell whether there are rows of a split: in a sub-folder, by a `split` column, or on the Hub."""
        if not self._is_local:
            return split in datasets.get_dataset_split_names(self.name, self._config)
        return find_split(split, (name for name in self.count_splits() if name)) is not None

    def _load_hub(self, split: str) -> Dataset:
        dataset = datasets.load_dataset(self.name, self._config, split=split, revision=self._revision)
        image = find_column(dataset.column_names, IMAGE_COLUMNS, self._image_column, "--image_column", self.name)
        text = find_column(dataset.column_names, TEXT_COLUMNS, self._text_column, "--text_column", self.name)
        kept = [column for column in KEPT_COLUMNS if column in dataset.column_names and column not in (image, text)]
        dataset = dataset.select_columns([image, text, *kept])
        if isinstance(dataset.features[image], datasets.Image):
            # Don't decode here: workers call `open_image`, as for files.
            dataset = dataset.cast_column(image, datasets.Image(decode=False))
        dataset = dataset.rename_columns({old: new for old, new in ((image, "image"), (text, "text")) if old != new})
        return dataset.map(lambda row: {"text": clean_transcription(row["text"] or "")}, desc="Cleaning texts")

    def _check_split_words(self, table: Dataset) -> None:
        """Refuse a word that is no split, and refuse or count rows without one where others have one.

        A row of a misspelt split would be trained on, or vanish.
        """
        known = {*SPLITS, *self._own_splits}
        for index, word in enumerate(table["split"]):
            if word is not None and word not in known:
                raise ValueError(
                    f"{table[index][_WHERE]}: the split {word!r} is not one of {', '.join(sorted(known))}. Mend it, or name "
                    "it with --dataset_train_split or --dataset_test_split."
                )
        if self._refused_rows_without_split:
            return
        self._refused_rows_without_split = True
        for index, word in enumerate(table["split"]):
            if word is None:
                self._bad.add("no_split", table[index][_WHERE], "this row names no split, and others do")

    def _rows_of(self, table: Dataset, split: str | None) -> Dataset:
        """Rows of a split; all rows when no split is asked for or the rows name none."""
        if split is None or "split" not in table.column_names:
            return table
        self._check_split_words(table)
        wanted = find_split(split, (name for name in self.count_splits() if name))
        return table.select([index for index, name in enumerate(table["split"]) if name == wanted])

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
            ValueError: no row of the split is usable, or a row names a split that does not exist.
            BadSampleError: a bad sample; the message names its file and row.
        """
        wheres: Dataset | None = None
        if not self._is_local:
            chosen: Dataset | None = self._load_hub(split or "train")
        elif self._table is None:
            chosen = None
        else:
            rows = self._rows_of(self._table, split)
            wheres, chosen = rows.select_columns(_WHERE), rows.remove_columns(_WHERE)

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
            `test/` inside); a folder of Parquet files; or a Hub dataset id. Image paths are relative to the
            metadata file and must stay inside its folder.
        split: `"train"` or `"test"`: the sub-folder, the rows with that `split` value, or the Hub's split. `None`
            takes every row (`train` of a Hub dataset).
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
        Columns `image` (a path, or `{"bytes", "path"}`), `text` (NFC, stripped), if known `page`, `writer` and
        `split`, and the measured ones (`width`, `height`, ...). Images stay closed until a worker needs them.

    Raises:
        FileNotFoundError: no such file or folder, or no metadata file in it.
        ValueError: unknown columns, or no usable row.
        BadSampleError: a bad sample, with file and row.
    """
    found = Source(
        source,
        bad_samples or BadSamples(on_bad_sample),
        config=config,
        revision=revision,
        image_column=image_column,
        text_column=text_column,
        encoding=encoding,
        own_splits=() if split is None else (split,),
    )
    return found.load(split, measure=measure, max_samples=max_samples, progress=progress)
