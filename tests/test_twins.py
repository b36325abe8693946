"""The pure and the compiled twin of every module look the same: names, methods, signatures, docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.twins import COMPILED, MODULES, PURE, public_names, twin

SOURCES = Path(__file__).parent.parent / "_speedups"
#: One object of each class, since what a pure class sets in __init__ is not to be seen in the class.
MAKE: dict[str, Callable[[Any], Any]] = {
    "MessageCodec": lambda module: module.MessageCodec("name", ("type",), "b", 1, False, b"x"),
    "EntryBatch": lambda module: module.EntryBatch.empty(1),
    "BatchBuilder": lambda module: module.BatchBuilder(),
    "RequestIndex": lambda module: module.RequestIndex(),
    "Poller": lambda module: module.Poller(),
    "ReplyQueue": lambda module: module.ReplyQueue(),
    "WaitingUpdates": lambda module: module.WaitingUpdates(),
    "Intake": lambda module: module.Intake(b"secret", 1000, module.WaitingUpdates(), {}.get),
}
FUNCTIONS = [(module, name) for module in MODULES for name in public_names(module) if not name[0].isupper()]
CLASSES = [(module, name) for module in MODULES for name in public_names(module) if name[0].isupper()]
#: What classes do by syntax, as `len`, and instances by themselves. A compiled class has all comparisons if it has one.
SPECIAL = ["__len__", "__iter__", "__eq__", "__hash__", "__bool__", "__getitem__", "__contains__", "__call__"]


def signature(function: Any) -> list[tuple[str, Any, Any]]:
    """The parameters, without the annotations, which compiled code does not keep."""
    return [(part.name, part.kind, part.default) for part in inspect.signature(function).parameters.values()]


def public(value: Any) -> list[str]:
    return [name for name in dir(value) if not name.startswith("_")]


def constructor(module: str, name: str) -> list[tuple[str, str | None]]:
    """The parameters of a compiled class's __init__ with their defaults: from the source, since the type has none."""
    source = (SOURCES / f"{module}.pyx").read_text(encoding="utf-8")
    body = re.split(r"^(?=cdef class )", source, flags=re.MULTILINE)
    (own,) = [text for text in body if text.startswith(f"cdef class {name}:")]
    found = re.search(r"def __init__\(self,?(.*?)\):", own, re.DOTALL)
    parameters = [text.strip() for text in found[1].split(",")] if found else []
    split = [text.removesuffix(" not None").partition("=") for text in parameters if text]
    return [(declared.split()[-1], default if equals else None) for declared, equals, default in split]


@pytest.mark.parametrize("build", [COMPILED])
@pytest.mark.parametrize("module", MODULES)
def test_what_is_exported_is_there(build: str, module: str) -> None:
    for which in (PURE, build):
        assert [name for name in public_names(module) if not hasattr(twin(module, which), name)] == []


@pytest.mark.parametrize("build", [COMPILED])
@pytest.mark.parametrize("module", MODULES)
def test_nothing_else_is_defined(build: str, module: str) -> None:
    """In the compiled twin, whose helpers have no Python names."""
    defined = twin(module, build)
    own = [name for name in public(defined) if getattr(getattr(defined, name), "__module__", "") == defined.__name__]
    assert sorted(own) == sorted(public_names(module))


@pytest.mark.parametrize("build", [COMPILED])
@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_functions_have_the_same_signature(build: str, module: str, name: str) -> None:
    pure, compiled = (getattr(twin(module, which), name) for which in (PURE, build))
    assert signature(compiled) == signature(pure)
    assert inspect.getdoc(compiled) == inspect.getdoc(pure)


@pytest.mark.parametrize("build", [COMPILED])
@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_classes_have_the_same_methods(build: str, module: str, name: str) -> None:
    pure, compiled = (getattr(twin(module, which), name) for which in (PURE, build))
    assert inspect.getdoc(compiled) == inspect.getdoc(pure)
    instances = [MAKE[name](twin(module, which)) for which in (PURE, build)]
    assert public(instances[1]) == public(instances[0])
    for method in public(pure):
        if callable(getattr(pure, method)):
            assert signature(getattr(compiled, method)) == signature(getattr(pure, method)), method
            assert inspect.getdoc(getattr(compiled, method)) == inspect.getdoc(getattr(pure, method)), method
    for special in SPECIAL:
        assert bool(getattr(compiled, special, None)) == bool(getattr(pure, special, None)), special


@pytest.mark.parametrize("build", [COMPILED])
@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_classes_are_made_alike(build: str, module: str, name: str) -> None:
    made = inspect.signature(getattr(twin(module, PURE), name)).parameters.values()
    expected = [(part.name, None if part.default is part.empty else repr(part.default)) for part in made]
    assert constructor(module, name) == expected
