"""Steps that are done once: skipped while what they read is the same and what they wrote is there."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import atomic_write

Report = Callable[[str], None]

FILE = "recipe.json"
"""What is known of the steps that are done."""


@dataclass(frozen=True)
class Step:
    """One step of several.

    Args:
        name: Its name.
        inputs: Everything that decides its result, as JSON values: settings, and fingerprints of files.
        outputs: What it leaves; while one is missing it is done again.
        run: Does it; gives what later steps need to know, as JSON values. Must go on where it was killed.
    """

    name: str
    inputs: Mapping[str, Any]
    outputs: Sequence[Path]
    run: Callable[[], dict[str, Any]]


class Progress:
    """Does steps in a folder and remembers them.

    Args:
        folder: The folder.
        report: Takes a line a step.

    Raises:
        DataError: What is remembered cannot be read.
    """

    def __init__(self, folder: Path, report: Report) -> None:
        self._file, self._report = folder / FILE, report
        self._begun = time.monotonic()
        try:
            self._known: dict[str, Any] = json.loads(self._file.read_text())
        except FileNotFoundError:
            self._known = {}
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self._file}: cannot be read ({error}); remove it, all is done again"
            ) from error

    def do(self, step: Step) -> dict[str, Any]:
        """What a step came to, now or before."""
        told = json.dumps(dict(step.inputs), sort_keys=True, default=str)
        digest = hashlib.sha256(told.encode()).hexdigest()[:16]
        known = self._known.get(step.name)
        if known and known["inputs"] == digest and all(path.exists() for path in step.outputs):
            self._report(f"{step.name}: as before, {known['seconds']:.0f} s then")
            before: dict[str, Any] = known["result"]
            return before
        begun = time.monotonic()
        self._report(f"{step.name} ...")
        result = step.run()
        seconds = time.monotonic() - begun
        self._known[step.name] = {"inputs": digest, "seconds": round(seconds, 1), "result": result}
        atomic_write(self._file, json.dumps(self._known, indent=1) + "\n")
        total = time.monotonic() - self._begun
        self._report(f"{step.name}: done in {seconds:.0f} s ({total / 60:.1f} min in all)")
        return result
