"""What these tests need of the machine; where it is missing they are deselected, and one line says so."""

from __future__ import annotations

import pytest

from support.missing import missing_for_loop, missing_for_strace


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for mark, missing in (("strace", missing_for_strace), ("loop_file_system", missing_for_loop)):
        marked = [item for item in items if item.get_closest_marker(mark)]
        reason = missing() if marked else None
        if reason is not None:
            config.hook.pytest_deselected(items=marked)
            items[:] = [item for item in items if item not in marked]
            names = ", ".join(sorted({item.name for item in marked}))
            reporter = config.pluginmanager.get_plugin("terminalreporter")
            if reporter is not None:
                reporter.write_line(f"deselected: {names}: {reason}")
