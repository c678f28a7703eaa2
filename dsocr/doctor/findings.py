"""What the doctor finds."""

from dataclasses import asdict, dataclass, field


SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, wherever it occurs.

    Attributes:
        kind: A short word, for programs.
        severity: `error` (the sample cannot be used, or a figure will be wrong), `warning`, `note`.
        message: What it is, for people.
        advice: What to do.
        where: The rows concerned, as `file:line`.
        rows: Their positions.
    """

    kind: str
    severity: str
    message: str
    advice: str
    where: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def to_dict(self) -> dict:
        return asdict(self)
