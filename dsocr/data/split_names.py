"""The words for a split: `train`, `validation` and `test`, and what people write for them."""

from collections.abc import Iterable


TRAIN, VALIDATION, TEST = "train", "validation", "test"
_WORDS = {
    TRAIN: ("train", "training"),
    VALIDATION: ("validation", "valid", "val", "dev"),
    TEST: ("test", "testing", "holdout", "held_out", "eval", "evaluation"),
}
SPLITS = tuple(_WORDS)


def folder_names(split: str) -> tuple[str, ...]:
    """Names of the sub-folders that hold a split; a split with a name of its own has one folder of that name."""
    return _WORDS.get(split, (split,))


def name_split(word: str) -> str:
    """The split that a word means, `train`, `validation` or `test`; an unknown word stays as it is.

    Example:
        >>> name_split(" TEST "), name_split("dev"), name_split("fold1")
        ('test', 'validation', 'fold1')
    """
    simple = word.strip().casefold()
    return next((split for split, words in _WORDS.items() if simple in words), word.strip())


def find_split(wanted: str, present: Iterable[str]) -> str | None:
    """The split to take for one that is asked for: itself, or `validation` for `test` where there is no `test`."""
    wanted, names = name_split(wanted), set(present)
    if wanted in names:
        return wanted
    return VALIDATION if wanted == TEST and VALIDATION in names else None
