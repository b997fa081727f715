"""Mistakes a user can repair: one clear line each, exit code 2, no traceback."""

from __future__ import annotations

import difflib
import errno
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

USAGE_EXIT = 2
"""Exit code of a command that stopped at a mistake of its user."""

INTERRUPT_EXIT = 130
"""Exit code of a command that was stopped with Ctrl-C, as shells have it."""


class HouseError(Exception):
    """A mistake that the user can repair; holds one line for each mistake found.

    Args:
        messages: What is wrong, where, and what to do; one line each.

    Raises:
        ValueError: There is no message.
    """

    messages: tuple[str, ...]

    def __init__(self, *messages: str) -> None:
        if not messages:
            raise ValueError(f"{type(self).__name__} needs at least one message")
        super().__init__(*messages)
        self.messages = messages

    def __str__(self) -> str:
        """All messages, one per line."""
        return "\n".join(self.messages)

    @classmethod
    def raise_if(cls, messages: Iterable[str]) -> None:
        """Raise one error that holds every message, or nothing when there is none.

        Args:
            messages: The mistakes that were found together.
        """
        found = tuple(messages)
        if found:
            raise cls(*found)


class ConfigError(HouseError):
    """A setting is unknown, missing, of the wrong type or out of range."""


class DataError(HouseError):
    """A file or array does not hold what it should."""


class BackendError(HouseError):
    """Something outside this program (a device, a server, a library) is missing or refused."""


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that looks most like a name, or None when none is close.

    Args:
        name: What the user wrote.
        choices: What there is.
    """
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return found[0] if found else None


def suggest(name: str, choices: Iterable[str]) -> str:
    """The end of an error line: ``"; did you mean 'x'?"``, or nothing when no choice is close.

    Args:
        name: What the user wrote.
        choices: What there is.
    """
    found = nearest(name, choices)
    return "" if found is None else f"; did you mean '{found}'?"


def describe_os_error(error: OSError) -> str:
    """One line for a failed file operation.

    Args:
        error: What the operating system said.
    """
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno == errno.ENOSPC:
        reason = "the disk is full"
    path = error.filename2 or error.filename
    return reason if path is None else f"{path}: {reason[0].lower()}{reason[1:]}"


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _exit(code: int, *messages: str) -> None:
    for message in messages:
        click.echo(f"error: {_one_line(message)}", err=True)
    sys.exit(code)


@contextmanager
def exit_on_mistake() -> Iterator[None]:
    """Turn the mistakes of a user inside the block into lines on standard error and an exit code.

    Any other exception is a fault of this program and keeps its traceback.
    """
    try:
        yield
    except HouseError as error:
        _exit(USAGE_EXIT, *error.messages)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(USAGE_EXIT)
    except click.UsageError as error:
        command = f" (see: {error.ctx.command_path} --help)" if error.ctx is not None else ""
        _exit(USAGE_EXIT, error.format_message() + command)
    except click.ClickException as error:
        _exit(USAGE_EXIT, error.format_message())
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; run the same command again to resume", err=True)
        sys.exit(INTERRUPT_EXIT)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        _exit(USAGE_EXIT, describe_os_error(error))


def run_command(main: Callable[[], None]) -> None:
    """Run a plain function as a command: see :func:`exit_on_mistake`.

    Args:
        main: The command.
    """
    with exit_on_mistake():
        main()


def _keep_lines(command: click.Command) -> None:
    """Give click the control character where a docstring, being a raw one, has a backslash and a letter."""
    if command.help:
        command.help = command.help.replace("\\b", "\b")


class HouseGroup(click.Group):
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
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        with exit_on_mistake():
            result = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            sys.exit(result if isinstance(result, int) else 0)
