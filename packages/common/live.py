"""What a long command shows while it works: one live panel on a terminal, plain lines elsewhere.

Everything goes to standard error, since standard output carries results only. Light to import: rich is read
where there is a terminal to draw on.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live as RichLive

State = Literal["waiting", "running", "done", "failed"]
"""What a run of a study is at."""

LINE_SECONDS = 30.0
"""Least seconds between two plain lines inside a stage."""

_MARKS: dict[State, tuple[str, str]] = {
    "waiting": ("·", "dim"),
    "running": ("▶", "yellow"),
    "done": ("✓", "green"),
    "failed": ("✗", "bold red"),
}


def clock(seconds: int | float) -> str:
    """``0:42``, ``12:05``, ``3:05:00``.

    Args:
        seconds: A duration.
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def memory_text() -> str:
    """The most memory that this process has held, and that it holds on a GPU, where there is one."""
    unit = 1 if sys.platform == "darwin" else 1024
    text = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        text += f", GPU {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    return text


class Progress:
    """The progress of one command, as a context.

    On a terminal a panel: the stage, how far it is, its figures, memory, time left; for a study the grid of
    its runs. It is taken away at the end, and a line for each stage stays. Without a terminal there are these
    lines alone: one when a stage begins, at its first progress and at its end, and in between at most one
    every 30 s.

    Args:
        title: What is worked on: the name of a run, of a study.
        shown: False shows nothing at all.
    """

    def __init__(self, title: str, *, shown: bool = True) -> None:
        self.title, self.shown = title, shown
        self._live: RichLive | None = None
        self._stage = self._unit = ""
        self._done: float = 0
        self._first: float = 0
        self._total: float | None = None
        self._began = self._lined = time.monotonic()
        self._figures: dict[str, str] = {}
        self._columns: Sequence[str] = ()
        self._grid: Mapping[str, Sequence[State | None]] = {}

    @property
    def live(self) -> bool:
        """Whether a panel is being drawn."""
        return self._live is not None

    def __enter__(self) -> Progress:
        """Begin to show."""
        if self.shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            if not console.is_dumb_terminal:
                self._live = Live(
                    get_renderable=self._render, console=console, refresh_per_second=4, transient=True
                )
                self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last line of the stage, and the terminal as it was."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()
        self._end(stopped=error is not None)

    def stage(
        self, name: str, *, total: int | float | None = None, unit: str = "", done: int | float = 0
    ) -> None:
        """Begin a stage; the one before ends.

        Args:
            name: What is done.
            total: How much there is to do, where that is known.
            unit: Of what: ``steps``, ``pairs``.
            done: How much of it was done before.
        """
        self._end()
        self._stage, self._total, self._unit = name, total, unit
        self._done = self._first = done
        self._began, self._lined = time.monotonic(), -math.inf
        self._figures = {}
        if self.shown and self._live is None:
            self._write(f"{self.title}: {name}" + (f", {total:,.0f} {unit}" if total is not None else ""))

    def at(self, done: int | float, *, line: bool = True) -> None:
        """Note how far the stage is.

        Args:
            done: How much of the total is done.
            line: Whether that is worth a line, where one is due.
        """
        self._done = done
        if line and self.shown and self._live is None and time.monotonic() - self._lined >= LINE_SECONDS:
            self._lined = time.monotonic()
            self._write(self.line())

    def advance(self, by: int | float = 1) -> None:
        """Note that more is done.

        Args:
            by: How much more.
        """
        self.at(self._done + by)

    def show(self, figures: Mapping[str, str]) -> None:
        """Show figures of the stage; those shown before stay.

        Args:
            figures: Text by name; an empty text takes a figure away.
        """
        kept = {**self._figures, **figures}
        self._figures = {name: text for name, text in kept.items() if text}

    def grid(self, columns: Sequence[str], rows: Mapping[str, Sequence[State | None]]) -> None:
        """Show the runs of a study.

        Args:
            columns: Names of the columns: seeds.
            rows: State of the run in each column by name of the row: an arm; None where there is no run.
        """
        self._columns, self._grid = columns, rows

    def report(self, line: str) -> None:
        """Write a line that stays, above the panel where there is one.

        Args:
            line: The line.
        """
        if self._live is not None:
            from rich.text import Text

            self._live.console.print(Text(line))
        else:
            self._write(line)

    def line(self) -> str:
        """Everything in one line."""
        parts = [self._progress(), *(f"{name} {text}" for name, text in self._figures.items())]
        return f"{self.title}: " + "; ".join(part for part in parts if part)

    def _progress(self) -> str:
        if self._total is None:
            done = f" {self._done:,.0f} {self._unit}" if self._done else ""
        else:
            done = f" {self._done:,.0f}/{self._total:,.0f} {self._unit}"
        left = self._left()
        return f"{self._stage}{done}".strip() + (f", {clock(left)} left" if left else "")

    def _left(self) -> float | None:
        """Seconds left at the pace of this stage."""
        done = self._done - self._first
        if self._total is None or done <= 0:
            return None
        return (time.monotonic() - self._began) / done * max(self._total - self._done, 0)

    def _end(self, *, stopped: bool = False) -> None:
        if self.shown and self._stage and not stopped:
            self.report(f"{self.line()}; {clock(time.monotonic() - self._began)}")
        self._stage = ""

    def _write(self, line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        head = Table.grid(padding=(0, 2))
        head.add_row(f"[bold]{self._stage or 'starting'}[/]", self._count(), self._times())
        parts: list[Any] = [head]
        if self._total:
            bar = Table.grid(expand=True)  # by itself a bar does not end its line
            bar.add_row(ProgressBar(total=self._total, completed=min(self._done, self._total)))
            parts.append(bar)
        figures = Table.grid(padding=(0, 2))
        for name, text in [*list(self._figures.items()), ("memory", memory_text())]:
            figures.add_row(f"[dim]{name}[/]", text)
        parts.append(figures)
        if self._grid:
            parts.append(self._grid_table())
        return Panel(Group(*parts), title=self.title, title_align="left")

    def _count(self) -> str:
        if self._total is None:
            return f"{self._done:,.0f} {self._unit}" if self._done else ""
        return f"{self._done:,.0f} of {self._total:,.0f} {self._unit}"

    def _times(self) -> str:
        left = self._left()
        spent = clock(time.monotonic() - self._began)
        return f"{spent} spent" + (f", {clock(left)} left" if left is not None else "")

    def _grid_table(self) -> RenderableType:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("run")
        for column in self._columns:
            table.add_column(column, justify="center")
        for name, states in self._grid.items():
            cells = ["" if s is None else f"[{_MARKS[s][1]}]{_MARKS[s][0]}[/]" for s in states]
            table.add_row(name, *cells)
        return table
