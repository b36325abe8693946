"""``zmqraft demo``: three peers replicate a file, lose their leader half-way, and the log gives the file back."""

from __future__ import annotations

from zmqraft.cli.demo.command import demo

__all__ = ["demo"]
