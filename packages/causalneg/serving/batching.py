"""Requests that wait at the same time are done together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from common.service import BusyError

Job = TypeVar("Job")
Result = TypeVar("Result")


class Batcher(Generic[Job, Result]):
    """Runs a function on all jobs that wait; one thread, so that it never runs twice at once.

    No job waits for others to come: while a batch runs, the next one gathers. So a lone request has the
    latency of a batch of one, and many requests have the throughput of large batches.

    Args:
        run: Gives the results of some jobs, in their order.
        size: What a job counts towards ``most``.
        most: Size of a batch at most; a larger job is a batch of its own.
        waiting: Jobs that may wait.
        notice: Told the number of jobs of each batch.

    Raises:
        ValueError: ``most`` or ``waiting`` is not positive.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Job]], Sequence[Result]],
        *,
        size: Callable[[Job], int],
        most: int = 64,
        waiting: int = 1024,
        notice: Callable[[int], None] = lambda jobs: None,
    ) -> None:
        for name, value in (("most", most), ("waiting", waiting)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self._run, self._size, self._most, self._notice = run, size, most, notice
        self._jobs: queue.Queue[tuple[Job, Future[Result]]] = queue.Queue(waiting)
        self._next: tuple[Job, Future[Result]] | None = None
        threading.Thread(target=self._work, name="batcher", daemon=True).start()

    def submit(self, job: Job) -> Future[Result]:
        """Have a job done.

        Raises:
            BusyError: Too many wait already.
        """
        result: Future[Result] = Future()
        try:
            self._jobs.put_nowait((job, result))
        except queue.Full:
            raise BusyError("too many requests wait; try again in a second") from None
        return result

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return self._jobs.qsize()

    def _gather(self) -> list[tuple[Job, Future[Result]]]:
        first = self._next or self._jobs.get()
        self._next = None
        batch, size = [first], self._size(first[0])
        while size < self._most:
            try:
                entry = self._jobs.get_nowait()
            except queue.Empty:
                break
            size += self._size(entry[0])
            if size > self._most:
                self._next = entry
                break
            batch.append(entry)
        return batch

    def _work(self) -> None:
        while True:
            batch = [(job, result) for job, result in self._gather() if result.set_running_or_notify_cancel()]
            if not batch:
                continue
            self._notice(len(batch))
            try:
                found = self._run([job for job, _ in batch])
                for (_, result), one in zip(batch, found, strict=True):
                    result.set_result(one)
            except Exception as error:
                for _, result in batch:
                    if not result.done():
                        result.set_exception(error)
