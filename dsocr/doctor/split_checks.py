"""Find rows that must not be on both sides of a split."""

from collections import defaultdict
from collections.abc import Sequence

from dsocr.doctor.findings import Finding


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
    repeated: Sequence[Sequence[int]],
    where: Sequence[str],
) -> list[Finding]:
    """Check for copies, and for pages, writers and texts on both sides.

    Args:
        splits: Split of every row; `None` when the source has none.
        pages: Page of every row; `None` if unknown.
        writers: Writer of every row; `None` if unknown.
        copies: Groups of rows with the same picture.
        repeated: Groups of rows with the same text.
        where: Names of the rows.
    """

    def finding(kind: str, severity: str, message: str, advice: str, rows: list[int]) -> Finding:
        return Finding(kind, severity, message, advice, [where[i] for i in rows], rows)

    findings = []
    if copies:
        rows = sorted(index for group in copies for index in group)
        message = f"{len(copies)} pictures are there more than once ({len(rows)} rows)"
        findings.append(finding("copies", "warning", message, "--fix keeps the first of each", rows))
    crossing = _crossing(copies, splits)
    if crossing:
        message = f"{len(crossing)} rows show a picture that is in train and in test"
        findings.append(
            finding("copies_across", "error", message, "error rates would be too good; --fix helps", crossing)
        )
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
