"""The command as a whole: its version, its help, and one clear line for each mistake on the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import zmqraft
from support.command import assert_fails_in_one_line, run_command
from zmqraft.cli import main
from zmqraft.cli.run import find_config_file
from zmqraft.errors import ConfigurationError

COMMANDS = (
    "run",
    "update",
    "read",
    "subscribe",
    "info",
    "config",
    "inspect",
    "list",
    "dump",
    "verify",
    "compact",
    "demo",
    "kv",
    "console",
)


def test_the_version_says_which_build_it_is() -> None:
    result = run_command("--version")
    build = "compiled" if zmqraft.EXTENSIONS else "pure Python"
    assert (result.stdout.decode(), result.stderr) == (f"zmqraft {zmqraft.__version__} ({build})\n", b"")
    assert result.returncode == 0


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n  {command} " in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "-h"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert f"Usage: zmqraft {command}" in output.out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "zmqraft: Missing command. (see zmqraft --help)"),
        (["update", "--request-id", "x"], "--request-id names one update"),
        (["update", "--request-id", "x", "y"], "--request-id: not a request id: 'x'"),
        (["--verbose"], "No such option"),
        (["run", "--port", "1"], "(see zmqraft run --help)"),
        (["run", "a", "b"], "unexpected extra argument (b)"),
        (["run", "--log-level", "loud"], "'loud' is not one of 'debug', 'info', 'warning', 'error'"),
        (["update", "--file", "/nowhere"], "'/nowhere' does not exist"),
        (["update", "x", "--file", __file__], "DATA and --file exclude each other"),
        (["update", ""], "DATA is empty"),
        (["update", "-u", "ipc://x", "y"], "--url: not a url like tcp://host:port: 'ipc://x'"),
        (["update", "-c", "/nowhere.yaml", "y"], "/nowhere.yaml: No such file or directory"),
        (["update", "--in-flight", "0", "x"], "0 is not in the range"),
        (["read", "--json", "--raw"], "--json and --raw exclude each other"),
        (["read", "--from", "0"], "0 is not in the range"),
        (["read", "--encoding", "rot13"], "'rot13' is not one of"),
        (["subscribe", "--count", "x"], "'x' is not a valid integer range"),
        (["info", "--timeout", "0"], "is not in the range"),
        (["demo", "--input", "/nowhere"], "'/nowhere' does not exist"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert line in output.err
    assert output.err.endswith("\n")
    assert output.err.count("\n") == 1


def test_a_mistake_in_a_process_of_its_own_is_one_line_too() -> None:
    assert_fails_in_one_line(run_command("runn"), "zmqraft: No such command 'runn'. (see zmqraft --help)")


def test_without_its_libraries_the_command_says_what_to_install(tmp_path: Path) -> None:
    # A module that cannot be found even though it is installed.
    code = "import sys; sys.modules['click'] = None; import zmqraft.cli; sys.exit(zmqraft.cli.main(['--version']))"
    package = str(Path(zmqraft.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={"PYTHONPATH": package}, check=False, cwd=tmp_path
    )
    assert_fails_in_one_line(result, "pip install 'zmqraft[cli]'")
    assert result.returncode == 2


def test_the_configuration_file_of_the_working_directory_is_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no configuration file: name one with -c"):
        find_config_file(tmp_path)
    (tmp_path / "zmqraft.hjson").touch()
    assert find_config_file(tmp_path) == tmp_path / "zmqraft.hjson"
    (tmp_path / "zmqraft.toml").touch()
    with pytest.raises(ConfigurationError, match="several configuration files"):
        find_config_file(tmp_path)
