"""Mistakes of users: one line each, exit code 2; and files that are whole or absent."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from common.cli import Group, run_command
from common.errors import BackendError, ConfigError, DataError, UserError, describe_os_error, nearest, suggest
from common.files import atomic_folder, atomic_path, atomic_write

PACKAGES = str(Path(__file__).resolve().parents[2] / "packages")


@click.group(cls=Group)
def group() -> None:
    """A tool."""


@group.command()
@click.option("--rows", type=int, required=True)
@click.option(
    "--fault", type=click.Choice(["none", "two", "disk", "file", "interrupt", "bug", "end", "code"])
)
def work(rows: int, fault: str) -> None:
    r"""Do something.

    \b
    one   the first
    two   the second
    """
    if fault == "two":
        raise ConfigError("a: unknown key", "b: expected\na number")
    if fault == "disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/out/x")
    if fault == "file":
        Path("/does/not/exist").read_text()
    if fault == "interrupt":
        raise KeyboardInterrupt
    if fault == "bug":
        raise ZeroDivisionError
    if fault == "end":
        raise EOFError("the file ends too early")
    if fault == "code":
        click.get_current_context().exit(5)
    click.echo(rows)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(group, list(arguments))


def test_marked_lines_of_the_help_stay_lines() -> None:
    shown = run("work", "--help").output
    assert "  one   the first\n  two   the second\n" in shown
    assert "\\b" not in shown


def test_an_error_holds_every_message() -> None:
    error = DataError("one", "two")
    assert error.messages == ("one", "two")
    assert str(error) == "one\ntwo"
    assert all(issubclass(kind, UserError) for kind in (ConfigError, DataError, BackendError))
    with pytest.raises(ValueError, match="ConfigError needs at least one message"):
        ConfigError()


def test_raise_if_raises_only_when_there_is_something() -> None:
    ConfigError.raise_if([])
    with pytest.raises(ConfigError) as caught:
        ConfigError.raise_if(line for line in ("x", "y"))
    assert caught.value.messages == ("x", "y")


def test_suggestions() -> None:
    assert nearest("hiden", ["hidden", "seed"]) == "hidden"
    assert nearest("zzz", ["hidden", "seed"]) is None
    assert suggest("twim", ["din", "twin"]) == "; did you mean 'twin'?"
    assert suggest("zzz", ["hidden"]) == ""


def test_a_command_that_succeeds() -> None:
    result = run("work", "--rows", "3", "--fault", "none")
    assert (result.exit_code, result.output) == (0, "3\n")


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["--rows", "3", "--fault", "two"], ["error: a: unknown key", "error: b: expected a number"]),
        (["--rows", "3", "--fault", "disk"], ["error: /out/x: the disk is full"]),
        (["--rows", "3", "--fault", "file"], ["error: /does/not/exist: no such file or directory"]),
        (
            ["--rows", "x"],
            ["error: Invalid value for '--rows': 'x' is not a valid integer. (see: group work --help)"],
        ),
        ([], ["error: Missing option '--rows'. (see: group work --help)"]),
    ],
)
def test_mistakes_are_lines_and_exit_code_2(arguments: list[str], lines: list[str]) -> None:
    result = run("work", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == lines


def test_no_command_shows_the_help() -> None:
    result = run()
    assert result.exit_code == 2
    assert "A tool." in result.output
    assert run("-h").exit_code == 0


def test_an_interrupt_is_one_line() -> None:
    result = run("work", "--rows", "1", "--fault", "interrupt")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("signum", "code", "line"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")],
)
def test_a_signal_ends_a_command_with_one_line(signum: int, code: int, line: str) -> None:
    script = (
        "import click, signal, time; from common.cli import Group\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "@click.group(cls=Group)\ndef group(): pass\n"
        "@group.command()\ndef wait(): click.echo('ready'); time.sleep(60)\n"
        "group()"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", script, "wait"],
        env={**os.environ, "PYTHONPATH": PACKAGES},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    _, stderr = process.communicate()
    assert (process.returncode, stderr) == (code, f"{line}\n")


def test_the_end_of_a_file_is_no_interrupt() -> None:
    result = run("work", "--rows", "1", "--fault", "end")
    assert isinstance(result.exception, EOFError)
    assert "interrupted" not in result.output


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    assert isinstance(run("work", "--rows", "1", "--fault", "bug").exception, ZeroDivisionError)


def test_exit_codes_of_commands_pass() -> None:
    assert run("work", "--rows", "1", "--fault", "code").exit_code == 5


def test_run_command_does_the_same_for_a_function(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise DataError("x.csv: no column 'user'")

    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: x.csv: no column 'user'\n"


def test_an_operating_system_error_without_a_path() -> None:
    assert describe_os_error(OSError("12 requested and 3 written")) == "12 requested and 3 written"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    atomic_write(path, "first")
    atomic_write(path, b"second")
    assert path.read_bytes() == b"second"

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder"

    def fail() -> None:
        with atomic_folder(path) as temporary:
            (temporary / "a").write_text("half")
            assert not path.exists()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert os.listdir(tmp_path) == []
    path.mkdir()
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("whole")
    assert os.listdir(tmp_path) == ["folder"]
    assert (path / "a").read_text() == "whole"


def test_a_folder_with_content_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "a").write_text("old")
    with pytest.raises(DataError, match="the folder is not empty"), atomic_folder(path):
        pass
    with atomic_folder(path, replace=True) as temporary:
        (temporary / "b").write_text("new")
    assert os.listdir(path) == ["b"]
    assert os.listdir(tmp_path) == ["folder"]
    with pytest.raises(DataError, match="a file is already there"), atomic_folder(path / "b"):
        pass


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys; from common.files import atomic_folder\n"
        "with atomic_folder(pathlib.Path(sys.argv[1])) as folder: os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": PACKAGES}, check=False)
    assert done.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.tmp-")
    with atomic_folder(tmp_path / "out"):
        assert not left.exists()
    assert os.listdir(tmp_path) == ["out"]
