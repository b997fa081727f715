"""A page about a written set: counts, lengths, overlap with the queries, what a bag of words can tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from causalneg.data import Dataset, resolve_passage
from causalneg.data.schema import Example
from causalneg.generation.verification.heuristics import Verification
from causalneg.text.corpus import Corpus
from causalneg.text.words import content_words, words
from common.report.tables import format_number, markdown_table

_CARD_TEXTS = 4000
_FOLDS = 5


def source_auc(one: Sequence[str], other: Sequence[str], groups: Sequence[str], *, seed: int = 0) -> float:
    """How well a bag of words tells two kinds of text apart: the area under its ROC curve, .5 for not at all.

    A logistic regression on hashed words, each text judged by one that was trained on other groups.

    Args:
        one: Texts of the kind that gets the high scores.
        other: Texts of the other kind.
        groups: Group (the query) of each text, those of ``one`` first.
        seed: Of the regression.

    Returns:
        The AUC; not a number with fewer than two groups of each kind.
    """
    # Only a data card needs these, and they take their time.
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold

    names, group = np.unique(list(groups), return_inverse=True)
    label = np.repeat([1, 0], [len(one), len(other)])
    if len(names) < 2 or min((len(set(group[label == kind])) for kind in (0, 1)), default=0) < 2:
        return float("nan")
    bags = HashingVectorizer(n_features=2**18, alternate_sign=False, norm="l2").transform([*one, *other])
    bags = bags[:, np.unique(bags.indices)]
    score = np.full(len(label), np.nan)
    for train, test in GroupKFold(min(_FOLDS, len(names))).split(bags, label, group):
        if len(set(label[train])) == 2:
            model = LogisticRegression(C=10.0, solver="liblinear", random_state=seed)
            model.fit(bags[train], label[train])
            score[test] = model.decision_function(bags[test])
    seen = np.isfinite(score)
    return float(roc_auc_score(label[seen], score[seen])) if len(set(label[seen])) == 2 else float("nan")


def card_figures(checked: Verification, mined: Sequence[Example], dataset: Dataset) -> dict[str, Any]:
    """The figures of a data card.

    Args:
        checked: The verified set.
        mined: The mined set that it was written for; gives what to compare with.
        dataset: Where documents are.

    Returns:
        ``report``: the verifier's figures; ``written`` and ``mined``: number, length in words (mean, and
        percentiles 10, 50, 90) and lexical overlap (share of the query's weight) of the texts; ``source_auc``
        of a bag of words, ``positive_auc`` of the same between positives and mined ones; ``tokens``.
    """
    corpus = Corpus.of(dataset)
    written = [
        (e.query.id, e.query.text, n) for e in checked.kept for n in e.negatives if n.source == "generated"
    ]
    found = [(e.query.id, e.query.text, n) for e in mined for n in e.negatives if n.source == "mined"]
    right = [(e.query.id, e.query.text, e.positives[0]) for e in mined]
    asked = {query for query, _, _ in written}
    # Queries with one positive stay together: what was written for them shares its words.
    group = {e.query.id: passage.document_id or e.query.id for e in mined for passage in e.positives[:1]}
    kinds: dict[str, list[tuple[str, str, str]]] = {}
    for name, rows in (("written", written), ("mined", found), ("positive", right)):
        own = [row for row in rows if not asked or row[0] in asked]
        step = max(1, -(-len(own) // _CARD_TEXTS))
        kinds[name] = [(query, text, resolve_passage(p, dataset)) for query, text, p in own[::step]]
    texts = {name: [text for _, _, text in rows] for name, rows in kinds.items()}
    queries = {name: [query for query, _, _ in rows] for name, rows in kinds.items()}
    figures: dict[str, Any] = {"report": checked.report.to_dict()}
    for name, number in (("written", len(written)), ("mined", len(found))):
        lengths = [len(words(text)) for text in texts[name]]
        overlaps = [
            corpus.coverage(corpus.weights(query), set(content_words(text))) for _, query, text in kinds[name]
        ]
        low, middle, high = np.percentile(lengths, (10, 50, 90)) if lengths else (np.nan,) * 3
        figures[name] = {
            "number": number,
            "words_mean": float(np.mean(lengths)) if lengths else float("nan"),
            "words_10": float(low),
            "words_50": float(middle),
            "words_90": float(high),
            "overlap": float(np.mean(overlaps)) if overlaps else float("nan"),
        }
    for name, one in (("source_auc", "written"), ("positive_auc", "positive")):
        groups = [group.get(query, query) for query in (*queries[one], *queries["mined"])]
        figures[name] = source_auc(texts[one], texts["mined"], groups)
    kept = {id(n): n for e in (*checked.kept, *checked.rejected) for n in e.negatives}
    figures["tokens"] = sum(n.tokens for n in kept.values())
    return figures


def data_card(checked: Verification, mined: Sequence[Example], dataset: Dataset) -> str:
    """A page about a written set, in Markdown; see :func:`card_figures`.

    Args:
        checked: The verified set.
        mined: The mined set that it was written for.
        dataset: Where documents are.
    """
    figures = card_figures(checked, mined, dataset)
    headers = ["negatives", "number", "words, mean", "10 %", "50 %", "90 %", "overlap with the query"]
    rows = []
    for name in ("written", "mined"):
        own = figures[name]
        rows.append(
            [
                name,
                str(own["number"]),
                format_number(own["words_mean"], 1),
                *(format_number(own[f"words_{part}"], 0) for part in (10, 50, 90)),
                format_number(own["overlap"], 3),
            ]
        )
    return "\n".join(
        [
            "# Written negatives",
            "",
            checked.report.to_markdown(),
            "",
            markdown_table(headers, rows),
            f"AUC of a bag of words (.5: it cannot tell): written from mined negatives "
            f"{format_number(figures['source_auc'], 3)}, positives from mined negatives "
            f"{format_number(figures['positive_auc'], 3)}.",
            "",
        ]
    )
