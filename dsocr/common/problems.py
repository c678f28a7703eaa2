"""The one list of what can be wrong with a sample: used by loading, importing, the doctor and reading.

`BadSamples` and `UnusableSampleError` take no other name, so that every sample left out is counted under one of these.
"""

PROBLEMS = {
    # The file that lists the samples.
    "not_json": "a line that is not a JSON object, or holds a key twice",
    "not_utf8": "a text file that is not UTF-8",
    "wrong_columns": "a row of a table with too few or too many cells, or with a cell that swallows the next rows",
    "missing_column": "a row without image or without text",
    "no_split": "a row that names no split where others do",
    "broken_xml": "a PAGE or ALTO file that is not well-formed",
    "unknown_xml": "an XML file that is neither PAGE nor ALTO",
    "malformed": "an entry of an export without what it needs, or with a value of a wrong type",
    "no_coordinates": "a line of an export without a usable outline",
    "bad_page_size": "an export that declares a page of no size",
    "other_page_size": "a page that is not of the size its lines were drawn on",
    "outside_page": "an outline outside its page",
    "not_annotated": "a task of Label Studio without image or annotation",
    "no_answer": "a chat without an answer of the assistant",
    "not_one_image": "a chat with no image or several",
    # The image.
    "no_image_name": "an entry that names no image",
    "missing": "no such image file",
    "outside_folder": "an image path that leaves the dataset's folder",
    "doubtful_image": "an image found by its name alone that another entry claims too",
    "unreadable": "a damaged or truncated image, or a file of another kind",
    "needs_plugin": "an image whose format needs a package that is not installed",
    "several_pages": "a file of several pages where a row takes one",
    "blank": "an image on which nothing is written",
    "too_small": "an image with a side under 4 pixels",
    "too_large": "an image of more than 100 million pixels",
    "too_elongated": "a strip longer than 100 times its width",
    "no_line": "a page on which no line of text was found",
    "copy": "the same pixels and the same text as an earlier row",
    # The text.
    "not_text": "a text that is no string, or holds half of a character",
    "empty_text": "an empty text",
    "editorial_mark": "an editorial mark, with --marks skip",
    "several_lines": "one outline for several lines of text",
    "reserved_token": "a text with a control token of the model",
    "too_long": "more tokens than the model takes",
}


def check_problem(name: str) -> None:
    """Refuse a problem that is not on the list.

    Raises:
        KeyError: it is not; a mistake of the programmer.
    """
    if name not in PROBLEMS:
        raise KeyError(f"{name!r} is not in dsocr.common.problems.PROBLEMS")
