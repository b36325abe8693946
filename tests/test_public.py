"""The public surface: what a module names in ``__all__`` is there, sorted, and says what it is for."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import get_origin

import pytest

import zmqraft

#: Importing these runs the command.
SCRIPTS = {"zmqraft.__main__", "zmqraft.cli.__main__"}
MODULES = ["zmqraft"] + [
    module.name
    for module in pkgutil.walk_packages(zmqraft.__path__, "zmqraft.")
    if module.name not in SCRIPTS and not module.name.startswith("zmqraft._speedups")
]


def public(module: ModuleType) -> list[str]:
    return list(getattr(module, "__all__", []))


def members(cls: type) -> Iterator[tuple[str, object]]:
    """What a class of ours offers to others, also by bases that are not exported: public methods and properties."""
    own = [base for base in cls.__mro__ if base.__module__.startswith("zmqraft")]
    for name, value in {name: value for base in reversed(own) for name, value in vars(base).items()}.items():
        if not name.startswith("_") and (inspect.isroutine(value) or isinstance(value, (property, classmethod))):
            yield name, value


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_for(name: str) -> None:
    module = importlib.import_module(name)
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    assert not source.strip() or ast.get_docstring(ast.parse(source)), f"{name} has no docstring"


@pytest.mark.parametrize("name", MODULES)
def test_public_names_exist_and_are_sorted(name: str) -> None:
    module = importlib.import_module(name)
    names = public(module)
    assert [missing for missing in names if not hasattr(module, missing)] == []
    assert len(set(names)) == len(names)
    assert names == sorted(names, key=_isort_key)


def _isort_key(name: str) -> tuple[int, str]:
    """As ruff sorts ``__all__``: constants, classes, the rest."""
    kind = 0 if name.isupper() else 1 if name[:1].isupper() else 2
    return kind, name


@pytest.mark.parametrize("name", MODULES)
def test_public_names_have_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    missing = []
    for public_name in public(module):
        value = getattr(module, public_name)
        # Constants and aliases of types have a comment, which cannot be read here.
        if not callable(value) or get_origin(value) is not None:
            continue
        if not inspect.getdoc(value):
            missing.append(public_name)
        # What a package exports is for users; they look at the methods too.
        if inspect.isclass(value) and hasattr(module, "__path__"):
            missing += [f"{public_name}.{member}" for member, part in members(value) if not inspect.getdoc(part)]
    assert missing == []


def test_extensions_says_which_build_this_is() -> None:
    assert zmqraft.EXTENSIONS is zmqraft._accel.EXTENSIONS


def test_the_version_is_that_of_the_distribution() -> None:
    """Only where zmqraft is installed; a checkout on the path has no metadata."""
    try:
        installed = importlib.metadata.version("zmqraft")
    except importlib.metadata.PackageNotFoundError:
        return
    assert zmqraft.__version__ == installed
