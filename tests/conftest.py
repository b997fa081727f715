"""What all tests share."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

REPO = Path(__file__).resolve().parents[1]

# A key of whoever runs the tests must not send them anywhere.
for _name in ("WANDB_API_KEY", "WANDB_MODE"):
    os.environ.pop(_name, None)

# Tests do not time: a busy machine is no fault of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with public data that stands beside the checkout on some machines."""
    path = REPO.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"no shared data: {path} does not exist")
    return path


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Sums in the same order on every machine, and no quarrel over cores between parallel tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests talk to this machine only."""
    connect = socket.socket.connect

    def local(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])
            if not (host.startswith("127.") or host in ("localhost", "::1")):
                raise AssertionError(f"a test tried to reach {host} over the network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)
