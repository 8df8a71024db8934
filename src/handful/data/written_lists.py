"""Lists that were written out as text: by JSON, or by Python's or numpy's `repr`, as `DataFrame.to_csv` does."""

from __future__ import annotations

import ast
import json
import re
from contextlib import suppress
from typing import Any

_TEXT = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_ATOM = re.compile(rf"({_TEXT}|[\w.+-]+)(\s+(?=['\"\w.+-]))?", re.DOTALL)
"""A text or a number, and the white space behind it where another one follows without a comma."""

_OPENING = re.compile(r"\s*(?:(?:np\.|numpy\.)?(?:array|set|frozenset|list|tuple)\s*\(|[\[({])")
_CONTAINERS = ("array", "set", "frozenset", "list", "tuple")
_SCALARS = re.compile(r"(?:str|bool|int|uint|float)(?:_|\d+)?")
"""Names that numpy's scalars are written with: `np.str_('a')`, `np.int64(3)`."""


def read_list(text: str) -> list[Any] | None:
    """The list, tuple or set that a text holds; None where it holds none. Nothing in it is run.

    Read are JSON (`["a", "b"]`), Python (`['a', 'b']`, `('a', 'b')`, `{'a', 'b'}`, `set()`) and numpy (`['a' 'b']`,
    `array(['a', 'b'], dtype=object)`, `[np.str_('a')]`). Names in brackets without quotes (`[a, b]`) are no list.
    """
    if not _OPENING.match(text):
        return None
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
        return found if isinstance(found, list) else None
    # numpy puts no commas between elements, and Python would join the texts 'a' 'b' to 'ab'
    with_commas = _ATOM.sub(lambda found: f"{found[1]}," if found[2] else found[1], text.strip())
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        found = _value(ast.parse(with_commas, mode="eval").body)
        return found if isinstance(found, list) else None
    return None


def _value(node: ast.AST) -> Any:
    """The value of a literal, or of a container or scalar of Python or numpy. Raises: ValueError for anything else."""
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return [_value(part) for part in node.elts]
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id == "nan":
        return None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return ast.literal_eval(node)
    if isinstance(node, ast.Call) and len(node.args) <= 1:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in _CONTAINERS:
            found = _value(node.args[0]) if node.args else []
            if isinstance(found, list):
                return found
        elif _SCALARS.fullmatch(name) and node.args:
            return _value(node.args[0])
    raise ValueError("not a literal")
