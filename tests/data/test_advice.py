"""Advice names arguments where there is no command line."""

import pytest

from handful.data.advice import in_python


@pytest.mark.parametrize(
    ("advice", "expected"),
    [
        ("--label-separator pipe; or --kind x", 'columns={"label_separator": "pipe"}; or columns={"kind": "x"}'),
        ("--label-separator '&'", 'columns={"label_separator": "&"}'),
        ("all, --label a,b --kind multilabel", 'all, columns={"label": "a,b", "kind": "multilabel"}'),
        ("--label 'very sad,joy'; end", 'columns={"label": "very sad,joy"}; end'),
        ("--text a|b, or more", 'columns={"text": "a"}, or more'),
        ("leave --text-pair out", "leave text_pair out"),
    ],
)  # fmt: skip
def test_options_become_arguments(advice, expected):
    assert in_python(advice) == expected
