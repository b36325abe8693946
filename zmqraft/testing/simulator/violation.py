"""What is raised when an invariant is broken."""

from __future__ import annotations

__all__ = ["Violation"]


class Violation(AssertionError):  # noqa: N818
    """An invariant is broken. ``name`` says which, in a few words that do not change from run to run."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
