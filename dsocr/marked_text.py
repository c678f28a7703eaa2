"""Text that a program keeps up to date inside a file that people write."""

from pathlib import Path


def replace_between(path: str | Path, mark: str, text: str) -> None:
    """Put a text between `<!-- mark -->` and `<!-- end of mark -->`.

    Raises:
        ValueError: when the marks are not there.
    """
    path = Path(path)
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    content = path.read_text(encoding="utf-8")
    if begin not in content or end not in content:
        raise ValueError(f"{path} has no {begin} ... {end}.")
    before, rest = content.split(begin, 1)
    after = rest.split(end, 1)[1]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
