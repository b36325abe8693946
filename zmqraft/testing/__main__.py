"""``python -m zmqraft.testing``: the simulator from the command line.

The work is in `zmqraft.testing.command`: other processes can import that, but not a ``__main__``.
"""

from __future__ import annotations

import sys

from zmqraft.testing.command import main

if __name__ == "__main__":
    sys.exit(main())
