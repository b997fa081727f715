"""What the data modules of both methods share: batches are moved, and an epoch goes on where it stopped."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

import lightning as L

from common.training.fit import position


@runtime_checkable
class Resumable(Protocol):
    """A sampler that can begin inside an epoch."""

    epoch: int
    """The epoch whose batches it gives."""

    skip: int
    """Batches that it leaves out, once."""


S = TypeVar("S", bound=Resumable)


class ResumableData(L.LightningDataModule):
    """A data module whose state is the place reached in an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self._resume = (0, 0)

    @property
    def rank(self) -> int:
        """Number of this process among those that train together."""
        return self.trainer.global_rank if self.trainer else 0

    @property
    def processes(self) -> int:
        """Number of processes that train together."""
        return self.trainer.world_size if self.trainer else 1

    def resumed(self, sampler: S) -> S:
        """The sampler, set to the place where training goes on; the next one begins a new epoch."""
        sampler.epoch, sampler.skip = self._resume
        self._resume = (0, 0)
        return sampler

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Move a batch, asynchronously where its memory is pinned."""
        return batch.to(device, non_blocking=True)

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches are done."""
        assert self.trainer is not None
        epoch, batches = position(self.trainer)
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind the batches that are done."""
        self._resume = (state["epoch"], state["batches"])
