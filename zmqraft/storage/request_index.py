"""The request-id index, compiled or pure; see `zmqraft.storage._request_index`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zmqraft._accel import EXTENSIONS

if TYPE_CHECKING or not EXTENSIONS:
    from zmqraft.storage._request_index import RequestIndex
else:
    from zmqraft._speedups.request_index import RequestIndex

__all__ = ["RequestIndex"]
