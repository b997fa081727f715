"""Schemas of public logs that come with this program."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from lain.formats.log.schema import LogSchema, load_schema

_FOLDER = files("lain.formats") / "schemas"
BUILTIN: dict[str, str] = {
    entry.name.removesuffix(".yaml"): entry.name
    for entry in sorted(_FOLDER.iterdir(), key=lambda entry: entry.name)
    if entry.name.endswith(".yaml")
}
"""File of each schema, by the name of its format."""


def builtin_schema(name: str, source: Path) -> LogSchema:
    """The schema of a public log.

    Args:
        name: Its format.
        source: The folder with its files.
    """
    return load_schema(Path(str(_FOLDER / BUILTIN[name])))
