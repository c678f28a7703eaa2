"""What is shown when: print and few letters first, then longer lines, then hands, then real lines, by what is read.

Handwriting from the first step stands on the CTC plateau (4.2) and never leaves it; print leaves it within some ten
thousand lines. Lines that outgrow what is read raise both losses, so every step of growth waits for the loss to fall.
"""

from dataclasses import dataclass, replace


FIRST_LETTERS, MOST_LETTERS = 4, 60
# CTC loss per letter under which lines grow longer, and under which more hands come in. Not lower: the auxiliary reader sees
# three columns, too few to tell the letters that both scripts share.
READ_PRINT, READ_ALL = 1.3, 1.2
# Language loss of print (behind some wrong letters) under which more than a share of FEW_HANDS comes in: the decoder learns
# to follow a line on print.
WRITTEN_PRINT, FEW_HANDS = 0.9, 0.5
HANDS_FROM_LETTERS = 16
MOST_HANDS, MOST_REAL = 0.75, 0.3
HAND_STEP, REAL_STEP = 0.02, 0.01
# CER of rendered hands under which real lines come in, slowly. Before anything is read they teach the language model to
# write French; and no rendered line teaches the eye what ink on old paper looks like: at 221,184 lines rendered hands were
# read at 0.61, and real ones, none of them seen yet, at 0.84 as 86,000 lines before.
READ_HANDS = 0.65
# Chunks without any growth after which it is forced; the first letters take longer.
PATIENCE, FIRST_PATIENCE = 15, 80


@dataclass(frozen=True)
class Curriculum:
    """The state of the curriculum.

    Attributes:
        letters: Longest line, characters.
        hand: Share of rendered hands among rendered lines, in 0..1; the rest is print.
        real: Share of real lines among all lines.
        waited: Chunks since anything grew.
    """

    letters: int = FIRST_LETTERS
    hand: float = 0.0
    real: float = 0.0
    waited: int = 0

    @property
    def random_letters(self) -> float:
        """Share of words that are random letters: many while letters are learned, few when lines are."""
        return max(0.12, 0.45 - 0.33 * (self.letters - FIRST_LETTERS) / 40)

    @property
    def strength(self) -> float:
        """How strongly rendered lines are varied, in 0..1: the first print is clean, on one baseline and at one scale."""
        return min(0.4, max(0.0, 0.03 * (self.letters - 2 * FIRST_LETTERS))) + 0.6 * self.hand / MOST_HANDS

    @property
    def stage(self) -> str:
        """`print`, `length`, `hands` or `real`, for people."""
        if self.real:
            return "real"
        if self.hand:
            return "hands"
        return "length" if self.letters > 2 * FIRST_LETTERS else "print"


def advance(curriculum: Curriculum, losses: dict[str, float], overall: float, hand_cer: float | None) -> Curriculum:
    """The curriculum of the next chunk.

    Args:
        curriculum: The one of the chunk that was trained on.
        losses: `reader_KIND` (CTC loss per letter) and `language_KIND` (language loss) by kind of line, of that chunk.
        overall: CTC loss over all its lines.
        hand_cer: CER of rendered hands at the last evaluation.
    """
    patience = FIRST_PATIENCE if curriculum.letters == FIRST_LETTERS else PATIENCE
    forced = curriculum.waited + 1 >= patience
    letters, hand, real = curriculum.letters, curriculum.hand, curriculum.real
    if letters < MOST_LETTERS and (losses.get("reader_print", overall) < READ_PRINT or forced):
        letters = min(MOST_LETTERS, letters + max(1, letters // 12))
    written = losses.get("language_print", 0.0) < WRITTEN_PRINT
    most_hands = MOST_HANDS if written else max(hand, FEW_HANDS)
    if letters >= HANDS_FROM_LETTERS and hand < most_hands and (overall < READ_ALL or forced):
        hand = round(min(most_hands, hand + HAND_STEP), 4)
    read = hand >= FEW_HANDS and hand_cer is not None and hand_cer < READ_HANDS
    if real < MOST_REAL and (real or read):
        real = round(min(MOST_REAL, real + REAL_STEP), 4)
    grown = (letters, hand, real) != (curriculum.letters, curriculum.hand, curriculum.real)
    return replace(curriculum, letters=letters, hand=hand, real=real, waited=0 if grown else curriculum.waited + 1)
