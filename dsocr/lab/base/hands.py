"""Fonts as hands: where they lie, what letters they have, which are trained on and which stand for an unseen hand."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from PIL import ImageFont

from dsocr.common.files import load_json
from dsocr.data.synthetic import FONT_FOLDER, HANDWRITING_FONTS, HELD_OUT_FONTS, PRINT_FONTS
from dsocr.lab.base.texts import LETTERS


# Drawn for a code point that no font has.
_NOWHERE = "\U0010fffe"
BASIC = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;!?-()'"


@dataclass(frozen=True)
class Hand:
    """One font.

    Attributes:
        name: Its name.
        path: Its file, TTF or WOFF2.
        kind: `print`, `hand` or `unseen`.
    """

    name: str
    path: str
    kind: str


@cache
def load_hand(hand: Hand, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in pixels."""
    return ImageFont.truetype(hand.path, size, layout_engine=ImageFont.Layout.BASIC)


@cache
def has_letter(hand: Hand, letter: str) -> bool:
    """Whether a font draws a character, and not the box that stands for an absent one.

    A lower-case letter that looks like its capital counts as absent: its text could not be told.
    """
    if letter == " ":
        return True
    font = load_hand(hand, 32)
    drawn, absent = bytes(font.getmask(letter)), bytes(font.getmask(_NOWHERE))
    if drawn == absent or not any(drawn):
        return False
    upper = letter.upper()
    return not (letter in "abdeghnqrtабеё" and upper != letter and drawn == bytes(font.getmask(upper)))


@cache
def hand_languages(hand: Hand) -> tuple[str, ...]:
    """The languages whose letters a font has, all of them."""
    if not all(has_letter(hand, letter) for letter in BASIC):
        return ()
    languages = []
    for language, letters in LETTERS.items():
        if all(has_letter(hand, letter) and has_letter(hand, letter.upper()[0]) for letter in letters if letter != "ß"):
            languages.append(language)
    return tuple(languages)


def find_hands(folder: str | Path | None) -> tuple[Hand, ...]:
    """The fonts of the package and those of a folder, each with its kind; fonts without any language are left out.

    Args:
        folder: Folder of `<font>-latin-400-normal.woff2`; `None` takes the package's fonts alone.

    Raises:
        FileNotFoundError: when the folder holds no font.
    """
    shipped = {"print": PRINT_FONTS, "hand": HANDWRITING_FONTS, "unseen": HELD_OUT_FONTS}
    hands = [Hand(name, str(FONT_FOLDER / f"{name}.ttf"), kind) for kind, names in shipped.items() for name in names]
    if folder is not None:
        paths = sorted(Path(folder).glob("*.woff2"))
        if not paths:
            raise FileNotFoundError(f"--fonts {folder}: there is no *.woff2 in that folder.")
        unseen = set(load_held_out()["fonts"])
        for path in paths:
            name = path.name.split("-latin-")[0]
            hands.append(Hand(name, str(path), "unseen" if name in unseen else "hand"))
    return tuple(hand for hand in hands if hand_languages(hand))


@cache
def load_held_out() -> dict:
    """Load `held_out.json`: fonts and writers that are never trained on."""
    return load_json(str(files("dsocr.lab.base") / "held_out.json"))
