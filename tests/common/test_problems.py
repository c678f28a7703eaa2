"""One list of what can be wrong with a sample."""

import ast
import re

import pytest
from helpers.paths import REPOSITORY

from dsocr.common.errors import UnusableSampleError
from dsocr.common.problems import PROBLEMS
from dsocr.data import BadSamples


def test_no_other_name_is_counted():
    with pytest.raises(KeyError, match="dull"):
        BadSamples("skip").add("dull", "x:1", "a dull line")
    with pytest.raises(KeyError, match="dull"):
        UnusableSampleError("a dull line", "dull")


def test_every_name_is_used_and_the_page_lists_them_all():
    words = set()
    for path in (REPOSITORY / "dsocr").rglob("*.py"):
        if path.name != "problems.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            words |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)} & PROBLEMS.keys()
    assert words == PROBLEMS.keys()
    page = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.M)) == PROBLEMS
