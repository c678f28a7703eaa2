"""Editorial marks: additions of the transcriber that are not on the paper."""

import re


POLICIES = ("keep", "strip", "drop")
# An uncertain or illegible place in any bracket: [?], [...], [illegible], [unclear: word], [нрзб.],
# <unclear>word</unclear>.
_WORDS = r"\?+|\.{2,}|…|illegible|unleserlich|unclear|gap|sic|нрзб\.?|неразб\.?"
_EMPTY = re.compile(rf"[\[\(<{{⟨]\s*(?:{_WORDS}|!)\s*/?\s*[\]\)>}}⟩]", re.IGNORECASE)
_LABELLED = re.compile(rf"[\[⟨]\s*(?:{_WORDS})\s*:\s*([^\]⟩]*)[\]⟩]", re.IGNORECASE)
_TAG = re.compile(r"</?(?:unclear|gap|sic|corr|add|del|supplied|abbr|ex|hi|choice|orig|reg)\b[^<>]*/?>", re.IGNORECASE)
# Line-end hyphens required by transcription guidelines; a plain hyphen is on the paper.
_HYPHENS = re.compile(r"[¬⸗][^\S\n]*$", re.MULTILINE)
_DOUBTFUL = re.compile(r"(?<=\w)\s?\[\?\]")


def has_marks(text: str) -> bool:
    """Whether a text contains an editorial mark.

    Example:
        >>> has_marks("Dear [illegible]"), has_marks("a list [1] (sic transit)")
        (True, False)
    """
    return any(pattern.search(text) for pattern in (_EMPTY, _LABELLED, _TAG, _HYPHENS))


def apply_policy(text: str, policy: str) -> str | None:
    """Apply a policy to the editorial marks of a text.

    Args:
        text: A transcription.
        policy: `"keep"` changes nothing; `"strip"` removes marks and keeps the words inside them; `"drop"` rejects a
            text with any mark.

    Returns:
        The text; `None` when it is rejected.

    Raises:
        ValueError: for another policy.

    Example:
        >>> apply_policy("Dear <unclear>Sir</unclear> [?] won¬", "strip")
        'Dear Sir won'
    """
    if policy not in POLICIES:
        raise ValueError(f"--marks {policy}: not one of {', '.join(POLICIES)}.")
    if policy == "keep" or not has_marks(text):
        return text
    if policy == "drop":
        return None
    text = _DOUBTFUL.sub("", text)
    for pattern, replacement in ((_LABELLED, r"\1"), (_EMPTY, ""), (_TAG, ""), (_HYPHENS, "")):
        text = pattern.sub(replacement, text)
    # A page has one line of text per line.
    return "\n".join(" ".join(line.split()) for line in text.split("\n"))
