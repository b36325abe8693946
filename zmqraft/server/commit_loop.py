"""What happens for each update on a leader, compiled or pure; see `zmqraft.server._commit_loop`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zmqraft._accel import EXTENSIONS

if TYPE_CHECKING or not EXTENSIONS:
    from zmqraft.server._commit_loop import Intake, ReplyQueue, WaitingUpdates
else:
    from zmqraft._speedups.commit_loop import Intake, ReplyQueue, WaitingUpdates

__all__ = ["Intake", "ReplyQueue", "WaitingUpdates"]
