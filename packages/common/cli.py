"""Commands: a click group that ends in one line per mistake, and the exit codes of all commands."""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import click

from common.errors import Interrupted, UserError, describe_os_error

USAGE_EXIT = 2
"""Exit code of a command that stopped at a mistake of its user."""

LIFE_SECONDS = 1.2
"""Seconds after which a command says that it is at work."""

SIGNAL_EXIT = 128
"""Added to the number of the signal that stopped a command, as shells have it: 130 for Ctrl-C."""


def report(line: str) -> None:
    """Write a notice to standard error; standard output carries results only.

    Args:
        line: The notice.
    """
    click.echo(line, err=True)


def _exit(code: int, *messages: str) -> None:
    for message in messages:
        report(f"error: {' '.join(message.split())}")
    sys.exit(code)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Interrupted(signum)


@contextmanager
def _catch_termination() -> Iterator[None]:
    """Raise :class:`Interrupted` on SIGTERM, unless somebody handles it already."""
    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def exit_on_mistake() -> Iterator[None]:
    """Turn mistakes of a user and signals inside the block into lines on standard error and an exit code.

    Any other exception is a fault of this program and keeps its traceback.
    """
    try:
        with _catch_termination():
            yield
    except UserError as error:
        _exit(USAGE_EXIT, *error.messages)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(USAGE_EXIT)
    except click.UsageError as error:
        command = f" (see: {error.ctx.command_path} --help)" if error.ctx is not None else ""
        _exit(USAGE_EXIT, error.format_message() + command)
    except click.ClickException as error:
        _exit(USAGE_EXIT, error.format_message())
    except (KeyboardInterrupt, click.Abort, Interrupted) as error:
        stopped = error if isinstance(error, Interrupted) else Interrupted()
        report(stopped.message)
        sys.exit(SIGNAL_EXIT + stopped.signum)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        _exit(USAGE_EXIT, describe_os_error(error))


@contextmanager
def _sign_of_life() -> Iterator[None]:
    """Say that the command is at work where it takes long, most of it imports: nobody should wonder."""
    name = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
    timer = threading.Timer(LIFE_SECONDS, report, [f"{name}: starting"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def run_command(main: Callable[[], None]) -> None:
    """Run a plain function as a command: see :func:`exit_on_mistake`.

    Args:
        main: The command.
    """
    with exit_on_mistake():
        main()


class _CarriedError(Exception):
    """Carries past click what it would rewrite: it takes EOFError for an interrupt of the user."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def _keep_lines(command: click.Command) -> None:
    """Give click the control character where a docstring, being a raw one, has a backslash and a letter."""
    if command.help:
        command.help = command.help.replace("\\b", "\b")


class Group(click.Group):
    """A click group whose commands end in one line per mistake and exit code 2, never in a traceback."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings.setdefault("help_option_names", ["-h", "--help"])
        _keep_lines(self)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command; paragraphs of its help after a line with click's mark for that keep their lines.

        Args:
            cmd: The command.
            name: Its name, by default its own.
        """
        _keep_lines(cmd)
        super().add_command(cmd, name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command of a context."""
        try:
            return super().invoke(ctx)
        except (EOFError, KeyboardInterrupt) as error:
            raise _CarriedError(error) from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line.

        Args:
            args: The arguments; those of the process by default.
            prog_name: Name of the program in its help.
            complete_var: As for :meth:`click.Command.main`.
            standalone_mode: False lets every exception through, for callers inside Python.
            extra: As for :meth:`click.Command.main`.
        """
        if standalone_mode:
            # Only a process of its own has a user who waits; a caller inside Python gives the arguments.
            with exit_on_mistake(), _sign_of_life() if args is None else nullcontext():
                result = self.main(args, prog_name, complete_var, standalone_mode=False, **extra)
                sys.exit(result if isinstance(result, int) else 0)
        try:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except _CarriedError as carried:
            raise carried.error from None
