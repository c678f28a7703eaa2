"""What must not be on both sides of a split."""

from collections import defaultdict
from collections.abc import Sequence

from dsocr.doctor.findings import Finding
from dsocr.doctor.text_checks import clean_text


def _crossing(groups: Sequence[Sequence[int]], splits: Sequence[str | None]) -> list[int]:
    rows: list[int] = []
    for group in groups:
        if len({splits[index] for index in group}) > 1:
            rows += group
    return sorted(rows)


def _groups(names: Sequence[str | None]) -> list[list[int]]:
    rows_of: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        if name is not None:
            rows_of[name].append(index)
    return list(rows_of.values())


def check_splits(
    splits: Sequence[str | None],
    pages: Sequence[str | None],
    writers: Sequence[str | None],
    copies: Sequence[Sequence[int]],
    look_alikes: Sequence[Sequence[int]],
    repeated: Sequence[Sequence[int]],
    where: Sequence[str],
) -> list[Finding]:
    """Findings about copies, and about pages, writers and texts on both sides.

    Args:
        splits: Split of every row, `None` when the source has none.
        pages: Page of every row, `None` when it is not known.
        writers: Writer of every row, `None` when not known.
        copies: Groups of rows with the same picture, pixel for pixel.
        look_alikes: Groups of rows whose pictures seem to show the same writing.
        repeated: Groups of rows with the same text.
        where: Names of the rows.
    """

    def finding(kind: str, severity: str, message: str, advice: str, rows: list[int]) -> Finding:
        return Finding(kind, severity, message, advice, [where[i] for i in rows], rows)

    findings = []
    if copies:
        rows = sorted(index for group in copies for index in group)
        message = f"{len(copies)} pictures are there more than once ({len(rows)} rows)"
        advice = "--fix keeps the first of those with equal texts"
        findings.append(finding("copies", "warning", message, advice, rows))
    crossing = _crossing(copies, splits)
    if crossing:
        message = f"{len(crossing)} rows show a picture that is in train and in test"
        findings.append(
            finding("copies_across", "error", message, "error rates would be too good; --fix helps", crossing)
        )
    if look_alikes:
        rows = sorted(index for group in look_alikes for index in group)
        message = f"{len(look_alikes)} groups of pictures look alike ({len(rows)} rows)"
        advice = "scaled or compressed copies? look at them; nothing is left out for that"
        findings.append(finding("look_alikes", "warning", message, advice, rows))
    crossing = _crossing(look_alikes, splits)
    if crossing:
        message = f"{len(crossing)} rows look like a picture of the other side of the split"
        advice = "if they are copies, error rates are too good: keep them on one side"
        findings.append(finding("look_alikes_across", "warning", message, advice, crossing))
    if repeated:
        rows = sorted(index for group in repeated for index in group)
        message = f"{len(repeated)} texts occur more than once ({len(rows)} rows)"
        findings.append(finding("repeated_texts", "note", message, "fine for short words, odd for long lines", rows))
    crossing = _crossing(_groups(pages), splits)
    if crossing:
        message = f"{len(crossing)} rows are of pages that are in train and in test"
        advice = "split by page: the same hand and paper on both sides makes error rates too good"
        findings.append(finding("pages_across", "error", message, advice, crossing))
    crossing = _crossing(_groups(writers), splits)
    if crossing:
        message = f"{len(crossing)} rows are of writers who are in train and in test"
        advice = "fine for a model of these hands; its error rate says nothing about other hands"
        findings.append(finding("writers_across", "note", message, advice, crossing))
    if all(page is None for page in pages):
        advice = "name a page a row, or lines of one page land on both sides"
        findings.append(finding("no_pages", "note", "no row says which page it is from", advice, []))
    return findings


def check_copied_texts(copies: Sequence[Sequence[int]], texts: Sequence[str], where: Sequence[str]) -> list[Finding]:
    """Rows with one picture and different texts: at least one of them is wrong.

    Args:
        copies: Groups of rows with the same picture, pixel for pixel.
        texts: Texts of all rows.
        where: Names of the rows.
    """
    rows = sorted(index for group in copies if len({clean_text(texts[i]) for i in group}) > 1 for index in group)
    if not rows:
        return []
    message = f"{len(rows)} rows share a picture with a row that has another text"
    advice = "one of the texts is wrong: mend it, then --fix leaves the copy out"
    return [Finding("copies_other_text", "error", message, advice, [where[i] for i in rows], rows)]
