"""The type of a finding."""

from dataclasses import asdict, dataclass, field


SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One kind of fault, with all its places.

    Attributes:
        kind: A short word, for programs.
        severity: `error` (the sample cannot be used, or a figure will be wrong), `warning`, `note`.
        message: Description, for people.
        advice: Suggested remedy.
        where: The affected rows, as `file:line`.
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
