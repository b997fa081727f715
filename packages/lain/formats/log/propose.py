"""A schema proposed from the files of a log, with comments that say what was seen and assumed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from common.errors import DataError
from lain.formats.log.read import LogFile, find_files
from lain.formats.tables import Progress

_SAMPLE = 200_000
_ROLES = {
    "user": r"(^|_)(user|uid|member|customer|visitor|reviewer|session|nick|cookie|device_?id)"
    r"(_?(id|idx|index|name))?$|^u$",
    "item": r"(^|_)(item|iid|video|movie|article|news|ad|adgroup|product|doc|document|song|track|post|goods|"
    r"sku|asin|content|photo|book|listing)(_?(id|idx|index))?$|^i$",
    "time": r"time|date|(^|_)ts$|^t$|timestamp|_at$",
    "label": r"^(is_?)?(click|clicked|clk|label|like|y|target|conversion|purchase|long_view|install)(ed)?$",
    "rating": r"^(rating|stars|score|overall)$",
    "split": r"^(split|fold|set|subset)$",
}
_OUTCOME = re.compile(
    r"like|follow|share|comment|forward|play_?time|dwell|stay|read_?time|scroll|watch|finish|purchase|conversion|"
    r"next_|long_view|hate|revenue|positive|_enter$",
    re.I,
)
_STATISTIC = re.compile(r"(_cnt|_count|_num|^total_|_total|ctr|_rate|popularity|_avg|mean_)", re.I)
_MEASURE = 200
"""Whole numbers with more different values than this are measures, unless their name says id."""

_CATEGORIES = 0.2
"""Texts with fewer different values than this share of their rows look like categories."""


@dataclass(frozen=True)
class _Seen:
    """What a sample shows of a column."""

    name: str
    values: pl.Series
    number: pl.Series | None
    distinct: int
    missing: float

    @property
    def examples(self) -> str:
        shown = [str(value)[:20] for value in self.values.drop_nulls().unique(maintain_order=True).head(3)]
        lacking = f"; {self.missing:.0%} missing" if self.missing else ""
        return f"{self.distinct} different, as {', '.join(shown)}{lacking}" if shown else "no value at all"


def propose(source: Path) -> str:
    """A schema for a log, as YAML with comments.

    The first rows are looked at, names of columns count most. Nothing is written.

    Args:
        source: A file, a folder or a pattern.

    Raises:
        DataError: There is no file, or no column looks like users or like items.
    """
    paths = find_files(source)
    files = [LogFile(path) for path in paths]
    tables = _side_tables(files)
    log = next(file for file in files if file not in tables)
    count, sample = _sample(log)
    seen = {name: _look(name, sample[name]) for name in sample.columns}
    roles = _roles(seen, log)
    lines = [
        f"# Proposed from the first {count:,} rows of {log.path.name}: {', '.join(log.columns)[:200]}",
        "# Read it, change what is wrong, then: lain prepare log SOURCE OUT --schema THIS-FILE",
        f"name: {_plain(re.sub(r'[^A-Za-z0-9_-]', '', source.resolve().name.split('.')[0]) or 'log')}",
        *_columns(roles, seen),
        *_source(log, files, tables, source),
        *_features(roles, seen, tables),
        *_history(roles, seen),
        *_splits(roles, seen),
    ]
    return "\n".join(lines) + "\n"


def _sample(file: LogFile) -> tuple[int, pl.DataFrame]:
    readable = [name for name in file.columns if file.types[name] is not None]
    pieces, count = [], 0
    for _, piece in file.pieces(readable, Progress(False)):
        pieces.append(piece)
        count += len(piece)
        if count >= _SAMPLE:
            break
    return count, pl.concat(pieces)


def _look(name: str, values: pl.Series) -> _Seen:
    if isinstance(values.dtype, (pl.List, pl.Array)):
        inner = values.explode(empty_as_null=False, keep_nulls=False)
        return _Seen(name, inner, None, inner.n_unique(), values.null_count() / max(len(values), 1))
    number = None
    if values.dtype.is_numeric():
        number = values.cast(pl.Float64)
    elif values.dtype == pl.String:
        cast = values.cast(pl.Float64, strict=False)
        number = cast if cast.null_count() == values.null_count() and len(cast.drop_nulls()) else None
    there = values.drop_nulls()
    return _Seen(name, values, number, there.n_unique(), values.null_count() / max(len(values), 1))


def _side_tables(files: list[LogFile]) -> list[LogFile]:
    """Files without a user and an item, or without a time and a label, beside a fuller one."""
    if len(files) < 2:
        return []
    widest = max(files, key=lambda file: sum(bool(_named(role, file.columns)) for role in _ROLES))
    return [file for file in files if set(file.columns) != set(widest.columns)]


def _named(role: str, names: list[str]) -> list[str]:
    return [
        name for name in names if re.search(_ROLES[role], re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    ]


def _roles(seen: dict[str, _Seen], log: LogFile) -> dict[str, str]:
    roles: dict[str, str] = {}
    for role in ("label", "rating", "user", "item", "time", "split"):
        for name in _named(role, list(seen)):
            number = seen[name].number
            values = set(number.drop_nulls().unique().to_list()) if number is not None else set()
            if name in roles.values() or (role == "label" and not (values and values <= {0.0, 1.0})):
                continue
            if role == "time" and number is not None and seen[name].distinct < 10 < len(number):
                continue
            roles[role] = name
            break
    missing = [role for role in ("user", "item") if role not in roles]
    if missing:
        raise DataError(f"{log.path}: no column looks like the {missing[0]} ({', '.join(log.columns)}); "
                        "write the schema "
                        "by hand: columns: {user: ..., item: ..., time: ..., label: ...}")  # fmt: skip
    return roles


def _columns(roles: dict[str, str], seen: dict[str, _Seen]) -> list[str]:
    def line(role: str, name: str) -> str:
        return f"  {role}: {_plain(name)}  # {seen[name].examples}"

    lines = ["columns:", line("user", roles["user"]), line("item", roles["item"])]
    if "time" in roles:
        lines.append(line("time", roles["time"]))
    else:
        lines.append("  # time: none found; without one, histories must be given (history.given)")
    if "label" in roles:
        share = float(seen[roles["label"]].number.mean() or 0)  # type: ignore[union-attr,arg-type]  # a label is a number
        lines.append(f"{line('label', roles['label'])}; {share:.1%} are 1")
    elif "rating" in roles:
        lines.append(
            f'  label: "{_quoted(roles["rating"])} >= 4"  # assumed: what counts as a click; '
            f"{seen[roles['rating']].examples}"
        )
    else:
        lines.append('  # label: none found; a column of 0 and 1, or a rule as "rating >= 4"')
    return lines


def _source(log: LogFile, files: list[LogFile], tables: list[LogFile], source: Path) -> list[str]:
    lines = []
    if tables:
        names = [file.path.name for file in files if file not in tables]
        pattern = names[0] if len(names) == 1 else f"{_common(names)}*{log.path.suffix}"
        lines.append(f"source: {{files: {_plain(pattern)}}}")
    if log.is_text:
        shown = {"\t": "a tab"}.get(str(log.separator), repr(log.separator))
        lines.append(f"# columns are separated by {shown}; source: {{separator: ...}} changes that")
    lines.append("# times are in UTC unless they say otherwise; time: {zone: Europe/Copenhagen} changes that")
    return lines


def _common(names: list[str]) -> str:
    shortest = min(names, key=len)
    return next(
        shortest[:n] for n in range(len(shortest), -1, -1) if all(x.startswith(shortest[:n]) for x in names)
    )


def _features(roles: dict[str, str], seen: dict[str, _Seen], tables: list[LogFile]) -> list[str]:
    lines = ["features:  # of the row unless 'source' says item or user; the item's id is one already (ids)"]
    for name, column in seen.items():
        if name not in roles.values():
            owner = _owner(column.values, seen[roles["item"]].values, seen[roles["user"]].values)
            lines.append(_feature(name, column, owner))
    if "time" in roles:
        lines += ["  hour: {kind: hour}", "  weekday: {kind: weekday}"]
    sides: dict[str, list[str]] = {"items": [], "users": []}
    for table in tables:
        kind, key = _kind_of(table, roles)
        if kind is None:
            lines.append(f"  # {table.path.name} has neither {roles['item']} nor {roles['user']}: not used")
            continue
        _, sample = _sample(table)
        if sample[key].is_duplicated().any():
            lines.append(
                f"  # {table.path.name}: has a {key} more than once, so it is no table of {kind}: not used"
            )
            continue
        sides[kind].append(f"  - {{file: {_plain(table.path.name)}, key: {_plain(key)}}}")
        for name in sample.columns:
            if name != key:
                lines.append(_feature(name, _look(name, sample[name]), f"source: {kind[:-1]}, "))
    for kind, found in sides.items():
        if found:
            lines += [f"{kind}:", *found]
    return lines


def _kind_of(table: LogFile, roles: dict[str, str]) -> tuple[str | None, str]:
    for kind, role in (("items", "item"), ("users", "user")):
        named = [name for name in table.columns if name == roles[role]] or _named(role, table.columns)
        if named:
            return kind, named[0]
    return None, ""


def _owner(values: pl.Series, item: pl.Series, user: pl.Series) -> str:
    """Whose a column is: the item's or the user's if it never changes for one that is there often."""
    if len(values) != len(item):
        return ""
    for source, key in (("item", item), ("user", user)):
        frame = pl.DataFrame({"k": key, "v": values.cast(pl.String)})
        several = frame.group_by("k").agg(pl.len().alias("n"), pl.col("v").n_unique().alias("d"))
        several = several.filter(pl.col("n") > 1)
        if len(several) >= 10 and bool((several["d"] == 1).all()):
            return f"source: {source}, "
    return ""


def _feature(name: str, seen: _Seen, source: str = "") -> str:
    kind, width = "categorical", len(seen.values.drop_nulls())
    if seen.missing == 1:
        return f"  # {name}: no value at all"
    if isinstance(seen.values.dtype, pl.List) or (
        seen.number is None and "|" in str(seen.values.drop_nulls().head(50).to_list())
    ):
        kind = "list, separator: '|'" if seen.values.dtype == pl.String else "list"
    elif seen.distinct == 1 and not seen.missing:
        return f"  # {name}: always {seen.examples.rpartition(', as ')[2]}: left out"
    elif seen.number is not None and (
        not _whole(seen.number) or (seen.distinct > _MEASURE and not re.search(r"id$|_id|code", name.lower()))
    ):
        kind = "buckets"
    elif seen.number is None and seen.distinct > max(50, _CATEGORIES * width):
        return f"  # {name}: free text or an id of its own ({seen.examples}): left out"
    line = f"{_plain(name)}: {{{source}kind: {kind}}}  # {seen.examples}"
    if _OUTCOME.search(name):
        return f"  # {line}; looks like an outcome of the row, known only afterwards: left out"
    if _STATISTIC.search(name):
        return f"  # {line}; looks like a statistic over the whole period, test included: left out"
    return f"  {line}"


def _whole(number: pl.Series) -> bool:
    return bool((number.drop_nulls() % 1 == 0).all())


def _history(roles: dict[str, str], seen: dict[str, _Seen]) -> list[str]:
    lines = ["history:"]
    if "label" in roles:
        lines.append(
            f'  events: "{_quoted(roles["label"])} == 1"  '
            "# assumed: clicks are the behaviours; all: every row is one"
        )
    else:
        lines.append("  events: all  # assumed: every row is a behaviour")
    outcomes = [name for name in seen if _OUTCOME.search(name) and name not in roles.values()]
    if outcomes:
        lines.append(
            f"  # columns: {{{outcomes[0]}: {{}}}}  # what is known of a behaviour afterwards may stand here"
        )
    return lines


def _splits(roles: dict[str, str], seen: dict[str, _Seen]) -> list[str]:
    if "split" in roles:
        values = sorted(str(value) for value in seen[roles["split"]].values.drop_nulls().unique())
        return [f"splits: {{by: column, column: {_plain(roles['split'])}}}  # holds {', '.join(values[:5])}"]
    if "time" in roles:
        return ["splits: {by: time, fractions: [0.8, 0.1, 0.1]}  # first 80 % in time train, last 10 % test"]
    return ["splits: {by: random, fractions: [0.8, 0.1, 0.1]}"]


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[^\W\d][\w.]*", name) else f"`{name}`"


def _plain(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z_][\w.-]*", text) else "'" + text.replace("'", "''") + "'"
