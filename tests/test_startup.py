"""What a command imports before it does anything."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = {"torch", "lightning", "sklearn", "wandb", "matplotlib", "transformers", "faiss", "polars", "pyarrow"}


@pytest.mark.parametrize("arguments", [["lain", "--help"], ["lain", "train", "--help"],
                                       ["causalneg", "--help"], ["causalneg", "mine", "--help"]])  # fmt: skip
def test_help_takes_no_library_that_takes_seconds(arguments: list[str]) -> None:
    method, *rest = arguments
    code = (
        f"import sys\nfrom {method}.cli import main\nmain({rest}, standalone_mode=False)\n"
        f"print(*({HEAVY} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    *help_text, imported = done.stdout.splitlines()
    assert help_text
    assert imported == ""
