"""What the columns of a log mean: the YAML file that ``--schema`` names.

The smallest one::

    columns: {user: user_id, item: item_id, time: timestamp, label: click}

``lain prepare log SOURCE --propose`` writes one with comments from the files themselves.

Over 400 lines: every option of a schema with its meaning and its checks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from common.config import MISSING, load
from common.errors import ConfigError
from lain.data.schema import RESERVED
from lain.formats.log.rule import is_rule, parse_rule

FeatureKind = Literal[
    "categorical", "numeric", "buckets", "list", "vector", "hour", "weekday", "day", "month"
]
TIME_PARTS = ("hour", "weekday", "day", "month")
SPLITS = ("train", "valid", "test")
ITEM, USER = "item", "user"
"""Names of the features that hold the learned ids of items and users."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns that every log has.

    Args:
        user: Who saw the item.
        item: What was seen.
        time: When; None where the log has no time (then a history must be given).
        label: A column of 0 and 1, or a rule such as ``rating >= 4``; None for rows to be scored.
    """

    user: str = MISSING
    item: str = MISSING
    time: str | None = None
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How the files are written.

    Args:
        files: Pattern of the files in a SOURCE folder, as in ``log_*.csv``; None: all files of one type.
        separator: Between the columns of a text file; None: found from the first line.
        header: Names of the columns of a text file without a header line.
        missing: Texts that mean "no value".
        drop_rows_without_ids: Leave out rows without user or item, and say how many, instead of refusing.
        drop_times_outside: ``[from, to]``: leave out rows of another time, and say how many.
    """

    files: str | None = None
    separator: str | None = None
    header: list[str] | None = None
    missing: list[str] = field(default_factory=lambda: [""])
    drop_rows_without_ids: bool = False
    drop_times_outside: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class TimeOptions:
    """How times are written.

    Args:
        format: ``auto``, a unit since 1970 (``s``, ``ms``, ``us``, ``ns``), ``text`` (ISO 8601), or a
            strptime pattern as ``%m/%d/%Y %I:%M:%S %p``.
        zone: Time zone of texts without one, and of the parts hour, weekday, day and month.
    """

    format: str = "auto"
    zone: str = "UTC"


@dataclass(frozen=True, kw_only=True)
class FeatureColumn:
    """One feature of items, users or rows.

    Args:
        source: Whose it is; a column of an item or user table if there is one of that name, else of the log.
        kind: categorical; numeric (standardised, with a flag for missing); buckets (a number by quantiles);
            list (of categories); vector (of numbers, as it is); or a part of the time.
        column: The column; None: the feature's name, for parts of the time the time.
        min_count: Values that occur in fewer training rows (items, users) share the id for the unknown.
        buckets: Number of quantile buckets.
        width: Longest list that is kept; dimension of a vector.
        separator: Between the entries of a list that is a text.
    """

    source: Literal["item", "user", "context"] = "context"
    kind: FeatureKind = "categorical"
    column: str | None = None
    min_count: Annotated[int, Ge(1)] = 2
    buckets: Annotated[int, Ge(2)] = 10
    width: Annotated[int, Ge(1)] | None = None
    separator: str | None = None


@dataclass(frozen=True, kw_only=True)
class IdOptions:
    """Which ids are learned.

    Args:
        item: Whether the item's id is a feature.
        user: Whether the user's id is a feature.
        item_min_count: Items that occur less often in training share the id for the unknown.
        user_min_count: The same for users.
    """

    item: bool = True
    user: bool = False
    item_min_count: Annotated[int, Ge(1)] = 2
    user_min_count: Annotated[int, Ge(1)] = 2


@dataclass(frozen=True, kw_only=True)
class SideTable:
    """A table with one row per item or user.

    Args:
        file: The file, relative to SOURCE; a name or a pattern. Of several files the first that has an item
            (user) says what is known of it.
        key: Its id column.
        separator: As in ``source``.
        header: As in ``source``.
        optional: Whether it may be missing; its features then are.
    """

    file: str = MISSING
    key: str = MISSING
    separator: str | None = None
    header: list[str] | None = None
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class BehaviourColumn:
    """What else is known of a behaviour.

    Args:
        column: Where it stands; None: the name itself.
        kind: categorical, or a number by quantiles.
        min_count: As for features.
        buckets: Number of quantile buckets.
    """

    column: str | None = None
    kind: Literal["categorical", "buckets"] = "categorical"
    min_count: Annotated[int, Ge(1)] = 2
    buckets: Annotated[int, Ge(2)] = 10


@dataclass(frozen=True, kw_only=True)
class OtherLog:
    """Behaviours from other files than the rows.

    Args:
        file: The file, relative to SOURCE; a name or a pattern.
        user: Its user column; None: as in the log. The same for ``item`` and ``time``.
        item: Its item column.
        time: Its time column.
        separator: As in ``source``.
        header: As in ``source``.
    """

    file: str = MISSING
    user: str | None = None
    item: str | None = None
    time: str | None = None
    separator: str | None = None
    header: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class GivenHistory:
    """Histories as lists, oldest first: in the rows themselves, or one per user in files of their own.

    Args:
        items: The column with the items.
        times: The column with their times, if known; behaviours not before the row are then cut off.
        separator: Between the items where the column is a text; also for ``times`` and the behaviour columns.
        files: Files with one row per user: a pattern per split, or ``all``; None: the rows have it.
        user: The user column of those files; None: as in the log.
        newest_first: Whether the lists begin with the newest behaviour.
    """

    items: str = MISSING
    times: str | None = None
    separator: str | None = None
    files: dict[str, str] | None = None
    user: str | None = None
    newest_first: bool = False


@dataclass(frozen=True, kw_only=True)
class HistoryOptions:
    """Which events a history is made of. It always ends strictly before its row.

    Behaviours of one moment are ordered by a hash of the item's id that ``tie_seed`` seeds, so neither by
    their place in the file nor by id.

    Args:
        events: ``all``, ``none``, or a rule such as ``click == 1``.
        log: Behaviours from other files.
        given: Histories as lists.
        sequences: Rules by name; a behaviour then has a column ``sequence`` that says which it fulfils, and
            one that fulfils none is left out.
        columns: What else is known of each behaviour, by name.
        known_by: Behaviours without an item id, known by features of items only: their columns by the
            feature's name. ``log.item`` and ``given.items`` are not read then.
        gap: Whether a behaviour knows the time since the one before, in powers of two of seconds.
        tie_seed: Decides the order of behaviours of one moment.
    """

    events: str = "all"
    log: OtherLog | None = None
    given: GivenHistory | None = None
    sequences: dict[str, str] = field(default_factory=dict)
    columns: dict[str, BehaviourColumn] = field(default_factory=dict)
    known_by: dict[str, str] = field(default_factory=dict)
    gap: bool = True
    tie_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Which rows train, validate and test. A missing valid split is taken from the end of train.

    Args:
        by: time (at two moments), random (whole groups of rows), column, or files.
        fractions: Shares of train, valid and test (time, random).
        valid: The first moment of valid, as a time or a date, instead of fractions.
        test: The first moment of test.
        column: Column that names the split (column), or the group that stays together (random).
        values: What that column holds for train, valid, test; None: these words.
        files: Pattern of the files of each split (files).
        valid_fraction: Share of train that becomes valid where there is none.
        seed: Decides the random split.
    """

    by: Literal["time", "random", "column", "files"] = "time"
    fractions: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])
    valid: str | None = None
    test: str | None = None
    column: str | None = None
    values: dict[str, str] | None = None
    files: dict[str, str] | None = None
    valid_fraction: Annotated[float, Gt(0), Lt(1)] = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what each way of splitting needs."""
        found = []
        if len(self.fractions) != 3 or min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-9:
            found.append(f"fractions: must be three shares of 1, got {self.fractions}")
        elif self.fractions[0] == 0:
            found.append("fractions: the share of train must be above 0")
        if self.by == "column" and self.column is None:
            found.append("column: name the column that says train, valid or test")
        if self.by == "files" and not self.files:
            found.append("files: give a pattern for each split, as {train: train.csv, test: test.csv}")
        for name, given in (("files", self.files), ("values", self.values)):
            if given is not None and "train" not in given:
                found.append(f"{name}: train is missing")
            found += [f"{name}: '{split}' is not one of {', '.join(SPLITS)}" for split in given or ()
                      if split not in SPLITS]  # fmt: skip
        if (self.valid is not None and self.test is None) or (self.by != "time" and self.test is not None):
            found.append("test: moments need by: time, and test where valid is given")
        ConfigError.raise_if(found)


@dataclass(frozen=True, kw_only=True)
class Impressions:
    """Rows that show several items at once.

    Args:
        items: The column with the items shown, a list or a text.
        clicked: The column with those of them that were clicked, a list; None: the label stands behind the
            item.
        separator: Between the items of a text.
        label_separator: Between an item and its label in a text, as in ``N55689-1``.
    """

    items: str = MISSING
    clicked: str | None = None
    separator: str = " "
    label_separator: str = "-"


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """Rows without a click, drawn where the log has none: these are guesses, not observations.

    An item is drawn from all items of the log with equal chance, for the user and the moment of a click.

    Args:
        per_click: How many are drawn for each click.
        seed: Decides which.
    """

    per_click: Annotated[int, Ge(1)] = 1
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class LogSchema:
    """A log.

    Args:
        columns: The columns that every log has.
        name: Name of the data set; None: the name of SOURCE.
        source: How the files are written.
        time: How times are written.
        ids: Which ids are learned.
        features: Features by name.
        items: Item tables.
        users: User tables.
        history: Which events a history is made of.
        splits: Which rows train, validate and test.
        impressions: Rows that show several items at once.
        negatives: Rows without a click, drawn at random.
        fit: Rows that vocabularies and scales are taken from; ``all`` lets test rows in, and is said.
        seed: Order of the users in the prepared set.
    """

    columns: Columns = field(default_factory=Columns)
    name: str | None = None
    source: SourceOptions = field(default_factory=SourceOptions)
    time: TimeOptions = field(default_factory=TimeOptions)
    ids: IdOptions = field(default_factory=IdOptions)
    features: dict[str, FeatureColumn] = field(default_factory=dict)
    items: list[SideTable] = field(default_factory=list)
    users: list[SideTable] = field(default_factory=list)
    history: HistoryOptions = field(default_factory=HistoryOptions)
    splits: SplitOptions = field(default_factory=SplitOptions)
    impressions: Impressions | None = None
    negatives: Negatives | None = None
    fit: Literal["train", "all"] = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what belongs together."""
        found = []
        for name, feature in self.features.items():
            if name in RESERVED or name in (ITEM, USER):
                found.append(f"features.{name}: the name is taken by the id; give the feature another name "
                             f"and 'column: {feature.column or name}'")  # fmt: skip
            if feature.kind in TIME_PARTS and self.columns.time is None and feature.column is None:
                found.append(f"features.{name}: the log has no time (columns.time)")
            if feature.kind in TIME_PARTS and feature.source != "context":
                found.append(f"features.{name}: a part of the time belongs to the row: source: context")
            if feature.kind == "vector" and feature.source == "user" and not self.users:
                found.append(f"features.{name}: a vector of users needs a table under 'users'")
        history, splits = self.history, self.splits
        given = history.given is not None
        if history.log is not None and given:
            found.append("history: either 'log' or 'given'")
        if self.columns.time is None and not given and history.events != "none":
            found.append("columns.time: without a time there is no history before a row; name the column, "
                         "give "
                         "the histories (history.given), or set history.events: none")  # fmt: skip
        if self.columns.time is None and splits.by == "time":
            found.append("splits.by: without a time (columns.time) use random, column or files")
        if self.columns.label is None and self.impressions is None and self.negatives is None:
            found.append("columns.label: name the column with the clicks, or a rule such as 'rating >= 4'")
        for name in history.known_by:
            if name not in self.features or self.features[name].source != "item":
                found.append(f"history.known_by.{name}: is not a feature with source: item")
        if history.known_by and not given and history.log is None:
            found.append("history.known_by: is for behaviours from elsewhere (history.log, history.given)")
        if given and history.sequences:
            found.append("history.sequences: rules are for events, not for given histories")
        for key, rule in self._rules().items():
            try:
                parse_rule(rule)
            except ConfigError as error:
                found += [f"{key}: {message}" for message in error.messages]
        ConfigError.raise_if(found)

    def _rules(self) -> dict[str, str]:
        rules = {f"history.sequences.{name}": rule for name, rule in self.history.sequences.items()}
        if self.history.events not in ("all", "none"):
            rules["history.events"] = self.history.events
        if self.columns.label is not None and is_rule(self.columns.label):
            rules["columns.label"] = self.columns.label
        return rules


def load_schema(file: Path | None, base: dict[str, Any] | None = None) -> LogSchema:
    """Read a schema.

    Args:
        file: The YAML file.
        base: Values below the file.

    Raises:
        ConfigError: It has mistakes, every one named.
    """
    schema = load(LogSchema, file, (), base)
    lacking = [
        f"{file or 'schema'}: columns.{name}: a value is needed here"
        for name in ("user", "item")
        if getattr(schema.columns, name) == MISSING and not (name == "item" and schema.impressions)
    ]
    ConfigError.raise_if(lacking)
    return schema
