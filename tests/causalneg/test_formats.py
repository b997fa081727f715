"""BEIR folders and training sets: what is written comes back, what is wrong or lost is said."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causalneg.data import (
    FORMATS,
    Dataset,
    export_examples,
    import_examples,
    read_dataset,
    read_examples,
    resolve_passage,
    write_dataset,
    write_examples,
)
from causalneg.data.schema import Document, Example, Negative, Passage, Query, Verdict
from common.errors import ConfigError, DataError

GOOD = {
    "corpus.jsonl": [
        '{"_id": "d1", "title": "Fox", "text": "A red animal.", "metadata": {"year": 1999}, "url": "x"}',
        '{"_id": "d2", "title": "", "text": "Ein Fluß ist 河."}',
        '{"_id": 3, "text": "A number as id, no title."}',
    ],
    "queries.jsonl": [
        '{"_id": "q1", "text": "what is red"}',
        "",
        '{"_id": "q2", "text": "which river", "metadata": {}}',
    ],
    "qrels/train.tsv": [
        "query-id\tcorpus-id\tscore",
        "q2\td2\t2",
        "q1\td1\t1",
        "q1\td2\t0",
        "q1\t3\t-1",
    ],
    "qrels/test.tsv": ["query-id\tcorpus-id\tscore", "q1\t3\t1"],
}


def folder(path: Path, **changed: Sequence[str] | None) -> Path:
    """A small BEIR folder, with files replaced or, by None, left out."""
    for name, lines in (
        GOOD | {key.replace("__", "/").replace("_", "."): v for key, v in changed.items()}
    ).items():
        if lines is not None:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_read(tmp_path: Path) -> None:
    data = read_dataset(folder(tmp_path))
    assert [d.id for d in data.documents] == ["d1", "d2", "3"]
    assert data.documents[0].metadata == {"year": 1999, "url": "x"}
    assert (data.document("d1").content, data.document("3").content) == (
        "Fox A red animal.",
        "A number as id, no title.",
    )
    assert data.index == {"d1": 0, "d2": 1, "3": 2}
    assert list(data.qrels) == ["test", "train"]
    assert data.qrels["train"] == {"q2": {"d2": 2}, "q1": {"d1": 1, "d2": 0, "3": -1}}
    assert data.positives("train") == {"q2": ["d2"], "q1": ["d1"]}
    assert [query.id for query in data.split_queries("train")] == ["q2", "q1"]
    assert list(data.queries) == ["q1", "q2"]
    assert list(read_dataset(tmp_path, splits=["test"]).qrels) == ["test"]
    assert read_dataset(tmp_path, splits=[]).qrels == {}
    with pytest.raises(
        DataError, match=r"split 'tran' was not read \(read: test, train\); did you mean 'train'"
    ):
        data.split_queries("tran")
    with pytest.raises(DataError, match="there is no document 'd9'"):
        data.document("d9")


def test_windows_line_ends_and_byte_order_marks(tmp_path: Path) -> None:
    expected = read_dataset(folder(tmp_path / "a"))
    for name, lines in GOOD.items():
        (tmp_path / "b" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "b" / name).write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    found = read_dataset(tmp_path / "b")
    assert (found.documents, found.queries, found.qrels) == (
        expected.documents,
        expected.queries,
        expected.qrels,
    )


def test_fingerprints_tell_what_was_read(tmp_path: Path) -> None:
    one = read_dataset(folder(tmp_path / "a")).fingerprint
    assert read_dataset(folder(tmp_path / "b")).fingerprint == one
    assert read_dataset(tmp_path / "a", splits=["train"]).fingerprint != one
    changed = [*GOOD["queries.jsonl"], '{"_id": "q3", "text": "z"}']
    assert read_dataset(folder(tmp_path / "c", queries_jsonl=changed)).fingerprint != one


def changed(name: str, at: int, line: str) -> dict[str, list[str]]:
    """The good folder with one line replaced; a line beyond the end is added."""
    lines = list(GOOD[name])
    lines[at - 1 : at] = [line]
    return {name.replace("/", "__").replace(".", "_"): lines}


BAD = [
    ("corpus.jsonl", 2, '{"_id": "d2", "text": "x"', "is not JSON (Expecting ',' delimiter, column 26)"),
    ("corpus.jsonl", 2, '["d2"]', "must be a JSON object in braces, not list"),
    ("corpus.jsonl", 2, '{"text": "x"}', "has no '_id' (a text or a whole number)"),
    ("corpus.jsonl", 2, '{"_id": "d2"}', "'text' must be a text, but is missing"),
    ("corpus.jsonl", 2, '{"_id": "d2", "text": 5}', "'text' must be a text, but is int"),
    ("corpus.jsonl", 2, '{"_id": "d2", "text": "x", "title": []}', "'title' must be a text, but is list"),
    ("corpus.jsonl", 2, '{"_id": "d2", "text": "x", "metadata": 1}', "'metadata' must be an object"),
    ("corpus.jsonl", 2, '{"_id": "d2", "text": " "}', "document 'd2' has an empty text"),
    ("corpus.jsonl", 2, '{"_id": "d2", "title": "Fox", "text": ""}', "empty text beside its title"),
    ("corpus.jsonl", 4, '{"_id": "d1", "text": "x"}', "document id 'd1' is already on line 1"),
    ("corpus.jsonl", 2, '{"_id": "d2", "text": "\\ud800"}', "has half of a surrogate pair"),
    ("queries.jsonl", 3, '{"_id": "q2", "text": ""}', "query 'q2' has an empty text"),
    ("queries.jsonl", 4, '{"_id": "q1", "text": "x"}', "query id 'q1' is already on line 1"),
    ("qrels/train.tsv", 4, "q1 d2 0", "must have 3 columns with tabs between them"),
    ("qrels/train.tsv", 4, "q1\td2\tgood", "score 'good' is not a whole number"),
    ("qrels/train.tsv", 4, "q1\td2\t0.5", "score '0.5' is not a whole number"),
    ("qrels/train.tsv", 6, "q1\td1\t2", "query 'q1' and document 'd1' have already grade 1"),
    ("qrels/train.tsv", 6, "q9\td1\t2", "1 query id in 1 row unknown to queries.jsonl: 'q9'"),
    ("qrels/train.tsv", 6, "q1\td9\t2", "1 document id in 1 row unknown to corpus.jsonl: 'd9'"),
    ("qrels/train.tsv", 2, "q2\td2\t0", "query 'q2' has no document with a grade above 0"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "line", "text", "what"), BAD)
def test_wrong_lines_are_named_or_skipped(tmp_path: Path, name: str, line: int, text: str, what: str) -> None:
    path = folder(tmp_path, **changed(name, line, text))
    with pytest.raises(DataError) as error:
        read_dataset(path)
    assert len(error.value.messages) == 1
    assert str(error.value).startswith(f"{path / name}:{line}: ")
    assert what in str(error.value)
    assert "--skip-bad" in str(error.value)
    said: list[str] = []
    kept = read_dataset(path, skip_bad=True, report=said.append)
    assert len(kept.documents) + len(kept.queries) >= 4
    assert what in said[0]
    assert str(path / name) in said[0]


def test_skipping_keeps_the_others(tmp_path: Path) -> None:
    lines = [
        *GOOD["corpus.jsonl"],
        "{",
        '{"_id": "d4", "title": "Title only", "text": ""}',
        '{"_id": "d1", "text": "x"}',
    ]
    said: list[str] = []
    kept = read_dataset(folder(tmp_path, corpus_jsonl=lines), skip_bad=True, report=said.append)
    assert [d.id for d in kept.documents] == ["d1", "d2", "3", "d4"]
    assert kept.document("d1").text == "A red animal."
    path = tmp_path / "corpus.jsonl"
    left = f"{path}: left out 2 lines, kept 1 line as far as possible (first: line 4: is not JSON (Expecting"
    assert [line[: len(left)] for line in said] == [left]


def test_queries_without_positives_are_kept_apart(tmp_path: Path) -> None:
    path = folder(tmp_path, **changed("qrels/train.tsv", 2, "q2\td2\t0"))
    kept = read_dataset(path, skip_bad=True)
    assert kept.qrels["train"]["q2"] == {"d2": 0}
    assert list(kept.positives("train")) == ["q1"]


def test_many_mistakes_are_counted(tmp_path: Path) -> None:
    rows = ["query-id\tcorpus-id\tscore", "q1\td1\t1", *(f"q1\tx{n % 7}\t1" for n in range(20)), *["bad"] * 9]
    with pytest.raises(DataError) as error:
        read_dataset(folder(tmp_path, qrels__train_tsv=rows), splits=["train"])
    lines = error.value.messages
    assert len(lines) == 6
    assert lines[0].startswith(f"{tmp_path / 'qrels' / 'train.tsv'}:23: must have 3 columns")
    assert lines[-1].endswith("5 more lines like these")
    with pytest.raises(
        DataError,
        match=r"7 document ids in 20 rows unknown to corpus.jsonl: 'x0', 'x1', 'x2', 'x3', 'x4', ",
    ):
        read_dataset(folder(tmp_path, qrels__train_tsv=rows[:-9]), splits=["train"])


def test_mistakes_of_several_files_come_together(tmp_path: Path) -> None:
    path = folder(tmp_path, **changed("corpus.jsonl", 2, "{"), **changed("queries.jsonl", 1, "["))
    with pytest.raises(DataError) as error:
        read_dataset(path)
    assert [re.sub(r": is not JSON.*", "", line) for line in error.value.messages] == [
        f"{path / 'corpus.jsonl'}:2",
        f"{path / 'queries.jsonl'}:1",
    ]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("corpus_jsonl", "corpus.jsonl: missing; a BEIR folder holds corpus.jsonl, queries.jsonl and qrels"),
        ("queries_jsonl", "queries.jsonl: missing; a BEIR folder holds"),
        ("qrels__train_tsv", "train.tsv: missing; there are the splits test"),
    ],
)
def test_missing_files(tmp_path: Path, name: str, line: str) -> None:
    with pytest.raises(DataError, match=line):
        read_dataset(folder(tmp_path, **{name: None}), splits=["train"])


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder; a BEIR folder holds"):
        read_dataset(tmp_path / "none")
    path = folder(tmp_path, qrels__train_tsv=None, qrels__test_tsv=None)
    with pytest.raises(
        DataError, match=r"SPLIT.tsv: missing; .* with the columns query-id, corpus-id, score"
    ):
        read_dataset(path)
    assert read_dataset(path, splits=[]).qrels == {}
    with pytest.raises(DataError, match="no documents"):
        read_dataset(folder(tmp_path, corpus_jsonl=[]))


@pytest.mark.parametrize("header", ["q1\td1\tgood", "query-id corpus-id score", "score\tcorpus-id\tquery-id"])
def test_wrong_headers(tmp_path: Path, header: str) -> None:
    rows = [header, *GOOD["qrels/train.tsv"][1:]]
    for skip_bad in (False, True):
        with pytest.raises(
            DataError, match=r"train.tsv:1: the header must be query-id<TAB>corpus-id<TAB>score"
        ):
            read_dataset(folder(tmp_path, qrels__train_tsv=rows), skip_bad=skip_bad)
    with pytest.raises(DataError, match=r"train.tsv: empty"):
        read_dataset(folder(tmp_path, qrels__train_tsv=[""]))


@pytest.mark.parametrize(
    "rows",
    [
        ["q2\td2\t2", "q1\td1\t1", "q1\td2\t0", "q1\t3\t-1"],
        ["query_id\tcorpus_id\tscore", "q2\td2\t2.0", "q1\td1\t1.", "q1\td2\t0", "q1\t3\t-1.0"],
        ["q2\t0\td2\t2", "q1\t0\td1\t1", "q1\t0\td2\t0", "q1\t0\t3\t-1"],
    ],
    ids=["no-header", "another-header-and-floats", "trec"],
)
def test_other_qrels_files_say_the_same(tmp_path: Path, rows: list[str]) -> None:
    data = read_dataset(folder(tmp_path, qrels__train_tsv=rows), splits=["train"])
    assert data.qrels["train"] == {"q2": {"d2": 2}, "q1": {"d1": 1, "d2": 0, "3": -1}}
    assert data.positives("train") == {"q2": ["d2"], "q1": ["d1"]}


@pytest.mark.parametrize("id", ["a b", "a\tb", " a", "a\n", "a\u00a0b", "a\u2028b"])
def test_ids_that_no_run_file_can_hold_are_refused_at_reading(tmp_path: Path, id: str) -> None:
    for name, line in (("corpus.jsonl", 2), ("queries.jsonl", 2)):
        path = folder(tmp_path / name, **changed(name, line, json.dumps({"_id": id, "text": "x"})))
        with pytest.raises(DataError) as error:
            read_dataset(path, splits=[])
        assert len(error.value.messages) == 1
        assert f"{name}:{line}: " in str(error.value)
        assert f"id {id!r} has a blank, a tab or a line break" in str(error.value)


def test_a_skipped_positive_stays_in_the_denominator(tmp_path: Path) -> None:
    """Skipping the document that answers must not make a system look better."""
    reports: list[str] = []
    path = folder(tmp_path, **changed("corpus.jsonl", 2, "{"))
    data = read_dataset(path, splits=["train"], skip_bad=True, report=reports.append)
    assert data.judged("train") == {"q2": {"d2": 2}, "q1": {"d1": 1, "d2": 0, "3": -1}}
    assert [query.id for query in data.judged_queries("train")] == ["q2", "q1"]
    assert data.positives("train") == {"q1": ["d1"]}  # there is nothing to train on or to mine for q2
    assert [query.id for query in data.split_queries("train")] == ["q1"]
    assert "1 document id in 2 rows unknown to corpus.jsonl: 'd2'" in reports[-1]


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = folder(tmp_path)
    for name in ("queries.jsonl", "qrels/test.tsv"):
        whole = (path / name).read_bytes()
        (path / name).write_bytes(whole + b'{"_id": "\xff"}\n')
        with pytest.raises(DataError, match="is not UTF-8 at byte 10"):
            read_dataset(path)
        (path / name).write_bytes(whole)


# --- There and back -------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
FULL = TEXT.filter(lambda text: text.strip() != "")
IDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).filter(lambda id: id.split() == [id])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
METADATA = st.dictionaries(TEXT, JSON, max_size=2)
DOCUMENTS = st.lists(
    st.builds(Document, id=IDS, text=FULL, title=TEXT, metadata=METADATA),
    min_size=1,
    max_size=4,
    unique_by=lambda document: document.id,
)
QUERIES = st.lists(
    st.builds(Query, id=IDS, text=FULL, metadata=METADATA), max_size=3, unique_by=lambda query: query.id
)


@settings(max_examples=40, deadline=None)
@given(DOCUMENTS, QUERIES, st.data())
def test_folders_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[Document],
    queries: list[Query],
    data: st.DataObject,
) -> None:
    ids = [document.id for document in documents]
    grades = st.dictionaries(st.sampled_from(ids), st.integers(1, 3), min_size=1)
    judged = {query.id: data.draw(grades) for query in queries}
    path = tmp_path_factory.mktemp("beir")
    write_dataset(path, documents, queries, {"train": judged})
    back = read_dataset(path)
    assert back.documents == documents
    assert list(back.queries.values()) == queries
    assert back.qrels == {"train": judged}
    assert list(back.qrels["train"]) == list(judged)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    document, query = Document(id="d", text="x"), Query(id="q", text="x")
    cases: list[tuple[list[Document], list[Query], dict[str, Any], str]] = [
        ([document, document], [], {}, "document id 'd' is there twice"),
        ([document], [query, query], {}, "query id 'q' is there twice"),
        ([Document(id="a\tb", text="x")], [], {}, "has a blank, a tab or a line break"),
        ([document], [query], {"train": {"q": {"e": 1}}}, "query 'q' or document 'e' is unknown"),
        ([document], [query], {"../x": {}}, "split '../x'"),
    ]
    for documents, queries, qrels, line in cases:
        with pytest.raises(DataError, match=line):
            write_dataset(tmp_path / "new", documents, queries, qrels)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="not empty"):
        write_dataset(tmp_path, [document], [], {})


PASSAGES = st.one_of(
    st.builds(Passage, document_id=IDS),
    st.builds(Passage, document_id=st.none() | IDS, text=FULL, title=TEXT, voice=st.none() | TEXT),
)
NEGATIVES = st.builds(
    Negative,
    document_id=st.none() | IDS,
    text=FULL,
    title=TEXT,
    voice=st.none() | TEXT,
    source=st.sampled_from(["mined", "generated"]),
    backend=TEXT,
    requirement=TEXT,
    facet=st.sampled_from([None, "entity", "style"]),
    strategy=st.sampled_from([None, "entity shift"]),
    model=TEXT,
    prompt_version=TEXT,
    seed=st.integers(0, 9),
    rank=st.none() | st.integers(1, 9),
    score=st.none() | st.floats(allow_nan=False),
    tokens=st.integers(0, 99),
    verdict=st.none()
    | st.builds(Verdict, reason=st.sampled_from(["valid", "answers"]), judge=TEXT, detail=TEXT),
)
EXAMPLES = st.lists(
    st.builds(
        Example,
        query=st.builds(Query, id=IDS, text=FULL, metadata=METADATA),
        positives=st.lists(PASSAGES, min_size=1, max_size=3),
        negatives=st.lists(NEGATIVES, max_size=3),
    ),
    max_size=3,
)


@settings(max_examples=40, deadline=None)
@given(EXAMPLES)
def test_own_form_loses_nothing(tmp_path_factory: pytest.TempPathFactory, examples: list[Example]) -> None:
    path = tmp_path_factory.mktemp("own") / "set.jsonl"
    write_examples(path, examples)
    assert read_examples(path) == examples
    assert export_examples(examples, path, format="own") == []
    assert import_examples(path, format="own") == examples


def test_wrong_examples(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    good = Example(query=Query(id="q", text="x"), positives=[Passage(text="y")])
    write_examples(path, [good])
    lines = [
        path.read_text().strip(),
        '{"query": {"id": "q", "text": "x"}, "positives": []}',
        '{"query": {"id": "q"}, "positives": [{"text": "y"}]}',
        '{"query": {"id": "q", "text": "x"}, "positives": [{"text": " "}]}',
        '{"query": {"id": "q", "text": "x"}, "positives": [{"text": "y"}], "extra": 1}',
        "nonsense",
    ]
    path.write_text("\n".join(lines))
    with pytest.raises(DataError) as error:
        read_examples(path)
    found = (
        "positives: List should have at least 1",
        "query.text: Field required",
        "positives.0: Value error, a passage needs a text or a document_id",
        "extra: Extra inputs",
        "is not JSON",
    )
    for number, (line, what) in enumerate(zip(error.value.messages, found, strict=True), start=2):
        assert line.startswith(f"{path}:{number}: {what}")
    said: list[str] = []
    assert read_examples(path, skip_bad=True, report=said.append) == [good]
    assert said[0].startswith(f"{path}: left out 5 lines (first: line 2: positives")
    with pytest.raises(DataError, match="missing; give a file of JSON lines"):
        read_examples(tmp_path / "none.jsonl")


def test_empty_texts_of_a_training_set(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    empty = Negative(document_id="d", text="", source="generated", backend="rules")
    rejected = empty.model_copy(update={"verdict": Verdict(reason="empty", judge="heuristics")})
    cases = [
        (" ", [Passage(text="y")], [], "query 'q' has an empty text"),
        ("x", [Passage(document_id="d", text=" ")], [], "a passage of query 'q' has an empty text"),
        ("x", [Passage(text="y")], [empty], "a passage of query 'q' has an empty text"),
    ]
    for text, positives, negatives, what in cases:
        write_examples(
            path, [Example(query=Query(id="q", text=text), positives=positives, negatives=negatives)]
        )
        with pytest.raises(DataError, match=f"set.jsonl:1: {what}"):
            read_examples(path)
        assert read_examples(path, skip_bad=True) == []
    kept = [Example(query=Query(id="q", text="x"), positives=[Passage(text="y")], negatives=[rejected])]
    write_examples(path, kept)
    assert read_examples(path) == kept  # what was rejected for it can still be read


# --- Other tools ----------------------------------------------------------------------------------------


def texts(examples: Sequence[Example], data: Dataset | None = None) -> list[tuple[str, list[str], list[str]]]:
    """Query, positives and negatives as texts."""
    return [
        (
            example.query.text,
            [resolve_passage(p, data) for p in example.positives],
            [resolve_passage(n, data) for n in example.negatives],
        )
        for example in examples
    ]


PLAIN = st.builds(
    Example,
    query=st.builds(
        Query, id=IDS, text=FULL, metadata=st.just({}) | st.builds(lambda p: {"prompt": p}, FULL)
    ),
    positives=st.lists(FULL, min_size=1, max_size=3, unique_by=str.strip).map(
        lambda found: [Passage(text=text) for text in found]
    ),
    negatives=st.lists(FULL, max_size=4, unique_by=str.strip).map(
        lambda found: [Negative(text=text, source="mined", backend="x") for text in found]
    ),
)
PLAINS = st.lists(PLAIN, max_size=3, unique_by=lambda example: example.query.text)


@pytest.mark.parametrize("format", [name for name in FORMATS if name != "own"])
@settings(max_examples=40, deadline=None)
@given(examples=PLAINS)
def test_texts_come_back(
    tmp_path_factory: pytest.TempPathFactory, format: str, examples: list[Example]
) -> None:
    """Queries, positives and negatives, none included, in every form that has room for them."""
    path = tmp_path_factory.mktemp("set") / "set.jsonl"
    if format == "sentence-transformers":
        fewest = min((len(example.negatives) for example in examples), default=0)
        examples = [e.model_copy(update={"negatives": e.negatives[:fewest]}) for e in examples]
    export_examples(examples, path, format=format)
    back = import_examples(path, format=format, source="generated")
    if format == "sentence-transformers-triplet":
        examples = [example for example in examples if example.negatives]
    assert texts(back) == texts(examples)
    assert all(n.source == "generated" for example in back for n in example.negatives)
    if format in ("flagembedding", "ms-swift"):
        assert [e.query.metadata for e in back] == [e.query.metadata for e in examples]


@settings(max_examples=40, deadline=None)
@given(EXAMPLES)
def test_tevatron_keeps_ids_and_titles(
    tmp_path_factory: pytest.TempPathFactory, examples: list[Example]
) -> None:
    examples = [
        example.model_copy(update={"positives": [p for p in example.positives if p.text is not None]})
        for example in examples
        if any(p.text is not None for p in example.positives)
    ]
    path = tmp_path_factory.mktemp("set") / "set.jsonl"
    export_examples(examples, path, format="tevatron")
    back = import_examples(path, format="tevatron")
    for one, other in zip(examples, back, strict=True):
        assert (one.query.id, one.query.text) == (other.query.id, other.query.text)
        for kind in ("positives", "negatives"):
            wanted = [(p.document_id, p.title, p.text) for p in getattr(one, kind)]
            assert [(p.document_id, p.title, p.text) for p in getattr(other, kind)] == wanted


SET = [
    Example(
        query=Query(id="q1", text="what", metadata={"prompt": "Find it", "level": 3}),
        positives=[Passage(document_id="d1"), Passage(text="own", title="T", voice="naive")],
        negatives=[
            Negative(document_id="d2", source="mined", backend="bm25", rank=3, score=1.5),
            Negative(text="wrong", source="generated", backend="rules", requirement="r"),
        ],
    ),
    Example(query=Query(id="q2", text="who"), positives=[Passage(document_id="d2")]),
]


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_forms_letter_by_letter(tmp_path: Path) -> None:
    data = read_dataset(folder(tmp_path / "data"))
    fox, river, own, path = "Fox A red animal.", "Ein Fluß ist 河.", "T own", tmp_path / "out.jsonl"

    def say(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": text}]

    system = {"role": "system", "content": "Find it"}
    both = [say(river), say("wrong")]
    expected: dict[str, list[Any]] = {
        "sentence-transformers-triplet": [
            {"query": "what", "positive": p, "negative": n} for p in (fox, own) for n in (river, "wrong")
        ],
        "sentence-transformers-list": [
            {"query": "what", "docs": [fox, own, river, "wrong"], "labels": [1, 1, 0, 0]},
            {"query": "who", "docs": [river], "labels": [1]},
        ],
        "tevatron": [
            {
                "query_id": "q1",
                "query": "what",
                "positive_passages": [
                    {"docid": "d1", "title": "Fox", "text": "A red animal."},
                    {"docid": "", "title": "T", "text": "own"},
                ],
                "negative_passages": [
                    {"docid": "d2", "title": "", "text": river},
                    {"docid": "", "title": "", "text": "wrong"},
                ],
            },
            {
                "query_id": "q2",
                "query": "who",
                "positive_passages": [{"docid": "d2", "title": "", "text": river}],
                "negative_passages": [],
            },
        ],
        "flagembedding": [
            {"query": "what", "pos": [fox, own], "neg": [river, "wrong"], "prompt": "Find it"},
            {"query": "who", "pos": [river], "neg": []},
        ],
        "ms-swift": [
            {"messages": [system, *say("what")], "positive_messages": [say(fox)], "negative_messages": both},
            {"messages": [system, *say("what")], "positive_messages": [say(own)], "negative_messages": both},
            {"messages": say("who"), "positive_messages": [say(river)]},
        ],
    }
    for format, rows in expected.items():
        export_examples(SET, path, format=format, dataset=data)
        assert lines(path) == rows
    said = export_examples(SET, path, format="sentence-transformers", dataset=data, negatives=1)
    assert lines(path) == [{"query": "what", "positive": p, "negative_1": river} for p in (fox, own)]
    assert said[:2] == [
        "1 example with fewer than 1 negatives left out",
        "1 negative beyond the first 1 of an example left out",
    ]


def test_losses_are_said(tmp_path: Path) -> None:
    data, path = read_dataset(folder(tmp_path / "data")), tmp_path / "out.jsonl"
    told = {
        format: [line.partition(": ")[2] for line in export_examples(SET, path, format=format, dataset=data)]
        for format in ("tevatron", "flagembedding", "ms-swift", "sentence-transformers-triplet")
    }
    ids = "the ids of queries are not kept (2 queries)"
    metadata = "metadata of queries are not kept (1 query)"
    documents = "the ids of documents are not kept (3 passages)"
    titles = "titles are joined to their texts (2 passages)"
    voice = "the voice of rewritten passages is not kept (1 passage)"
    kinds = "source, backend, score, requirement, strategy, verdict"
    origin = f"where negatives come from ({kinds}) is not kept (2 negatives)"
    rows = "a query with several positives becomes as many rows (1 query)"
    stops = "its loader stops at a query without negatives (1 query) unless train_group_size is 1"
    assert told["tevatron"] == [stops, metadata, voice, origin]
    assert told["flagembedding"] == [stops, ids, metadata, documents, titles, voice, origin]
    assert told["ms-swift"] == [ids, metadata, documents, titles, voice, origin, rows]
    left = "1 query without negatives left out"
    assert told["sentence-transformers-triplet"][0] == left
    bare = [Example(query=Query(id="q", text="x"), positives=[Passage(text="y")])]
    assert export_examples(bare, path, format="ms-swift") == [
        "ms-swift: the ids of queries are not kept (1 query)"
    ]


def test_what_a_form_cannot_carry(tmp_path: Path) -> None:
    data, path = read_dataset(folder(tmp_path / "data")), tmp_path / "out.jsonl"
    with pytest.raises(
        DataError, match="queries have 0 to 2 negatives, but all rows have the same columns; give a number"
    ):
        export_examples(SET, path, format="sentence-transformers", dataset=data)
    with pytest.raises(DataError, match="document 'd1' has no text here; name the data set"):
        export_examples(SET, path, format="flagembedding")
    gone = [Example(query=Query(id="q", text="x"), positives=[Passage(document_id="gone")])]
    with pytest.raises(DataError, match="there is no document 'gone'"):
        export_examples(gone, path, format="tevatron", dataset=data)
    for act in (
        lambda: export_examples(SET, path, format="tevatrn"),
        lambda: import_examples(path, format="tevatrn"),
    ):
        with pytest.raises(ConfigError, match=r"format 'tevatrn' is not known; .* did you mean 'tevatron'"):
            act()
    with pytest.raises(ConfigError, match="negatives must be 0 or more, got -1"):
        export_examples(SET, path, format="own", negatives=-1)
    assert not path.exists()


def test_what_other_tools_write(tmp_path: Path) -> None:
    """Rows with columns of their own names, ids instead of passages, teachers' scores."""
    path = tmp_path / "set.jsonl"

    def given_as(format: str, *rows: dict[str, Any]) -> list[Example]:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return import_examples(path, format=format)

    numbered = {f"negative_{n}": f"n{n}" for n in (10, 2, 1)}
    found = given_as("sentence-transformers", {"anchor": "a", "positive": "p"} | numbered)
    assert texts(found) == [("a", ["p"], ["n1", "n2", "n10"])]
    found = given_as("sentence-transformers", {"anchor": "a", "positive": "p", "negative": "n"})
    assert texts(found) == [("a", ["p"], ["n"])]
    (one,) = given_as(
        "flagembedding", {"query": "a", "pos": ["p"], "neg": ["n", "m"], "neg_scores": [0.5, 1]}
    )
    assert [n.score for n in one.negatives] == [0.5, 1.0]
    newer = {"query_id": "7", "query_text": "a", "positive_document_ids": ["d1"], "negative_document_ids": []}
    (one,) = given_as("tevatron", newer)
    assert (one.query.id, one.positives, one.negatives) == ("7", [Passage(document_id="d1")], [])
    twice = given_as("flagembedding", *[{"query": q, "pos": ["p"], "neg": []} for q in ("a", "b", "a")])
    assert twice[0].query.id == twice[2].query.id != twice[1].query.id


@pytest.mark.parametrize(
    ("format", "row", "line"),
    [
        ("sentence-transformers", {"query": "a"}, "'positive' must be a text, but is missing"),
        (
            "sentence-transformers",
            {"query": "a", "positive": "p", "negative_1": None},
            "'negative_1' must be",
        ),
        ("sentence-transformers-list", {"query": "a", "docs": ["d"], "labels": [2]}, "'labels' must be"),
        ("sentence-transformers-list", {"query": "a", "docs": ["d"], "labels": [0]}, "none of 'labels' is 1"),
        ("tevatron", {"query_id": "q", "query": "a"}, "'positive_passages' must be a list"),
        ("flagembedding", {"query": "a", "pos": "p", "neg": []}, "'pos' must be a list of texts"),
        (
            "flagembedding",
            {"query": "a", "pos": ["p"], "neg": ["n"], "neg_scores": []},
            "'neg_scores' must be",
        ),
        ("flagembedding", {"query": " ", "pos": ["p"], "neg": []}, "'query' is empty"),
        ("ms-swift", {"messages": "a"}, "'messages' must hold messages"),
        (
            "ms-swift",
            {"messages": [{"role": "assistant", "content": "a"}]},
            "'messages' must be one user message",
        ),
        ("ms-swift", {"messages": [{"role": "user", "content": "a"}]}, "'positive_messages' is empty"),
    ],
)
def test_rows_of_another_form_are_named(tmp_path: Path, format: str, row: dict[str, Any], line: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match=re.escape(f"{path}:1: {line}")):
        import_examples(path, format=format)
    assert import_examples(path, format=format, skip_bad=True) == []


def test_real_folders(shared: Path) -> None:
    said: list[str] = []
    data = read_dataset(shared / "data" / "retrieval" / "beir-nfcorpus", report=said.append)
    assert (len(data.documents), len(data.queries), said) == (3633, 3237, [])
    counts = {
        split: (len(data.split_queries(split)), sum(map(len, data.qrels[split].values())))
        for split in data.qrels
    }
    assert counts == {"dev": (324, 11385), "test": (323, 12334), "train": (2590, 110575)}
    assert max(grade for grades in data.qrels["test"].values() for grade in grades.values()) == 2
