"""The sides of a speed comparison, each in a process of its own, asked and answering in lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from common.errors import BackendError, ConfigError
from common.machine import peak_memory


class SideProcess:
    """One side in a process of its own.

    Args:
        name: What to call it in messages.
        script: What the process runs.
        python: Its interpreter.
        threads: Threads that its libraries may use.
        environment: What it finds in its environment beside this process's.
    """

    def __init__(
        self,
        name: str,
        script: Path,
        *,
        python: str,
        threads: int,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.script, self.python = name, script, python
        limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._environment = os.environ | limits | dict(environment or {})

    def __enter__(self) -> Self:
        """Start the process.

        Raises:
            ConfigError: The interpreter cannot be started.
        """
        self._log: IO[str] = tempfile.TemporaryFile("w+")
        try:
            self._process = subprocess.Popen(
                [self.python, str(self.script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env=self._environment,
            )
        except OSError as error:
            self._log.close()
            raise ConfigError(f"{self.python}: cannot be started ({error.strerror})") from error
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            BackendError: The process ended instead.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            self._log.seek(0)
            left = [text for text in self._log.read().splitlines() if text.strip()]
            code = self._process.wait()
            raise BackendError(f"{self.name}: ended with code {code}: {left[-1] if left else 'no message'}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def peak_memory(self) -> int:
        """The most main memory that the process has held so far, in bytes."""
        return peak_memory(self._process.pid)
