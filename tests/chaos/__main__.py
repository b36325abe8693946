"""``python -m tests.chaos --runs 100 --seconds 120 --first-seed S``, in a checkout."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos.command import main

if __name__ == "__main__":
    sys.exit(main())
