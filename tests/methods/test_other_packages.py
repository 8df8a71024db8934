"""Methods of other packages: found by entry points or passed as objects, refused where they are none."""

import importlib
import linecache
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest

import handful
from handful.api import FittedModel
from handful.data.task import Example, Task
from handful.errors import ConfigError, RunError
from handful.export.plan import FORMATS
from handful.methods import METHODS, is_method, method_class, method_names, package_at, package_of, plugins
from handful.methods.base import AbstractMethod, Preset, setting
from handful.methods.head import Head
from handful.methods.poly.method import Poly
from handful.methods.prefix import Prefix
from handful.methods.prefix_subspace import PrefixSubspace
from handful.runs.spec import resolve
from handful.studies.recipe import Recipe
from handful.testing import check_method

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "method.md"
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
SHIFT = (
    EXAMPLE
    + """

class NoMethod:
    name = "no-method"


class Unfinished(AbstractMethod):
    name = "unfinished"
"""
)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install(package, entry_points, module=source)`: a package on the path, as pip would have put it there."""
    site = tmp_path / "site-packages"
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))

    def put(package: str, points: dict[str, str], version: str = "1.0", **modules: str) -> None:
        site.mkdir(exist_ok=True)
        info = site / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text("[handful.methods]\n" + "\n".join(lines) + "\n")
        (info / "top_level.txt").write_text("\n".join(modules))
        for module, source in modules.items():
            (site / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(site / f"seen-{len(list(site.iterdir()))}"))  # what is on a path is read once

    yield put
    for name in set(sys.modules) - before:
        if str(site) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def shift(install):
    install("acme-shift", {"shift": "acme_shift:Shift"}, acme_shift=SHIFT)


def letters() -> Task:
    texts = [f"{'aaaa bbbb' if i % 2 else 'zz 99 zz'} {i}" for i in range(24)]
    pool = tuple(Example(text, label=i % 2) for i, text in enumerate(texts))
    return Task("letters", "classification", ("ab", "z9"), "accuracy", pool)


def fitted(folder, method: Any, **options: Any) -> FittedModel:
    settings = {"max_length": 24, "epochs": 2, **options.pop("settings", {})}
    return handful.fit(letters(), method=method, model=str(folder), settings=settings, **options)


def test_an_object_a_class_and_a_name_are_the_same_run(tiny_folder, tmp_path):
    named = fitted(tiny_folder, "prefix", prefix_length=3, output=tmp_path)
    given = fitted(tiny_folder, Prefix(prefix_length=3), output=tmp_path)
    assert given.run.folder == named.run.folder and given.run.key == named.run.key
    assert "method_path" not in given.run.record["spec"] and given.run.record["method_package"] is None
    assert resolve(Prefix, overrides={"prefix_length": 3}) == resolve(Prefix(prefix_length=3))


def test_settings_of_the_method_beside_an_object_are_refused():
    with pytest.raises(ConfigError) as caught:
        resolve(Prefix(prefix_length=3), overrides={"prefix_length": 4, "method.init_std": 2.0, "epochs": 3})
    assert "2 wrong settings" in str(caught.value)
    assert (
        "method.prefix_length: expected no setting of the method beside an object; put it into Prefix(prefix_length=4)"
        in str(caught.value)
    )
    assert resolve(Prefix(prefix_length=3), overrides={"epochs": 3}).training.epochs == 3


def test_a_preset_adds_to_an_object_its_settings_of_training_alone():
    with pytest.raises(ConfigError, match=r"'paper' is for other settings than the object's; make it PrefixSubspace\("):
        resolve(PrefixSubspace(), preset="paper")
    paper = PrefixSubspace(**PrefixSubspace.presets["paper"].settings)
    assert resolve(paper, preset="paper") == resolve("prefix-subspace", preset="paper")


def test_an_inventory_refuses_an_object(tmp_path, monkeypatch):
    monkeypatch.setattr("handful.runs.start.read_start", lambda folder: object())
    monkeypatch.setattr("handful.runs.inventory.inherited", lambda start: {"method.num_skills": 2})
    with pytest.raises(ConfigError, match="method: an inventory is of the method 'poly', found an object, whose sizes"):
        handful.fit(letters(), method=Poly(), start=tmp_path)


def test_what_is_neither_name_nor_method_is_refused():
    with pytest.raises(ConfigError, match="method: expected a name, found 3"):
        resolve(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="method: expected a name, found <class 'dict'>"):
        resolve(dict)  # pyright: ignore[reportArgumentType]


def test_an_object_whose_class_cannot_be_found_again_is_refused_before_training(tiny_folder):
    @dataclass(frozen=True)
    class Local(AbstractMethod):
        name: ClassVar[str] = "local"
        summary: ClassVar[str] = "a test"
        source: ClassVar[str] = "a test"
        presets: ClassVar = {"default": Preset("a test")}

        def attach(self, backbone, task, *, generator):
            raise AssertionError("was attached")

    with pytest.raises(ConfigError, match=r"expected a class at the top of a module, found .*<locals>.Local"):
        fitted(tiny_folder, Local())


@dataclass(frozen=True)
class Odd(AbstractMethod):
    """Its settings survive no JSON."""

    name: ClassVar[str] = "odd"
    summary: ClassVar[str] = "a test"
    source: ClassVar[str] = "a test"
    presets: ClassVar = {"default": Preset("a test")}

    anything: Annotated[Any, setting("anything")] = None

    def attach(self, backbone, task, *, generator):
        raise AssertionError("was attached")


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({1, 2}, "its settings cannot be saved as JSON: TypeError: Object of type set is not JSON serializable"),
        (float("nan"), "method.anything|cannot be saved as JSON"),
        ((1, 2), "its settings, saved as JSON, make another method"),
    ],
)
def test_an_object_whose_settings_cannot_be_saved_is_refused_before_training(tiny_folder, value, complaint):
    with pytest.raises(ConfigError, match=complaint):
        fitted(tiny_folder, Odd(value))


def test_a_method_of_another_package_is_listed_resolved_and_studied(shift):
    assert "shift" in method_names() and method_names()[: len(METHODS)] == list(METHODS)
    assert method_class("shift").__module__ == "acme_shift"
    spec = resolve("shift", preset="wide", overrides={"shots": 16})
    assert spec.method.settings() == {"spread": 0.5} and spec.training.epochs == 2
    assert spec.resolved()["method_path"] == "acme_shift:Shift"
    recipe = {"name": "r", "model": "m", "tasks": ["t"], "methods": ["head", {"method": "shift", "set": {"spread": 1}}]}
    assert Recipe.from_dict({**recipe, "shots": [16], "seeds": 1}).methods[1].method == "shift"


def test_a_method_of_another_package_has_a_whole_life(shift):
    check_method(method_class("shift")(spread=0.2))


def test_what_says_nothing_of_exports_cannot_be_exported(shift, tiny_folder, tmp_path):
    model = fitted(tiny_folder, "shift")
    for format in FORMATS:
        with pytest.raises(ConfigError, match="method 'shift' does not say that it can be exported"):
            model.export(tmp_path / "out", format)
    with pytest.raises(ConfigError, match="cannot export as a PEFT adapter: method 'shift' does not say"):
        model.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_broken_package_is_named_and_disturbs_nobody(install):
    install("broken", {"broken": "broken_module:Broken"}, "0.3", broken_module="raise OSError('no licence')")
    with pytest.raises(ConfigError) as caught:
        method_class("broken")
    assert str(caught.value).startswith(
        "method 'broken' of the package broken 0.3 cannot be imported (broken_module:Broken): OSError: no licence"
    )
    assert is_method("broken") and method_class("head") is Head


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("acme_shift:NoMethod", "expected a class derived from handful.methods.base.AbstractMethod, found <class"),
        ("acme_shift:SHIFT", "cannot be imported .*has no attribute 'SHIFT'"),
        ("acme_shift:Unfinished", "expected all abstract methods implemented, found none of attach"),
        ("acme_shift:Unfinished", r"expected the decorator @dataclass\(frozen=True\), found none"),
        ("acme_shift:Unfinished", "expected a class attribute 'summary' with a text, found None"),
        ("acme_shift:Unfinished", "expected a class attribute 'presets' with a Preset 'default', found None"),
        ("acme_shift:Shift", "expected a class with name = 'wrong', found 'shift'"),
    ],
)
def test_an_entry_point_that_is_no_method_is_refused(install, value, complaint):
    install("wrong", {"wrong": value}, acme_shift=SHIFT)
    with pytest.raises(ConfigError, match=f"(?s)method 'wrong' of the package wrong 1.0.*{complaint}"):
        method_class("wrong")


def test_a_type_that_no_setting_can_have_is_refused(install):
    source = SHIFT.replace("spread: Annotated[float, setting(", "spread: Annotated[torch.Generator, setting(")
    install("odd", {"shift": "acme_shift:Shift"}, acme_shift=source.replace(", ge=0)] = 0.1", ")] = None"))
    with pytest.raises(ConfigError, match=r"(?s)the type of a setting cannot be checked.*Generator"):
        method_class("shift")


def test_two_methods_of_one_name_are_an_error_that_names_both_packages(install, shift):
    install("other", {"shift": "other_shift:Shift", "prefix": "other_shift:Shift"}, "2.1", other_shift=SHIFT)
    with pytest.raises(ConfigError) as caught:
        method_class("shift")
    assert caught.value.message == (
        "2 packages have a method 'shift': acme-shift 1.0 (acme_shift:Shift), other 2.1 (other_shift:Shift)"
    )
    with pytest.raises(ConfigError, match=r"a method 'prefix': handful \(handful.methods.prefix:Prefix\), other"):
        method_class("prefix")
    assert method_class("prefix-subspace") is PrefixSubspace  # nobody asked for the others


def test_a_run_says_which_package_is_missing(tiny_folder, tmp_path, shift, monkeypatch):
    run = fitted(tiny_folder, "shift", output=tmp_path / "runs").run
    assert run.record["spec"]["method_path"] == "acme_shift:Shift"
    assert run.record["method_package"] == "acme-shift 1.0"
    assert handful.load(run.folder).spec.method.name == "shift"
    monkeypatch.setattr(sys, "path", [place for place in sys.path if "site-packages" not in place or "lib" in place])
    monkeypatch.delitem(sys.modules, "acme_shift")
    with pytest.raises(RunError) as caught:
        handful.load(run.folder)
    assert str(caught.value) == (
        "this run is of the method 'shift' of the package acme-shift 1.0 (acme_shift:Shift), which cannot be imported: "
        "ModuleNotFoundError: No module named 'acme_shift'\n\n"
        "hint: install it: pip install acme-shift==1.0, then try again"
    )


def test_the_class_of_a_script_is_noted_in_its_run(tiny_folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        SHIFT
        + textwrap.dedent(f"""
        import handful
        from handful.data.task import Example, Task
        pool = tuple(Example("aaaa" * (1 + i % 2) + str(i), label=i % 2) for i in range(12))
        task = Task("letters", "classification", ("a", "b"), "accuracy", pool)
        run = handful.fit(task, method=Shift(0.2), model={str(tiny_folder)!r}, output={str(tmp_path / "runs")!r}).run
        print(handful.load(run.folder).spec.method.spread, run.record["spec"]["method_path"], run.record["notes"])
        """)
    )
    found = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    assert found.startswith("0.2 __main__:Shift ['the class of the method (__main__:Shift) belongs to this script")


def test_what_pip_has_installed_is_found(tmp_path, monkeypatch):
    if not (find_spec("pip") and find_spec("setuptools")):  # imported here, setuptools quarrels with distutils
        pytest.skip("needs pip and setuptools")
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    (source / "acme_piped.py").write_text(SHIFT)
    (source / "pyproject.toml").write_text(
        textwrap.dedent("""
        [build-system]
        requires = ["setuptools"]
        build-backend = "setuptools.build_meta"
        [project]
        name = "acme-piped"
        version = "1.2"
        [project.entry-points."handful.methods"]
        shift = "acme_piped:Shift"
        [tool.setuptools]
        py-modules = ["acme_piped"]
        """)
    )
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site), str(source)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options], check=True, capture_output=True)
    monkeypatch.syspath_prepend(str(site))
    (point,) = plugins()["shift"]
    assert package_of(point) == "acme-piped 1.2" and method_class("shift").__module__ == "acme_piped"
    assert package_at("acme_piped:Shift") == "acme-piped 1.2"


def test_a_class_that_was_changed_is_another_run(tmp_path, monkeypatch):
    keys = []
    monkeypatch.syspath_prepend(str(tmp_path))
    for change in ("", "", "\nCHANGED = 1\n"):
        (tmp_path / "own_shift.py").write_text(EXAMPLE + change)
        sys.modules.pop("own_shift", None)
        linecache.clearcache()
        importlib.invalidate_caches()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        module = importlib.import_module("own_shift")
        keys.append(resolve(module.Shift(0.2), model="m").key("rows", "weights"))
    sys.modules.pop("own_shift", None)
    assert keys[0] == keys[1] != keys[2]
