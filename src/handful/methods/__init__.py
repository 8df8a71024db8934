"""Methods by name: ours, and those of other packages by the entry-point group `handful.methods`.

Importing this package imports no method.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from typing import TYPE_CHECKING

from handful.errors import ConfigError, in_words, nearest

if TYPE_CHECKING:
    from handful.methods.base import AbstractMethod

METHODS: dict[str, str] = {
    "head": "handful.methods.head:Head",
    "prefix": "handful.methods.prefix:Prefix",
    "prefix-subspace": "handful.methods.prefix_subspace:PrefixSubspace",
    "fine-gates": "handful.methods.gates.fine_gates:FineGates",
    "prune": "handful.methods.gates.prune:Prune",
    "prompt": "handful.methods.prompt:Prompt",
    "scaled-prompt": "handful.methods.scaled_prompt:ScaledPrompt",
    "poly": "handful.methods.poly.method:Poly",
    "full": "handful.methods.full:Full",
    "bias": "handful.methods.bias:Bias",
    "lora": "handful.methods.peft_bridge:LoRA",
    "ia3": "handful.methods.peft_bridge:IA3",
    "prompt-tuning": "handful.methods.peft_bridge:PromptTuning",
    "peft": "handful.methods.peft_bridge:Peft",
    "setfit": "handful.methods.setfit_bridge:SetFit",
}
"""Our methods: "module:class" by name."""

GROUP = "handful.methods"
"""Entry-point group in which other packages name theirs: `low-rank = "acme.methods:LowRank"`."""


@cache
def _plugins(path: tuple[str, ...]) -> dict[str, list[EntryPoint]]:
    """Entry points of other packages by name, as they lie on this `sys.path`; two of one name stay two."""
    del path
    found: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for point in entry_points(group=GROUP):  # the same package can be found in two places of the path
        found.setdefault(point.name, {})[package_of(point), point.value] = point
    return {name: list(points.values()) for name, points in sorted(found.items())}


def plugins() -> dict[str, list[EntryPoint]]:
    """Entry points of other packages' methods by name; nothing is imported."""
    return _plugins(tuple(sys.path))


def package_of(point: EntryPoint) -> str:
    """The package that an entry point comes from, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "a package without a name"


def package_at(path: str) -> str | None:
    """The installed package with its version that a class of another package comes from; None where it is of none."""
    for point in (point for points in plugins().values() for point in points):
        if point.value.replace(" ", "") == path and point.dist:
            return package_of(point)
    names = packages_distributions().get(path.partition(":")[0].partition(".")[0], ())
    return f"{names[0]} {version(names[0])}" if names else None


def method_names() -> list[str]:
    """Every method's name, ours first; nothing is imported."""
    return list({**METHODS, **plugins()})


def is_method(name: str) -> bool:
    """Whether there is a method of that name; whether it can be imported is another question."""
    return name in METHODS or name in plugins()


def clash(name: str) -> str | None:
    """Which packages have a method of this name, where there are several."""
    found = [f"{package_of(point)} ({point.value})" for point in plugins().get(name, ())]
    found = [*([f"handful ({METHODS[name]})"] if name in METHODS else []), *found]
    return f"{len(found)} packages have a method {name!r}: {', '.join(found)}" if len(found) > 1 else None


def method_class(name: str) -> type[AbstractMethod]:
    """The method of that name.

    Raises: ConfigError naming the nearest one for an unknown name, both packages where two have that name, and the
    package where it cannot be imported or is no method.
    """
    if several := clash(name):
        raise ConfigError(several, "uninstall all but one, or pass an object in Python: fit(method=TheClass())")
    if name in METHODS:
        return own_method_class(name)
    if name not in plugins():
        raise ConfigError(f"unknown method {name!r}", nearest(name, method_names()))
    (point,) = plugins()[name]
    where = f"method {name!r} of the package {package_of(point)}"
    try:
        cls = point.load()
    except Exception as error:  # code of another package can fail in any way
        raise ConfigError(
            f"{where} cannot be imported ({point.value}): {in_words(error)}",
            "repair or uninstall that package; all other methods work",
        ) from error
    from handful.methods.base import check_class

    check_class(cls, where)
    if cls.name != name:
        raise ConfigError(
            f"{where}: expected a class with name = {name!r}, found {cls.name!r} ({point.value})",
            "its entry point and its class must have the same name; tell its authors",
        )
    return cls


def own_method_class(name: str) -> type[AbstractMethod]:
    """The method of ours with that name, whatever other packages have. Raises: ConfigError naming the nearest one."""
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}", nearest(name, METHODS))
    return import_class(METHODS[name])


def import_class(path: str) -> type[AbstractMethod]:
    """The class at "module:class". Raises: ImportError or AttributeError, and whatever that module raises."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)
