"""The front door: importing handful costs nothing, and every public name is behind it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import handful

HEAVY = ("torch", "transformers", "accelerate", "numpy", "scipy", "sklearn", "pydantic", "rich", "typer")


def imported_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after the statement."""
    code = f"{statement}\nimport sys, json; print(json.dumps([*sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return {name.partition(".")[0] for name in json.loads(result.stdout)}


@pytest.mark.parametrize(
    "statement",
    ["import handful", "import handful; handful.Task, handful.ConfigError, handful.__version__, dir(handful)"],
)
def test_importing_handful_imports_nothing_heavy(statement: str):
    assert imported_by(statement).isdisjoint(HEAVY)


@pytest.mark.parametrize("name", handful.__all__)
def test_every_public_name_is_there(name: str):
    assert getattr(handful, name) is not None
    assert name in dir(handful)


def test_type_checkers_and_interpreters_see_the_same_names():
    tree = ast.parse(Path(handful.__file__).read_text(encoding="utf-8"))
    checked = {
        alias.name: node.module
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert checked == handful._HOME_OF
    assert {*checked, "__version__"} == set(handful.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'handful' has no attribute 'prefix_subspac'"):
        _ = handful.prefix_subspac


def test_the_version_is_the_installed_one():
    assert handful.__version__ == version("handful")
