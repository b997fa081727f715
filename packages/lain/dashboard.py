"""What is looked at in the runs of click-through models: the definition of their W&B dashboard."""

from __future__ import annotations

from common.dashboard import Chart, Dashboard, Section

BUCKETS = ("0-50", "50-100", "100-200", "200+")


def _by_bucket(measure: str) -> tuple[str, ...]:
    return tuple(f"test/{measure}/{bucket}" for bucket in BUCKETS)


DASHBOARD = Dashboard(
    "lain",
    "LAIN click-through prediction",
    "Does knowing how long a history is help users of every history length?",
    (
        Section(
            "Results",
            "Test rows, whole and by true history length: read short and long histories apart.",
            (
                Chart("AUC by history length", _by_bucket("auc"), kind="bar"),
                Chart("Logloss by history length", _by_bucket("logloss"), kind="bar"),
                Chart("AUC, test", ("test/auc",), kind="scalar"),
                Chart("Logloss, test", ("test/logloss",), kind="scalar"),
                Chart("Calibration, test", ("test/calibration",), kind="bar"),
                Chart("All metrics", ("results",), kind="table"),
            ),
        ),
        Section(
            "Training",
            "The loss and its parts, and what validation says of every bucket.",
            (
                Chart("Loss", ("train/loss",)),
                Chart("Parts of the loss", ("train/bce", "train/auxiliary")),
                Chart("Gradient norm", ("train/gradient_norm",)),
                Chart("AUC, valid", ("valid/auc",)),
                Chart("Logloss, valid", ("valid/logloss",)),
                Chart("AUC by history length, valid", pattern=r"^valid/auc/"),
                Chart("Logloss by history length, valid", pattern=r"^valid/logloss/"),
            ),
        ),
        Section(
            "Attention",
            "The shape of the attention by true history length, and whether short and long users pull the "
            "same way: a cosine below 0 says that what helps one hurts the other.",
            (
                Chart("Gini of the weights", pattern=r"^attention/.*/gini/"),
                Chart("Entropy of the weights", pattern=r"^attention/.*/entropy/"),
                Chart("Weight on prompts", pattern=r"^attention/.*/prompt_mass/"),
                Chart("Gradient cosine, short and long users", ("gradient_cosine/all",), kind="bar"),
            ),
        ),
        Section(
            "Machine",
            "What the training costs.",
            (
                Chart("Samples per second", ("system/samples_per_second",)),
                Chart("Peak memory, bytes", ("system/memory_bytes",)),
            ),
        ),
    ),
)
"""The definition."""
