"""The rows of families: complete, used, and the only place that names a family."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

import handful
from handful.backbone.families import ROWS, Family, family_of
from handful.backbone.tiny import TINY_FAMILIES, tiny_config

SOURCES = {
    path: path.read_text(encoding="utf-8")
    for path in Path(handful.__file__).parent.rglob("*.py")
    if path.name != "families.py"
}


@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_every_tiny_family_has_a_row_of_its_own_type(name):
    row = family_of(tiny_config(name).model_type)
    assert row in ROWS and row.tiny_name == name and row.tiny


def test_no_two_rows_are_of_one_family():
    assert len({row.model_type for row in ROWS}) == len({row.tiny_name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("name", [field.name for field in fields(Family)])
def test_every_field_is_read_by_another_module_and_set_by_a_row(name):
    assert any(re.search(rf"\.{name}\b", text) for text in SOURCES.values()), f"nothing reads Family.{name}"
    assert len({repr(getattr(row, name)) for row in ROWS}) > 1, f"Family.{name} is the same in every row"


def test_no_other_module_asks_for_a_family_by_its_name():
    names = "|".join(re.escape(row.model_type) for row in ROWS)
    asked = re.compile(rf"""(?:family|model_type)\s*(?:==|!=|(?:not )?in)\s*[\[({{]*["'](?:{names})["']""")
    found = [f"{path.name}: {match[0]}" for path, text in SOURCES.items() for match in asked.finditer(text)]
    assert not found, f"ask family_of(…) instead: {found}"


def test_a_family_without_a_row_supports_nothing():
    row = family_of("some-new-model")
    defaults = Family("some-new-model")
    assert row == defaults and not (row.blocks or row.positions or row.stock_prefix or row.packs or row.mean_head)
