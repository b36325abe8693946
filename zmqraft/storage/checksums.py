"""Checksums of what is on disk; compiled or pure, see `zmqraft.storage._checksums`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zmqraft._accel import EXTENSIONS

if TYPE_CHECKING or not EXTENSIONS:
    from zmqraft.storage._checksums import checksum_bytes, count_matching, crc32c, find_end
else:
    from zmqraft._speedups.checksums import checksum_bytes, count_matching, crc32c, find_end

__all__ = ["checksum_bytes", "count_matching", "crc32c", "find_end"]
