"""Entries in batches, and how a batch is made; compiled or pure, see `zmqraft.protocol._log_index`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zmqraft._accel import EXTENSIONS

if TYPE_CHECKING or not EXTENSIONS:
    from zmqraft.protocol._log_index import BatchBuilder, EntryBatch, table_bytes
else:
    from zmqraft._speedups.log_index import BatchBuilder, EntryBatch, table_bytes

__all__ = ["BatchBuilder", "EntryBatch", "table_bytes"]
