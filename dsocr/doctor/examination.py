"""The examination as a whole, its summary and its files."""

import logging
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dsocr.common.files import write_json
from dsocr.common.problems import PROBLEMS
from dsocr.common.run_files import DOCTOR_HTML, DOCTOR_JSON, SKIPPED_NAME
from dsocr.data.checking import BadSamples
from dsocr.data.dataset_folder import write_dataset_folder
from dsocr.data.loading import KEPT_COLUMNS, parse_local_rows
from dsocr.data.training_sets import TrainingSets
from dsocr.doctor.findings import SEVERITIES, Finding
from dsocr.doctor.image_checks import ImageFacts, check_images, find_copies, find_look_alikes, look_at_all
from dsocr.doctor.length_checks import check_lengths, count_tokens, recommend_mode, summarize_modes
from dsocr.doctor.split_checks import check_copied_texts, check_splits
from dsocr.doctor.text_checks import check_texts, clean_text, count_alphabet, find_repeated
from dsocr.report.pages import embed_image, render_page
from dsocr.samples.lengths import ANSWER_TOKENS
from dsocr.samples.processor import OcrProcessor


logger = logging.getLogger(__name__)

SHOWN = 5
PICTURES = 12


@dataclass
class Examination:
    """What was found about a dataset.

    Attributes:
        source: The dataset.
        rows: `(where, row)` as they stand in the file.
        facts: What was seen of their images.
        findings: Everything that is wrong, the worst first.
        summary: Counts, alphabet, tokens and modes.
        copies: Groups of rows with the same picture, pixel for pixel.
        refused: Rows that are no row at all: outside the folder, without a column, no text.
    """

    source: str
    rows: list[tuple[str, dict[str, str]]]
    facts: list[ImageFacts]
    findings: list[Finding] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    copies: list[list[int]] = field(default_factory=list)
    refused: BadSamples = field(default_factory=lambda: BadSamples("skip"))

    @property
    def row_count(self) -> int:
        """Number of rows of the source, refused ones included."""
        return len(self.rows) + len(self.refused.entries)

    @property
    def is_sound(self) -> bool:
        """Whether there is no error."""
        return not any(finding.severity == "error" for finding in self.findings)

    def describe(self) -> list[str]:
        """For a terminal."""
        summary = self.summary
        shown = [
            f"{summary['rows']} rows, {summary['images_opened']} images opened, "
            f"{len(summary['alphabet'])} different characters, {summary['characters']} in all"
        ]
        for finding in self.findings:
            shown.append(f"{finding.severity:>7}  {finding.message}: {finding.advice}")
            shown += [f"           {where}" for where in finding.where[:SHOWN]]
            if len(finding.where) > SHOWN:
                shown.append(f"           ... and {len(finding.where) - SHOWN} more")
        for mode, values in summary.get("modes", {}).items():
            shown.append(
                f"   mode  {mode}: {values['median_tokens']:g} image tokens (up to {values['largest_tokens']}), letters "
                f"stretched {values['median_stretch']} times, lines {values['median_line_height']:g} pixels high"
            )
        if "recommended" in summary:
            advice = summary["recommended"]
            shown.append(f"   take  {advice['flags']}: {advice['why']}")
            if advice["try"]:
                shown.append(f"    try  {advice['try']}")
        return shown

    def write(self, output_dir: str | Path) -> Path:
        """Write `doctor.json` and `doctor.html`; returns the path of the latter."""
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        findings = [finding.to_dict() for finding in self.findings]
        content = {"source": self.source, "summary": self.summary, "findings": findings}
        write_json(folder / DOCTOR_JSON, content)
        pictures = {
            index: embed_image(self.rows[index][1]["image"])
            for finding in self.findings
            for index in finding.rows[:PICTURES]
        }
        return render_page("doctor.html.j2", folder / DOCTOR_HTML, examination=self, pictures=pictures, shown=PICTURES)


def examine(
    source: str | Path,
    processor: OcrProcessor | None = None,
    *,
    max_new_tokens: int = 256,
    image_column: str | None = None,
    text_column: str | None = None,
) -> Examination:
    """Examine a local dataset.

    Args:
        source: A metadata file, or a folder with one.
        processor: Counts tokens and tiles; without it lengths are not looked at.
        max_new_tokens: Longest answer that evaluation will generate.
        image_column: See `load_ocr_dataset`.
        text_column: See `load_ocr_dataset`.

    Raises:
        As `parse_local_rows`; ValueError when there is no row.
    """
    bad = BadSamples("skip")
    rows = list(parse_local_rows(source, bad, image_column=image_column, text_column=text_column))
    if not rows:
        raise ValueError(f"{source}: no row to examine; {bad.summary()}.")
    where, texts = [place for place, _ in rows], [row["text"] for _, row in rows]
    facts = look_at_all([row["image"] for _, row in rows])
    found = Examination(str(source), rows, facts, refused=bad)
    for reason in bad.counts:
        entries = [entry for entry in bad.entries if entry["reason"] == reason]
        places = [entry["where"] for entry in entries]
        found.findings.append(
            Finding(reason, "error", f"{len(entries)} rows: {entries[0]['message']}", "mend them", places)
        )
    found.copies = find_copies(facts)
    found.findings += check_images(facts, where) + check_texts(texts, where)
    splits: list[str | None] = [row.get("split") for _, row in rows]
    pages: list[str | None] = [row.get("page") for _, row in rows]
    writers: list[str | None] = [row.get("writer") for _, row in rows]
    look_alikes = find_look_alikes(facts)
    found.findings += check_splits(splits, pages, writers, found.copies, look_alikes, find_repeated(texts), where)
    found.findings += check_copied_texts(found.copies, texts, where)
    sizes = [fact.size for fact in facts if fact.size is not None]
    found.summary = {
        "rows": len(rows),
        "images_opened": len(sizes),
        "characters": sum(len(text) for text in texts),
        "alphabet": count_alphabet(texts),
        "splits": {str(split): splits.count(split) for split in sorted(set(splits), key=str)},
        "pages": len({page for page in pages if page is not None}),
    }
    if processor is not None and sizes:
        findings, lengths = check_lengths(texts, processor, max_new_tokens, where)
        found.findings += findings
        modes = summarize_modes(sizes, processor)
        found.summary |= {"modes": modes, "recommended": recommend_mode(modes), **lengths}
    found.findings.sort(key=lambda finding: (SEVERITIES.index(finding.severity), -len(finding.rows)))
    return found


def examine_quickly(sets: TrainingSets, processor: OcrProcessor, max_new_tokens: int) -> list[Finding]:
    """The short form for training runs, whose images have been opened already: texts, pages and texts on both sides, and
    lengths.

    Args:
        sets: Sets of the run.
        processor: Its processor.
        max_new_tokens: Longest answer that evaluation generates.

    Returns:
        Findings that are no mere notes.
    """
    texts: list[str] = []
    where: list[str] = []
    splits: list[str | None] = []
    pages: list[str | None] = []
    lengths: list[int] = []
    for name, dataset in (("train", sets.train), ("held_out", sets.held_out)):
        texts += dataset["text"]
        # A loaded dataset has the lengths; one that was made otherwise has its texts encoded here.
        known = ANSWER_TOKENS in dataset.column_names
        lengths += dataset[ANSWER_TOKENS] if known else [count_tokens(text, processor) for text in dataset["text"]]
        where += [f"{name}[{index}]" for index in range(len(dataset))]
        splits += [name] * len(dataset)
        pages += dataset["page"] if "page" in dataset.column_names else [None] * len(dataset)
    found = check_texts(texts, where) + check_splits(splits, pages, [], [], [], [], where)
    found += check_lengths(texts, processor, max_new_tokens, where, lengths=lengths)[0]
    return [finding for finding in found if finding.severity != "note"]


def _proven_copies(examination: Examination) -> dict[int, int]:
    """Rows whose picture and text both stand in an earlier row: by position, the position of that row."""
    copied = {}
    for group in examination.copies:
        first: dict[str, int] = {}
        for index in group:
            text = clean_text(examination.rows[index][1]["text"])
            if text in first:
                copied[index] = first[text]
            else:
                first[text] = index
    return copied


def write_repaired(examination: Examination, output_dir: str | Path) -> int:
    """Write a repaired copy: unusable rows left out, texts cleaned, and of rows with equal pixels and equal texts the first.

    Every row that is left out is named in `skipped_samples.json` with its reason.

    Args:
        examination: What was found.
        output_dir: A new folder, see `write_dataset_folder`; the source is only read.

    Returns:
        The number of rows that were written.

    Raises:
        ValueError: as `write_dataset_folder`.
    """
    unusable = {index: f for f in examination.findings if f.kind in PROBLEMS for index in f.rows}
    copied = _proven_copies(examination)
    left_out = BadSamples("skip")
    for entry in examination.refused.entries:
        left_out.add(**entry)
    with write_dataset_folder(output_dir, "--fix") as writer:
        for index, (where, row) in enumerate(examination.rows):
            text = clean_text(row["text"])
            if index in unusable:
                left_out.add(unusable[index].kind, where, examination.facts[index].problem or unusable[index].message)
                continue
            if index in copied:
                left_out.add("copy", where, f"the picture and the text of {examination.rows[copied[index]][0]}")
                continue
            if not text:
                left_out.add("empty_text", where, "nothing is left of the text after cleaning")
                continue
            kept = {column: row[column] for column in KEPT_COLUMNS if column in row}
            writer.add(
                partial(shutil.copyfile, row["image"]), {"text": text, **kept}, Path(row["image"]).suffix.lower()
            )
        left_out.write(Path(output_dir) / SKIPPED_NAME)
    logger.info("%d of %d rows in %s; %s", writer.count, examination.row_count, output_dir, left_out.summary())
    return writer.count
