"""What is looked at in the runs of encoders: the definition of their W&B dashboard."""

from __future__ import annotations

from common.dashboard import Chart, Dashboard, Section

SOURCES = ("positive", "mined", "generated")

DASHBOARD = Dashboard(
    "causalneg",
    "CausalNeg dense retrieval",
    "Do written negatives make a better encoder, or does it learn who wrote a text?",
    (
        Section(
            "Results",
            "Retrieval on the clean corpus, and on its twin in which half of the documents are in the "
            "writer's style: an encoder that holds the style against a text loses there.",
            (
                Chart("nDCG@10, clean and mixed", ("test/ndcg@10", "test/ndcg@10/mixed"), kind="bar"),
                Chart(
                    "nDCG@10 on mixed by style of the gold",
                    ("test/ndcg@10/mixed-styled", "test/ndcg@10/mixed-plain"),
                    kind="bar",
                ),
                Chart(
                    "Recall@100, clean and mixed", ("test/recall@100", "test/recall@100/mixed"), kind="bar"
                ),
                Chart("All metrics", ("results",), kind="table"),
            ),
        ),
        Section(
            "Source shortcut",
            "What the encoder knows and uses of where a negative comes from, on queries that were not "
            "trained on. A style shift of 0 and a source AUC of .5 are no shortcut; read them beside the "
            "values before training.",
            (
                Chart(
                    "Style shift, after and before training",
                    ("diagnosis/style_shift", "diagnosis/untrained/style_shift"),
                    kind="bar",
                ),
                Chart(
                    "Source AUC of the score",
                    ("diagnosis/source_auc", "diagnosis/untrained/source_auc"),
                    kind="bar",
                ),
                Chart(
                    "Mutual information of source and score, bits",
                    ("diagnosis/mutual_information", "diagnosis/untrained/mutual_information"),
                    kind="bar",
                ),
                Chart("Style shift over training", ("probe/style_shift",)),
                Chart("Source AUC over training", ("probe/source_auc", "probe/source_auc_within")),
                Chart("Mutual information over training", ("probe/mutual_information",)),
                *(
                    Chart(f"Similarity of {source} texts", (f"diagnosis/similarity/{source}",))
                    for source in SOURCES
                ),
            ),
        ),
        Section(
            "Training",
            "The loss and its parts, and what the generated negatives still teach: a gradient share near 0 "
            "says that they are ignored.",
            (
                Chart("Loss", ("train/loss",)),
                Chart("Parts of the loss", ("train/info_nce", "train/entropy")),
                Chart("Gradient share of generated negatives", ("train/gradient_share",)),
                Chart("Gradient cosine", ("train/gradient_cosine", "train/gradient_cosine_mined")),
                Chart("Gradient norm", ("train/gradient_norm",)),
                Chart("nDCG@10, valid", ("valid/ndcg@10",)),
                Chart("Recall@100, valid", ("valid/recall@100",)),
            ),
        ),
        Section(
            "Machine",
            "What the training costs.",
            (
                Chart("Queries per second", ("system/samples_per_second",)),
                Chart("Peak memory, bytes", ("system/memory_bytes",)),
            ),
        ),
    ),
)
"""The definition."""
