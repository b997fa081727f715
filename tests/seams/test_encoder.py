"""An encoder is one file and one line in ENCODERS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from causalneg.encoders import ENCODERS, load_encoder
from causalneg.training.build import make_encoder
from causalneg.training.config import TrainConfig
from common.errors import DataError
from tiny_retrieval import causalneg, tiny_data, train

FILE = '''
from __future__ import annotations
import zlib
from typing import Annotated, Any, ClassVar
import numpy as np
import torch
from annotated_types import Ge
from torch import nn
from causalneg.encoders.base import WEIGHTS_FILE, Encoder, load_weights, normalize, save_weights
from common.ragged import Ragged

class Hashed(Encoder):
    """A vector for each bucket that words are hashed into."""

    kind: ClassVar[str] = "hashed"
    default_learning_rate: ClassVar[float] = 0.01

    def __init__(self, *, dim: int, buckets: int) -> None:
        super().__init__(dim=dim, max_tokens=64)
        self.buckets = buckets
        self.table = nn.Embedding(buckets, dim)

    @classmethod
    def build(cls, *, seed: int, dim: Annotated[int, Ge(1)] = 8, buckets: int = 97) -> Hashed:
        """Random vectors.

        Args:
            seed: Of the vectors.
            dim: Length of a vector.
            buckets: Number of buckets.
        """
        torch.manual_seed(seed)
        return cls(dim=dim, buckets=buckets)

    def _tokenize(self, texts: list[str]) -> tuple[Ragged, Any]:
        rows = [[zlib.crc32(word.encode()) % self.buckets for word in text.lower().split()] for text in texts]
        return Ragged.from_lists(rows), np.zeros(0, dtype=np.int64)

    def forward(self, ids: Any, offsets: Any, *, query: bool) -> Any:
        return normalize(nn.functional.embedding_bag(ids.long(), self.table.weight, offsets[:-1].long()))

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.table.weight]}]

    def settings(self) -> dict[str, Any]:
        return {"dim": self.dim, "buckets": self.buckets}

    def _save_parts(self, folder: Any) -> None:
        save_weights(self, folder / WEIGHTS_FILE)

    @classmethod
    def _load_parts(cls, folder: Any, settings: dict[str, Any]) -> Encoder:
        encoder = cls(**settings)
        load_weights(encoder, folder / WEIGHTS_FILE)
        return encoder

    def _export_parts(self, folder: Any) -> Any:
        raise NotImplementedError

    def _hash_vocabulary(self, update: Any) -> None:
        update(str(self.buckets).encode())
'''


def test_an_encoder_from_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny_hashed.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    data = tiny_data(tmp_path / "data")
    ENCODERS.add("hashed", "tiny_hashed:Hashed.build")
    try:
        run = train(tmp_path, data, "encoder={name: hashed, dim: 12}")
        again = causalneg("evaluate", run, "--data", data, "--quiet", "--out", tmp_path / "again")
        further = train(tmp_path, data, f"encoder={{name: saved, folder: {run}}}", "name=further")
    finally:
        ENCODERS.remove("hashed")
    metrics = json.loads((run / "record.json").read_text())["metrics"]
    assert 0 < metrics["test/ndcg@10"] <= 1
    assert f"{metrics['test/ndcg@10']:.4f}" in again.stdout
    for folder in (run, further):
        kept = json.loads((folder / "encoder" / "config.json").read_text())
        assert kept == {"causalneg_encoder": "hashed", "dim": 12, "buckets": 97}
    with pytest.raises(DataError, match="unknown kind of encoder 'hashed'"):
        load_encoder(run / "encoder")


def test_an_encoder_under_another_name_than_its_own_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny_hashed.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    ENCODERS.add("other", "tiny_hashed:Hashed.build")
    try:
        config = TrainConfig(data=tmp_path, sets=[], encoder=ENCODERS.component("other"))
        with pytest.raises(TypeError, match="kind is 'hashed', which is registered for another encoder"):
            make_encoder(config, [])
    finally:
        ENCODERS.remove("other")
