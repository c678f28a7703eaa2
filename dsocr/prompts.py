"""Prompts: plain text around exactly one image, no roles (upstream's `plain` conversation template)."""

IMAGE_TOKEN = "<image>"
DEFAULT_PROMPTS = {
    "v1": f"{IMAGE_TOKEN}\nFree OCR.",
    "v2": f"{IMAGE_TOKEN}\nFree OCR.",
    "unlimited": f"{IMAGE_TOKEN}document parsing.",
}


def split_prompt(prompt: str) -> tuple[str, str]:
    """The text before and after the image; surrounding white space is stripped, as upstream does.

    Raises:
        ValueError: when the prompt does not hold `<image>` exactly once.

    Example:
        >>> split_prompt("<image>\\nFree OCR. ")
        ('', '\\nFree OCR.')
    """
    parts = prompt.strip().split(IMAGE_TOKEN)
    if len(parts) != 2:
        raise ValueError(
            f"prompt={prompt!r} must hold {IMAGE_TOKEN} exactly once, for example {DEFAULT_PROMPTS['v1']!r}."
        )
    return parts[0], parts[1]
