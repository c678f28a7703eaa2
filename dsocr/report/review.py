"""Write transcriptions for correction by a person: images and texts side by side, the least confident first.

The corrected CSV is a dataset: `load_ocr_dataset("review.csv")` loads it, and the next run can train on it. Cells that a
spreadsheet would take for formulas are guarded, and loading undoes that.
"""

import csv
from pathlib import Path

from dsocr.common.files import begin_waiting_folder, move_waiting, set_aside, write_then_rename
from dsocr.data.tables import FORMULA_START, GUARD_COLUMN, guard_cells
from dsocr.data.texts import normalize
from dsocr.reading.transcription import TranscribedLine, TranscribedPage
from dsocr.report.pages import embed_image, render_page


COLUMNS = ("image", "text", "confidence", "page")
SUFFIXES = (".html", ".csv")


class ReviewWriter:
    """Collect lines, and write them when all pages are read (or the run is stopped).

    Args:
        path: `review.csv`, or `review.html`, which also writes the CSV beside it. Line images go to a folder
            `<name>_images` beside it.

    Raises:
        ValueError: for another suffix.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"--review {path}: name a file that ends in .html or .csv.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._images = self.path.parent / f"{self.path.stem}_images"
        # An earlier table, corrected perhaps, keeps its images until this one is whole.
        self._waiting = begin_waiting_folder(self._images)
        self._rows: list[dict[str, str]] = []

    def add(self, page: TranscribedPage) -> None:
        """Add the lines of a page, and write their images at once."""
        for line in page.lines:
            self._rows.append(self._row(page, line))

    def _row(self, page: TranscribedPage, line: TranscribedLine) -> dict[str, str]:
        name = f"{len(self._rows):06d}.png"
        line.image.save(self._waiting / name)
        image = f"{self._images.name}/{name}"
        fields = (image, normalize(line.text), f"{line.confidence:.4f}", page.name)
        return dict(zip(COLUMNS, fields, strict=True))

    def close(self) -> list[Path]:
        """Write the files; returns their paths."""
        rows = sorted(self._rows, key=lambda row: float(row["confidence"]))
        table = self.path.with_suffix(".csv")
        with write_then_rename(table) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*COLUMNS, GUARD_COLUMN])
            writer.writeheader()
            writer.writerows(map(guard_cells, rows))
            set_aside(table)
            move_waiting(self._images)
        table.with_name(f"{table.name}.old").unlink(missing_ok=True)
        if self.path.suffix.lower() == ".csv":
            return [table]
        pictures = [embed_image(str(self.path.parent / row["image"])) for row in rows]
        lines = list(zip(rows, pictures, strict=True))
        # The page writes the same table as this file does, so it gets the same names and the same rule.
        names = {"columns": list(COLUMNS), "guard_column": GUARD_COLUMN, "formula_start": f"^{FORMULA_START}"}
        render_page("review.html.j2", self.path, lines=lines, table=table.name, **names)
        return [self.path, table]
