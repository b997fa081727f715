"""A finished run that is asked for again in the same words, shown without torch, whose import takes a second.

What a command leaves out are defaults of constructors that stand beside torch code. So without torch two
commands are known to ask for the same run only where they are the same word for word and the same code would
carry them out: that is what a request is. Any other command takes the ordinary way, which compares settings.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config import read_yaml
from common.errors import UserError
from common.files import atomic_write

_REQUEST, _RECORD = ".request.json", "record.json"


def request(config: Path, overrides: Sequence[str], package: str) -> str:
    """A hash of the words of a command, the folder that it is given in, and the code that carries it out.

    Args:
        config: The settings file.
        overrides: ``key=value``.
        package: Import name of the method.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256(json.dumps([str(config), *overrides, str(Path.cwd())]).encode())
    digest.update(config.read_bytes())
    for name in ("common", package):
        found = importlib.util.find_spec(name)
        for root in (found and found.submodule_search_locations) or ():
            for file in sorted(Path(root).rglob("*.py")):
                digest.update(file.read_bytes())
    return digest.hexdigest()


def remember(folder: Path, asked: str) -> None:
    """Note in the folder of a finished run by which request it was made or shown.

    Args:
        folder: The run folder.
        asked: Its :func:`request`.
    """
    content = json.dumps({"request": asked, "identity": _read(folder / _RECORD).get("identity")})
    if not (folder / _REQUEST).is_file() or (folder / _REQUEST).read_text() != content:
        atomic_write(folder / _REQUEST, content)


def finished_before(
    asked: str,
    config: Path,
    overrides: Sequence[str],
    inputs: Callable[[Mapping[str, Any]], Mapping[str, str]],
) -> tuple[Path, str] | None:
    """The folder of the finished run that a request asks for, and when it was finished; None: not known.

    Args:
        asked: The :func:`request`.
        config: The settings file.
        overrides: ``key=value``.
        inputs: Gives the fingerprints of now of what a run reads, from its resolved settings.
    """
    try:
        for folder in _places(config, overrides):
            noted, record = _read(folder / _REQUEST), _read(folder / _RECORD)
            same = noted.get("request") == asked and noted.get("identity") == record.get("identity")
            if same and record.get("finished") and dict(inputs(record["config"])) == record["inputs"]:
                return folder, str(record["finished"])
    except (OSError, UserError, KeyError, TypeError):
        pass  # the ordinary way says what is wrong
    return None


def _places(config: Path, overrides: Sequence[str]) -> Iterator[Path]:
    """Where the run can lie: in the folder that is named, or in any that is noted."""
    given = {key: value for key, value in read_yaml(config).items() if key in ("out", "name")}
    given |= {key: value for key, _, value in (o.partition("=") for o in overrides) if key in ("out", "name")}
    if any("${" in str(value) for value in given.values()):
        return
    out, name = Path(given.get("out") or "runs"), given.get("name")
    if isinstance(name, str) and name != "null":
        yield out / name
    else:
        yield from sorted(noted.parent for noted in out.glob(f"*/{_REQUEST}"))


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
