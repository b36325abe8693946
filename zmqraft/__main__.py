"""``python -m zmqraft``: the ``zmqraft`` command."""

from __future__ import annotations

import sys

from zmqraft.cli import main

if __name__ == "__main__":
    sys.exit(main())
