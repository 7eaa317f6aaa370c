"""Diffs of what an agent says that it wrote."""

from __future__ import annotations

import difflib

from hypothesis import given
from hypothesis import strategies as st

from tracebridge.agents._diffs import diff_lines

TEXTS = st.lists(st.text(alphabet="ab\n\r \x0c\u2028", max_size=6)).map("\n".join)


@given(old=st.one_of(st.just(""), TEXTS), new=TEXTS)
def test_a_new_file_is_told_as_any_other_change(old, new):
    """What is written without a comparison is what the comparison would have given."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="")
    assert diff_lines(old, new) == list(lines)[2:]
