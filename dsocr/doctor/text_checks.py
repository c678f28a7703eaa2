"""Find texts that would mislead the model: mixed scripts, look-alikes, invisible characters, repetitions."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from dsocr.data.texts import name_script
from dsocr.doctor.findings import Finding


# Latin letters, and Cyrillic letters of the same shape.
_LATIN, _CYRILLIC = "ABCEHIKMOPTXacekopxyi", "АВСЕНІКМОРТХасекорхуі"
_TO_CYRILLIC = dict(zip(_LATIN, _CYRILLIC, strict=True))
_TO_LATIN = dict(zip(_CYRILLIC, _LATIN, strict=True))
_WORD = re.compile(r"[^\W\d_]+")
_ALLOWED_CONTROLS = "\n\t"
RARE = 3


def mend_word(word: str) -> str | None:
    """Spell a word of two scripts in one, if its odd letters have look-alikes there; otherwise `None`.

    Example:
        >>> mend_word("дoм"), mend_word("Mосква") == "Москва", mend_word("ДNA")
        ('дом', True, None)
    """
    cyrillic = sum(name_script(letter) == "cyrillic" for letter in word)
    table = _TO_CYRILLIC if 2 * cyrillic >= len(word) else _TO_LATIN
    mended = "".join(table.get(letter, letter) for letter in word)
    return mended if name_script(mended) != "mixed" else None


def mixed_words(text: str) -> list[str]:
    """Words with letters of several scripts."""
    return [word for word in _WORD.findall(text) if name_script(word) == "mixed"]


def has_controls(text: str) -> bool:
    """Whether a text contains control, private-use or unassigned characters, or invisible formatting."""
    return any(unicodedata.category(c) in ("Cc", "Cf", "Co", "Cn") and c not in _ALLOWED_CONTROLS for c in text)


def clean_text(text: str) -> str:
    """Clean a text: NFC, no invisible characters, look-alikes corrected, white space collapsed within lines."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(c for c in text if not has_controls(c))
    text = _WORD.sub(lambda m: (mend_word(m[0]) or m[0]) if name_script(m[0]) == "mixed" else m[0], text)
    return "\n".join(" ".join(line.split()) for line in text.splitlines()).strip()


def count_alphabet(texts: Sequence[str]) -> dict[str, int]:
    """Count each character, the most frequent first."""
    return dict(Counter(character for text in texts for character in text).most_common())


def check_texts(texts: Sequence[str], where: Sequence[str]) -> list[Finding]:
    """Check each text on its own, unchanged from the file."""
    tests: list[tuple[str, str, Callable[[str], bool], str, str]] = [
        (
            "empty_text",
            "error",
            lambda t: not t.strip(),
            "texts are empty",
            "transcribe them, or --fix leaves them out",
        ),
        ("control_characters", "warning", has_controls, "texts hold invisible characters", "--fix takes them away"),
        (
            "not_nfc",
            "note",
            lambda t: unicodedata.normalize("NFC", t) != t,
            "texts are not in the normal form NFC",
            "nothing: they are normalised when they are loaded",
        ),
        (
            "mixed_scripts",
            "warning",
            lambda t: bool(mixed_words(t)),
            "texts have words of two scripts",
            "a Latin e in a Russian word? --fix puts look-alikes right, the rest needs eyes",
        ),
        (
            "odd_spaces",
            "note",
            lambda t: t != "\n".join(" ".join(line.split()) for line in t.splitlines()),
            "texts begin or end with blanks, or hold several in a row",
            "--fix collapses them",
        ),
    ]
    findings = []
    for kind, severity, test, message, advice in tests:
        rows = [index for index, text in enumerate(texts) if test(text)]
        if rows:
            findings.append(Finding(kind, severity, f"{len(rows)} {message}", advice, [where[i] for i in rows], rows))
    rare = {c for c, n in count_alphabet(texts).items() if n < RARE and not c.isspace()}
    rows = [index for index, text in enumerate(texts) if rare & set(text)]
    if rows and len(texts) >= 50:
        shown = " ".join(sorted(rare)[:30])
        message = f"{len(rare)} characters occur less than {RARE} times: {shown}"
        findings.append(
            Finding("rare_characters", "note", message, "a slip, or too few to be learned", _at(where, rows), rows)
        )
    return findings


def _at(where: Sequence[str], rows: Sequence[int]) -> list[str]:
    return [where[index] for index in rows]


def find_repeated(texts: Sequence[str]) -> list[list[int]]:
    """Groups of rows with the same text."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        groups[clean_text(text)].append(index)
    return [rows for text, rows in groups.items() if len(rows) > 1 and text]
