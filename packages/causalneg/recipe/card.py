"""The card of an exported model, as the Hugging Face hub reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from causalneg.data import read_examples
from causalneg.encoders import Encoder
from causalneg.evaluation.ladder import Ladder
from common.report.tables import markdown_table


def model_card(source: Path, sets: Sequence[Path], encoder: Encoder, ladder: Ladder | None) -> str:
    """A model card: fields for the hub, how the model is used, its data, negatives, loss and scores.

    The licence is left to whoever publishes it: it depends on the data and on the start weights.

    Args:
        source: The data.
        sets: Training sets.
        encoder: The encoder.
        ladder: Its scores beside BM25's; None where there are none.
    """
    fields = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "sentence-similarity", "feature-extraction", "causalneg"],
        "license": "other",
        "license_name": "to-be-chosen",
    }
    rows = []
    for path in sets:
        examples = read_examples(path)
        negatives = [negative for example in examples for negative in example.negatives]
        found = ", ".join(sorted({f"{negative.source} by {negative.backend}" for negative in negatives}))
        rows.append([path.name, str(len(examples)), str(len(negatives)), found])
    scores = (
        "There was no split to evaluate on."
        if ladder is None
        else "\n".join([ladder.to_markdown(), "", *ladder.words()])
    )
    return "\n".join(
        [
            "---", yaml.safe_dump(fields, sort_keys=False).strip(), "---", "",
            f"# A retrieval encoder trained on {source.resolve().name}", "",
            f"{encoder.dim} dimensions, {encoder.max_tokens} tokens, cosine similarity.", "",
            "```python", "from sentence_transformers import SentenceTransformer", "",
            'model = SentenceTransformer("model/")',
            "scores = model.encode_query(queries) @ model.encode_document(documents).T", "```", "",
            "## Training", "",
            "InfoNCE over in-batch candidates and the negatives of these sets, by `causalneg recipe`.", "",
            markdown_table(["set", "queries", "negatives", "source"], rows),
            "## Scores", "", scores, "",
        ]
    )  # fmt: skip
