"""Texts of rendered lines: words of four languages by frequency, names of numbers and dates, random letters, signs."""

import random
from functools import cache
from importlib.resources import files

from dsocr.data.synthetic import tells_script


LANGUAGES = ("en", "fr", "de", "ru")
SHARES = (0.35, 0.2, 0.18, 0.27)
LETTERS = {
    "en": "abcdefghijklmnopqrstuvwxyz",
    "fr": "abcdefghijklmnopqrstuvwxyzàâçèéêëîïôœùû",
    "de": "abcdefghijklmnopqrstuvwxyzäöüß",
    "ru": "абвгдеёжзийклмнопрстуфхцчшщъыьэюя",
}
ENDINGS = (",",) * 8 + (".",) * 8 + (";", ":", "!", "?", "-", "...")
ELISIONS = ("l'", "d'", "qu'", "n'", "s'", "j'", "c'")


@cache
def load_ranked_words(language: str) -> tuple[str, ...]:
    """The word list of a language, the most frequent word first."""
    return tuple((files("dsocr.lab.base") / "words" / f"{language}.txt").read_text(encoding="utf-8").split())


def _number(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.3:
        return str(rng.randint(1650, 2025))
    if kind < 0.4:
        return f"{rng.randint(1, 31)}.{rng.randint(1, 12)}.{rng.choice((rng.randint(0, 99), rng.randint(1700, 2025)))}"
    if kind < 0.5:
        return f"{rng.randint(1, 9999)}{rng.choice('.,/:')}{rng.randint(0, 99):02d}"
    return str(rng.randrange(10 ** rng.randint(1, 5)))


def _word(rng: random.Random, language: str, random_letters: float) -> str:
    kind = rng.random()
    if kind < random_letters:
        # So that reading cannot be replaced by guessing words.
        word = "".join(rng.choices(LETTERS[language], k=rng.randint(1, 8)))
        return word.upper() if rng.random() < 0.15 and "ß" not in word else word
    if kind < random_letters + 0.07:
        return _number(rng)
    words = load_ranked_words(language)
    # Uniform in the logarithm of the rank: near enough to how often words occur.
    word = words[int(len(words) ** rng.random()) - 1]
    if language == "fr" and word[0] in "aeéèêiouh" and rng.random() < 0.25:
        word = rng.choice(ELISIONS) + word
    capital = 0.35 if language == "de" and len(word) > 4 else 0.13
    draw = rng.random()
    if draw < 0.015 and "ß" not in word:
        return word.upper()
    return word[0].upper() + word[1:] if draw < capital else word


def _sign(rng: random.Random, word: str, share: float) -> str:
    draw = rng.random()
    if draw > share:
        return word
    if draw < 0.06 * share:
        return f"({word})"
    if draw < 0.12 * share:
        return rng.choice(('"{}"', "«{}»", "„{}“")).format(word)
    if draw < 0.16 * share:
        return word + rng.choice((" -", " –", " &", " =", " +", " №", "°", "/"))
    return word + rng.choice(ENDINGS)


def random_text(rng: random.Random, language: str, min_length: int, max_length: int, random_letters: float) -> str:
    """A line of text.

    Args:
        rng: Source of every choice.
        language: One of `LANGUAGES`.
        min_length: Fewest characters.
        max_length: Most characters.
        random_letters: Share of words that are random letters, in 0..1.

    Returns:
        Text without outer spaces; when it has letters, one at least belongs to its script alone.
    """
    while True:
        length = rng.randint(min_length, max_length)
        words, size = [], -1
        while size < length:
            words.append(_sign(rng, _word(rng, language, random_letters), 0.16))
            size += len(words[-1]) + 1
        # A whole last word where that leaves enough, a cut one now and then, as at a line's end.
        text = " ".join(words)[:length]
        if size > length and len(words) > 1 and rng.random() < 0.7:
            text = " ".join(words[:-1])[:length]
        text = text.strip()
        if len(text) >= min_length and tells_script(text):
            return text
