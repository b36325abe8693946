"""A known bug as a switch: what patches the code under test while a context lasts, and the tests written for that bug.

The rule: a mutant whose target is not there any more is an error, not a bug that nobody finds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

__all__ = ["Mutant", "MutantError", "Patch", "Scenario", "both", "changed", "replaced", "without"]

TESTS = Path(__file__).parent.parent

Patch = Callable[[], contextlib.AbstractContextManager[object]]


class MutantError(Exception):
    """What a mutant was to change is not there."""


# --- patches --------------------------------------------------------------------------------------------------------


def changed(owner: Any, name: str, old: str, new: str) -> Patch:
    """A function of a class or a module in which a piece of its text is another one; it must be there just once."""

    @contextlib.contextmanager
    def patch() -> Iterator[None]:
        original = inspect.getattr_static(owner, name)
        function = getattr(original, "fget", None) or getattr(original, "__func__", original)
        text = textwrap.dedent(inspect.getsource(function))
        if text.count(old) != 1:
            raise MutantError(f"{owner.__name__}.{name} has {text.count(old)} times {old!r}")
        scope: dict[str, Any] = {}
        compiled = compile(
            "from __future__ import annotations\n" + text.replace(old, new), f"<mutant of {name}>", "exec"
        )
        exec(compiled, vars(sys.modules[function.__module__]), scope)
        made = getattr(scope[function.__name__], "fget", None) or scope[function.__name__]
        # The code of the very same function, so that it does not matter who has imported it by name.
        code, function.__code__ = function.__code__, getattr(made, "__func__", made).__code__
        try:
            yield
        finally:
            function.__code__ = code

    return patch


def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> contextlib.AbstractContextManager[object]:
    """``make`` gets the original and returns what takes its place."""
    return mock.patch.object(owner, name, make(getattr(owner, name)))


def without(owner: Any, name: str, result: object = None) -> contextlib.AbstractContextManager[object]:
    """A method that does nothing."""
    return mock.patch.object(owner, name, return_value=result)


def both(*patches: Patch) -> Patch:
    """Several at once."""

    @contextlib.contextmanager
    def patch() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for each in patches:
                stack.enter_context(each())
            yield

    return patch


# --- scenarios ------------------------------------------------------------------------------------------------------


class _Log(logging.Handler):
    """As much of pytest's caplog as scenarios use."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def clear(self) -> None:
        self.records.clear()

    @property
    def text(self) -> str:
        return "\n".join(record.getMessage() for record in self.records)

    def set_level(self, level: int) -> None:
        self.setLevel(level)


@dataclass(frozen=True)
class Scenario:
    """A test, ``file::test`` or ``file::Class::test``, and the values of its parameters."""

    test: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """As pytest would, its fixtures included; raises what the test does."""
        path, *names = self.test.split("::")
        module = _module(path)
        found: Any = module
        for name in names:
            found = getattr(found, name)
            if isinstance(found, type):
                found = found()
        with contextlib.ExitStack() as stack:
            made = dict(self.arguments)
            found(**{name: self._value(name, module, made, stack) for name in inspect.signature(found).parameters})

    def _value(self, name: str, module: ModuleType, made: dict[str, Any], stack: contextlib.ExitStack) -> Any:
        if name not in made:
            made[name] = self._make(name, module, made, stack)
        return made[name]

    def _make(self, name: str, module: ModuleType, made: dict[str, Any], stack: contextlib.ExitStack) -> Any:
        if name == "tmp_path":
            return Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if name == "monkeypatch":
            return stack.enter_context(pytest.MonkeyPatch.context())
        if name == "caplog":
            log = _Log()
            logging.getLogger().addHandler(log)
            stack.callback(logging.getLogger().removeHandler, log)
            return log
        function = inspect.unwrap(getattr(module, name))
        return function(
            **{each: self._value(each, module, made, stack) for each in inspect.signature(function).parameters}
        )


def _module(path: str) -> ModuleType:
    name = f"scenarios_of_mutants.{path.replace('/', '.').removesuffix('.py')}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TESTS / path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@dataclass(frozen=True)
class Mutant:
    """A bug, the rows of FAULTS that tell of it, and the tests that are written for it."""

    name: str
    rows: str
    patch: Patch
    scenarios: tuple[Scenario, ...]

    @classmethod
    def of(cls, name: str, rows: str, patch: Patch, *scenarios: str | tuple[str, Mapping[str, Any]]) -> Mutant:
        """Each scenario is a test, or a test and the values of its parameters."""
        return cls(
            name, rows, patch, tuple(Scenario(each) if isinstance(each, str) else Scenario(*each) for each in scenarios)
        )
