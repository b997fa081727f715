"""The data set as Lightning sees it: batches of three splits, and the place reached in an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from common.training.fit import position
from lain.data.batch import Batch, Batches
from lain.data.sampler import StratifiedBatchSampler
from lain.data.store import Store


class CTRData(L.LightningDataModule):
    """Batches of a prepared data set.

    Args:
        path: The prepared folder.
        max_length: Behaviours of a history that are kept, counted from its end.
        batch_size: Impressions per training step.
        eval_batch_size: Impressions per step without gradient.
        seed: Decides the order of the training rows.
        workers: Loader processes; 0 loads in the training process.
        columns: Columns of the behaviours to read with the items.

    Raises:
        DataError: The folder is no prepared data set, or has no such column.
        ValueError: A size is not positive.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_length: int,
        batch_size: int,
        eval_batch_size: int = 2048,
        seed: int = 0,
        workers: int = 0,
        columns: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if eval_batch_size < 1:
            raise ValueError(f"eval_batch_size must be at least 1, got {eval_batch_size}")
        self.store = Store.open(path)
        self.max_length, self.batch_size, self.eval_batch_size = max_length, batch_size, eval_batch_size
        self.seed, self.workers = seed, workers
        self.columns = tuple(columns)
        for name in self.columns:
            self.store.column(name)
        self._sampler: StratifiedBatchSampler | None = None
        self._resume = (0, 0)

    def batches(self, split: str) -> Batches:
        """The batch maker of a split."""
        return Batches(self.store, self.store.split(split), max_length=self.max_length, columns=self.columns)

    def eval_loader(self, split: str) -> DataLoader[Batch]:
        """The split's rows in their own order."""
        batches = self.batches(split)
        sampler = StratifiedBatchSampler(batches.cost, batch_size=self.eval_batch_size, shuffle=False)
        return DataLoader(batches, sampler=sampler, batch_size=None, num_workers=self.workers)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches of even cost; after a resume the first epoch goes on where it stopped."""
        batches = self.batches("train")
        trainer = self.trainer
        self._sampler = StratifiedBatchSampler(
            batches.cost,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            processes=trainer.world_size if trainer else 1,
        )
        self._sampler.epoch, self._sampler.skip = self._resume
        self._resume = (0, 0)
        return DataLoader(
            batches,
            sampler=self._sampler,
            batch_size=None,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """The ``valid`` split."""
        return self.eval_loader("valid")

    def transfer_batch_to_device(self, batch: Batch, device: Any, dataloader_idx: int) -> Batch:
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
