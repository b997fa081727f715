"""A log opened: its files, what is read from each, and every mistake that shows before the first row."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from common.errors import ConfigError, DataError
from lain.formats.log.encoder import Encoder
from lain.formats.log.features import make_column, make_encoder
from lain.formats.log.read import LogFile, find_files
from lain.formats.log.rule import Rule, is_rule, parse_rule
from lain.formats.log.schema import SPLITS, LogSchema, OtherLog, SideTable
from lain.formats.log.values import Clock
from lain.formats.tables import Mistakes, Progress

ALL = -1
"""Split code of what belongs to all splits."""

NOWHERE = -1
"""Home of a feature that the new log knows nothing of."""


@dataclass(eq=False)
class Table:
    """An item or user table.

    Args:
        kind: ``item`` or ``user``.
        key: Its id column.
        files: Its files.
    """

    kind: str
    key: str
    files: list[LogFile]


@dataclass(eq=False)
class Plan:
    """What is read, and how.

    Args:
        schema: What the columns mean.
        progress: Says how far reading is.
        rows: Files of the log, each with the split it is (0, 1, 2) or :data:`ALL`.
        past: Files with more behaviours.
        given: Files with one history per user, each with its split.
        tables: Item and user tables.
        encoders: Every feature by name.
        home: Number of the table that each feature's column stands in; None: the log; in a log to be scored
            perhaps :data:`NOWHERE`.
        columns: Every column of the behaviours by name.
        label: The label's column or rule; None: every row counts as a click.
        events: Which rows are behaviours; None: all.
        clock: Reads times.
        unlabelled: Whether rows may lack a label, being there to be scored.
        mistakes: Where mistakes go.
        notices: What the user should hear, said once at the end.
    """

    schema: LogSchema
    progress: Progress
    rows: list[tuple[LogFile, int]]
    past: list[LogFile]
    given: list[tuple[LogFile, int]]
    tables: list[Table]
    encoders: dict[str, Encoder]
    home: dict[str, int | None]
    columns: dict[str, Encoder]
    label: str | Rule | None
    events: Rule | None
    sequences: dict[str, Rule]
    clock: Clock
    unlabelled: bool
    mistakes: Mistakes = field(default_factory=Mistakes)
    notices: list[str] = field(default_factory=list)

    @property
    def timed(self) -> bool:
        """Whether the log has times."""
        return self.schema.columns.time is not None

    @property
    def windows(self) -> bool:
        """Whether histories are given as lists."""
        return self.schema.history.given is not None

    def of(self, source: str) -> list[Encoder]:
        """The features of items, users or rows."""
        return [encoder for encoder in self.encoders.values() if encoder.source == source]

    def in_log(self, source: str) -> list[Encoder]:
        """Those of them whose column stands in the log."""
        return [encoder for encoder in self.of(source) if self.home[encoder.name] is None]

    def log_columns(self) -> list[str]:
        """The columns that are read of the log."""
        schema, wanted = self.schema, [self.schema.columns.user]
        impressions = schema.impressions
        if impressions is None:
            wanted.append(schema.columns.item)
        else:
            wanted += [impressions.items] + ([impressions.clicked] if impressions.clicked else [])
        wanted += [schema.columns.time] if schema.columns.time else []
        if impressions is None and self.label is not None:
            wanted += self.label.columns if isinstance(self.label, Rule) else [self.label]
        wanted += [e.column for e in self.encoders.values() if self.home[e.name] is None]
        splits = schema.splits
        wanted += [splits.column] if splits.column and splits.by in ("column", "random") else []
        if self.windows:
            given = schema.history.given
            assert given is not None
            wanted += self.list_columns() if given.files is None else []
        elif schema.history.log is None:
            wanted += self.event_columns()
        return list(dict.fromkeys(wanted))

    def event_columns(self) -> list[str]:
        """The columns that make a row a behaviour and say more about it."""
        wanted = [encoder.column for encoder in self.columns.values()]
        for rule in (*((self.events,) if self.events else ()), *self.sequences.values()):
            wanted += rule.columns
        return wanted

    def list_columns(self) -> list[str]:
        """The columns of given histories."""
        given = self.schema.history.given
        assert given is not None
        items = list(self.schema.history.known_by.values()) or [given.items]
        times = [given.times] if given.times else []
        return [*items, *times, *(encoder.column for encoder in self.columns.values())]

    def past_columns(self) -> list[str]:
        """The columns of files with more behaviours: user, item, time, and what else is asked for."""
        user, item, time = past_ids(self.schema)
        items = list(self.schema.history.known_by.values()) or [item]
        return [user, time, *items, *self.event_columns()]


def past_ids(schema: LogSchema) -> tuple[str, str, str]:
    """User, item and time column of the files with more behaviours."""
    log, columns = schema.history.log, schema.columns
    if log is None:
        return columns.user, columns.item, columns.time or ""
    return log.user or columns.user, log.item or columns.item, log.time or columns.time or ""


def open_plan(
    schema: LogSchema, source: Path, progress: Progress, *, unlabelled: bool = False, past: Path | None = None
) -> Plan:
    """Open all files of a log and check their columns.

    Args:
        schema: What the columns mean.
        source: A file, a folder or a pattern.
        progress: Says how far reading is.
        unlabelled: Whether rows may lack a label.
        past: A log of earlier events, for histories.

    Raises:
        ConfigError: The schema has mistakes.
        DataError: Files or columns are missing or cannot be read; every one is named.
    """
    found: list[str] = []
    folder = source if source.is_dir() else source.parent

    def opened(
        pattern: str | None, table: SideTable | OtherLog | None = None, *, at: Path = source
    ) -> list[LogFile]:
        options = schema.source
        separator = table.separator if table is not None else options.separator
        header = table.header if table is not None else options.header
        files: list[LogFile] = []
        try:
            for path in find_files(at, pattern):
                try:
                    file = LogFile(path, separator=separator, header=header, missing=options.missing)
                    files.append(file)
                except (DataError, ConfigError) as error:
                    found.extend(error.messages)
        except DataError as error:
            if not (isinstance(table, SideTable) and (table.optional or unlabelled)):
                found.extend(error.messages)
        return files

    history, splits = schema.history, schema.splits
    rows: list[tuple[LogFile, int]] = []
    if splits.by == "files" and splits.files and not unlabelled:
        for name, pattern in splits.files.items():
            rows += [(file, SPLITS.index(name)) for file in opened(pattern)]
    else:
        own = schema.source.files if source.is_dir() else None
        rows = [(file, ALL) for file in opened(own)]
    past_files = opened(history.log.file, history.log, at=folder) if history.log is not None else []
    given: list[tuple[LogFile, int]] = []
    if history.given is not None:
        for name, glob in (history.given.files or {}).items() if past is None else ():
            if name not in (*SPLITS, "all"):
                found.append(f"history.given.files: '{name}' is not one of {', '.join(SPLITS)}, all")
                continue
            given += [
                (file, SPLITS.index(name) if name in SPLITS else ALL) for file in opened(glob, at=folder)
            ]
    if past is not None:  # what history is made of comes from there
        if history.given is not None:
            given = [(file, ALL) for file in opened(None, at=past)]
        else:
            past_files = opened(None, at=past)
    tables: list[Table] = []
    absent: dict[str, list[str]] = {"item": [], "user": []}
    for kind, several in (("item", schema.items), ("user", schema.users)):
        for table in several:
            files = opened(table.file, table, at=folder)
            if files:
                tables.append(Table(kind, table.key, files))
            elif table.optional and not unlabelled:
                absent[kind].append(table.file)
    DataError.raise_if(found)
    label = schema.columns.label
    clock = Clock(schema.time, tolerant=schema.source.drop_times_outside is not None)
    time = schema.columns.time
    encoders = {name: make_encoder(name, f, time, clock) for name, f in schema.features.items()}
    notices = _drop_absent(encoders, tables, rows, absent)
    plan = Plan(
        schema=schema,
        progress=progress,
        rows=rows,
        past=past_files,
        given=given,
        tables=tables,
        encoders=encoders,
        home=_homes(encoders, tables, rows if unlabelled else []),
        columns={name: make_column(name, column) for name, column in history.columns.items()},
        label=parse_rule(label) if label is not None and is_rule(label) else label,
        events=None if history.events in ("all", "none") else parse_rule(history.events),
        sequences={name: parse_rule(rule) for name, rule in history.sequences.items()},
        clock=clock,
        unlabelled=unlabelled,
        notices=notices,
    )
    _check_columns(plan)
    return plan


def _homes(
    encoders: dict[str, Encoder], tables: list[Table], rows: list[tuple[LogFile, int]]
) -> dict[str, int | None]:
    """The first table of its kind that has a feature's column; else the log, or nowhere if rows lack it."""
    homes: dict[str, int | None] = {}
    for name, encoder in encoders.items():
        there = [
            number
            for number, table in enumerate(tables)
            if table.kind == encoder.source and encoder.column in table.files[0].columns
        ]
        homes[name] = there[0] if there else None
        lacking = any(encoder.column not in file.columns for file, _ in rows)
        if not there and encoder.source != "context" and lacking:
            homes[name] = NOWHERE
    return homes


def _drop_absent(
    encoders: dict[str, Encoder],
    tables: list[Table],
    rows: list[tuple[LogFile, int]],
    absent: dict[str, list[str]],
) -> list[str]:
    """Leave out features of tables that may be missing and are."""
    notices = []
    homes = _homes(encoders, tables, [])
    for kind, files in absent.items():
        gone = [
            name
            for name, encoder in encoders.items()
            if files
            and encoder.source == kind
            and homes[name] is None
            and not all(encoder.column in file.columns for file, _ in rows)
        ]
        for name in gone:
            del encoders[name]
        if gone:
            notices.append(f"{', '.join(files)}: not there, so left out: {', '.join(gone)}")
    return notices


def _check_columns(plan: Plan) -> None:
    lines: list[str] = []
    wanted = plan.log_columns()
    optional = set()
    if plan.unlabelled and plan.label is not None:
        optional = set(plan.label.columns if isinstance(plan.label, Rule) else [plan.label])
        optional |= set(plan.event_columns()) if not plan.windows else set()
        optional -= {encoder.column for encoder in plan.in_log("context")}
    for file, _ in plan.rows:
        lines += file.require(
            [column for column in wanted if column not in optional or column in file.columns]
        )
    lines = [_with_tables(plan, line) for line in lines]
    for file in plan.past:
        lines += file.require(plan.past_columns())
    for file, _ in plan.given:
        given = plan.schema.history.given
        assert given is not None
        lines += file.require([given.user or plan.schema.columns.user, *plan.list_columns()])
    for number, table in enumerate(plan.tables):
        own = [encoder.column for encoder in plan.encoders.values() if plan.home[encoder.name] == number]
        for file in table.files:
            lines += file.require([table.key, *own])
    DataError.raise_if(lines)


def _with_tables(plan: Plan, line: str) -> str:
    """The line about a column that stands neither in the log nor in a table, with the tables named."""
    for encoder in plan.encoders.values():
        tables = [file.path.name for t in plan.tables for file in t.files if t.kind == encoder.source]
        if tables and f"column '{encoder.column}' is missing" in line:
            return f"{line} (nor is it in {', '.join(tables)})"
    return line
