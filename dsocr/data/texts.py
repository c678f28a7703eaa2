"""Normalise texts for training and for comparison, and name the script of a text."""

import unicodedata


_SCRIPTS = ("LATIN", "CYRILLIC", "GREEK", "HEBREW", "ARABIC", "CJK", "HIRAGANA", "KATAKANA", "HANGUL", "DEVANAGARI")


def clean_transcription(text: str) -> str:
    """Normalise a text for training: Unicode NFC, no white space at either end. Line breaks stay."""
    return unicodedata.normalize("NFC", text).strip()


def normalize(text: str) -> str:
    """Normalise a text for comparison: NFC, white space runs to one blank. Letters are never mapped (yo stays yo)."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def name_script(text: str) -> str:
    """`"latin"`, `"cyrillic"`, ..., `"mixed"` for letters of several scripts, `"none"` for a text without letters.

    Example:
        >>> name_script("Dear sir"), name_script("Дом 7"), name_script("1905"), name_script("ДNA")
        ('latin', 'cyrillic', 'none', 'mixed')
    """
    found = set()
    for character in text:
        if character.isalpha():
            name = unicodedata.name(character, "OTHER")
            found.add(next((script for script in _SCRIPTS if name.startswith(script)), "OTHER"))
    if not found:
        return "none"
    return found.pop().lower() if len(found) == 1 else "mixed"
