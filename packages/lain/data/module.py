"""The data set as Lightning sees it: batches of three splits, and the place reached in an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import DataLoader

from common.training.data import ResumableData
from lain.data.batch import Batch, Batches
from lain.data.sampler import StratifiedBatchSampler
from lain.data.store import Store


class CTRData(ResumableData):
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
        sampler = StratifiedBatchSampler(
            batches.cost,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=self.rank,
            processes=self.processes,
        )
        return DataLoader(
            batches,
            sampler=self.resumed(sampler),
            batch_size=None,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """The ``valid`` split."""
        return self.eval_loader("valid")
