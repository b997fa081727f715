"""The data set of a click-through study, prepared once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import config
from common.errors import ConfigError, DataError, suggest
from common.study.prepare import Source, check_source, files_fingerprint, is_made, make_once
from lain.formats import prepare
from lain.formats.log import load_schema
from lain.formats.log.builtin import BUILTIN, builtin_schema
from lain.formats.log.plan import open_plan
from lain.formats.log.schema import LogSchema
from lain.formats.tables import Progress
from lain.world import WorldConfig, make_world

SOURCES = {
    "kuairand": Source(
        "KuaiRand-Pure",
        (
            "val.parquet",
            "test.parquet",
            "user_sequences.parquet",
            "item_features.parquet",
            "user_features.parquet",
        ),
        "https://kuairand.com",
    ),
    "movielens": Source(
        "MovieLens (ml-latest-small)",
        ("ratings.csv", "movies.csv"),
        "https://grouplens.org/datasets/movielens/latest/",
    ),
    "reczoo": Source(
        "a data set in the reczoo x2 layout",
        ("train.parquet", "valid.parquet", "test.parquet", "user_info.parquet", "item_info.parquet"),
        "https://huggingface.co/reczoo",
    ),
}


@dataclass(frozen=True)
class PreparedCTR:
    """A prepared data set.

    Args:
        path: Its folder.
        words: What it holds, in a line.
        fingerprint: Fingerprint of its content.
    """

    path: Path
    words: str
    fingerprint: str


def prepare_data(
    options: Mapping[str, Any], source: Path | None, folder: Path, report: Callable[[str], None]
) -> PreparedCTR:
    """Prepare the data of a study into ``folder/FORMAT``, unless it is there, of the same options and files.

    Args:
        options: ``format`` and the options of that format.
        source: Folder of the source files, where the format needs one; data/FORMAT by default.
        folder: Where prepared data sets lie.
        report: Called with a line when there is something to do.

    Raises:
        ConfigError: There is no such format.
        DataError: A source file is missing.
    """
    rest = dict(options)
    kind = str(rest.pop("format", ""))
    known = ["world", "log", *SOURCES, *BUILTIN]
    if kind not in known:
        raise ConfigError(f"data.format: {kind!r} is not one of {', '.join(known)}{suggest(kind, known)}")
    path = folder / kind
    wanted: dict[str, Any] = {"options": dict(options)}
    make: Callable[[], object]
    if kind == "world":
        world = config.load(WorldConfig, None, base=rest)

        def make() -> object:
            return make_world(world, path)

    elif kind == "log" or kind in BUILTIN:
        log = source or Path("data") / kind
        file = Path(str(rest.pop("schema", ""))) if kind == "log" else None
        if file is not None and not file.name:
            raise ConfigError("data.schema: missing; `lain prepare log SOURCE --propose` prints one")
        ConfigError.raise_if(f"data.{name}: is no option of {kind}" for name in rest)
        schema = load_schema(file) if file is not None else builtin_schema(kind, log)
        wanted["source"] = files_fingerprint([*([file] if file else []), *log_files(schema, log)])

        def make() -> object:
            return prepare(kind, log, path, schema=file, progress=True)

    else:
        files = check_source(SOURCES[kind], source or Path("data") / kind)
        wanted["source"] = files_fingerprint(files / name for name in SOURCES[kind].files)

        def make() -> object:
            return prepare(kind, files, path, **rest)

    if not is_made(path, wanted):
        report(f"preparing {kind} into {path}")
    make_once(path, wanted, make)
    about = json.loads((path / "dataset.json").read_text())
    rows = ", ".join(f"{count} {split}" for split, count in about["splits"].items())
    words = f"{about['name']}, {about['num_users']} users, {about['num_items']} items, rows: {rows}"
    return PreparedCTR(path, f"{words}; fingerprint {about['fingerprint']}", str(about["fingerprint"]))


def log_files(schema: LogSchema, source: Path) -> list[Path]:
    """All files that a log is read from.

    Args:
        schema: What its columns mean.
        source: A file, a folder or a pattern.

    Raises:
        ConfigError: The schema has mistakes.
        DataError: A file or a column is missing.
    """
    plan = open_plan(schema, source, Progress(False))
    rows, given = ([file for file, _ in some] for some in (plan.rows, plan.given))
    tables = [file for table in plan.tables for file in table.files]
    return sorted({file.path for file in (*rows, *given, *plan.past, *tables)})


def recognise(source: Path) -> str | None:
    """The public log whose files a folder holds, with the columns that its schema names; None for any other.

    Of several that fit, the one that reads the most files.

    Args:
        source: The folder.
    """
    found: dict[str, int] = {}
    for name in BUILTIN if source.is_dir() else ():
        schema = builtin_schema(name, source)
        if schema.source.files is None and not schema.splits.files:
            continue  # any file would do
        try:
            found[name] = len(log_files(schema, source))
        except (ConfigError, DataError):
            continue
    return max(found, key=lambda name: found[name], default=None)
