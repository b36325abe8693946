"""What the contracts have in common: how they check, and how they are run without a test runner.

The rule: a failure says what was expected, and what was found.
"""

from __future__ import annotations

from collections.abc import Callable

from zmqraft.errors import shown

__all__ = ["check", "check_refused", "run_contract"]


def check(found: object, expected: object, what: str) -> None:
    """AssertionError, with both, when what was found is not what was expected."""
    if found != expected:
        raise AssertionError(f"{what}: expected {shown(expected)}, found {shown(found)}")


def check_refused(error: type[Exception], what: str, call: Callable[..., object], *arguments: object) -> None:
    """AssertionError when a call with these arguments does not raise this error."""
    try:
        result = call(*arguments)
    except error:
        return
    except Exception as other:
        raise AssertionError(f"{what}: expected {error.__name__}, raised {other!r}") from other
    raise AssertionError(f"{what}: expected {error.__name__}, returned {shown(result)}")


def run_contract(contract: Callable[[], object]) -> list[str]:
    """Run every test of a contract, each on a new object that ``contract`` (the derived class) makes; their names.

    The first failure is raised, AssertionError for a broken promise.
    """
    names = sorted(name for name in dir(contract) if name.startswith("test_"))
    for name in names:
        getattr(contract(), name)()
    return names
