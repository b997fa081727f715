"""What the commands do: encode a data set into a folder, open it for search, search it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxtyping import Float32
from numpy import ndarray

from causalneg.data import Report, read_dataset
from causalneg.data.schema import Query
from causalneg.encoders import Encoder, encode, find_encoder
from causalneg.encoders.saved import Reading
from causalneg.search.dense import check_device
from causalneg.search.stored import Hit, StoredSearch
from causalneg.search.vectors import BLOCK, About, Form, VectorFolder, content_hash, write_vectors
from causalneg.serving.texts import data_queries
from common.errors import DataError
from common.files import atomic_path
from common.metrics.retrieval import write_trec


def open_encoder(
    encoder: Path, reading: Reading, *, devices: Sequence[str] = (), trust_remote_code: bool = False
) -> Encoder:
    """An encoder on the first device.

    Args:
        encoder: Folder of the encoder or of a run, or ``minilm``.
        reading: What is read otherwise than the folder says.
        devices: Names of devices; empty: the CPU.
        trust_remote_code: Whether code that lies in the folder may run.
    """
    found = [check_device(name) for name in devices]
    model = find_encoder(encoder, reading=reading, trust_remote_code=trust_remote_code)
    return model.to(found[0]) if found else model


def encode_data(
    data: Path,
    out: Path,
    encoder: Encoder,
    *,
    name: str,
    reading: Reading | None = None,
    queries: bool = False,
    split: str | None = None,
    form: Form = "npy",
    share: tuple[int, int] = (0, 1),
    block: int = BLOCK,
    batch_tokens: int | None = None,
    skip_bad: bool = False,
    report: Report | None = None,
) -> bool:
    """Encode the documents or the queries of a data set into a folder; a killed call goes on.

    Args:
        data: The data set.
        out: The folder.
        encoder: The encoder.
        name: Its folder or name, for the record.
        reading: What is read otherwise than its folder says, for the record.
        queries: Whether queries are encoded instead of documents.
        split: Split whose judged queries are encoded; None: all queries.
        form: File format.
        share: Number of this process, from 0, and how many share the work.
        block: Texts encoded at a time.
        batch_tokens: Tokens per forward pass; None takes the encoder's own number.
        skip_bad: Whether malformed lines are left out.
        report: Takes a line a block, and what else a user should know.

    Returns:
        Whether all vectors are there; False where other processes have work left.

    Raises:
        DataError: The data cannot be read, or other vectors are in the folder.
    """
    splits = [split] if queries and split is not None else []
    dataset = read_dataset(data, splits=splits, skip_bad=skip_bad, report=report)
    found = (
        [(query.id, query.text) for query in data_queries(dataset, split)]
        if queries
        else [(document.id, document.content) for document in dataset.documents]
    )
    if not found:
        raise DataError(f"{data}: has no {'queries' if queries else 'documents'} to encode")
    ids, texts = [id for id, _ in found], [text for _, text in found]
    about = About(
        part="queries" if queries else "documents", source=str(data), content=content_hash(ids, texts),
        count=len(ids), dim=encoder.dim, encoder=name, fingerprint=encoder.fingerprint,
        reading=reading.chosen() if reading is not None else {}, form=form, block=block,
    )  # fmt: skip

    def vectors(first: int, last: int) -> Float32[ndarray, "some dim"]:
        tokens = encoder.tokenize(texts[first:last], query=queries)
        made = encode(encoder, tokens, query=queries, batch_tokens=batch_tokens)
        if report is not None:
            report(f"{last} of {len(ids)} {about.part} encoded")
        return made

    return write_vectors(out, about, ids, vectors, share=share)


def open_search(
    vectors: Path,
    *,
    encoder: Path | None = None,
    index: str = "exact",
    effort: int = 128,
    devices: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> StoredSearch:
    """Open vectors of documents for search, with the encoder that made them.

    Args:
        vectors: Their folder.
        encoder: Where the encoder lies now; None: where it lay when the vectors were made.
        index: ``exact``, or the kind of an index that was made.
        effort: How far an index looks.
        devices: Devices to encode on (the first) and to search on.
        trust_remote_code: Whether code that lies in the encoder's folder may run.

    Raises:
        DataError: A folder is missing or damaged, or the encoder is another one.
    """
    folder = VectorFolder.open(vectors)
    path = encoder or Path(folder.about.encoder)
    reading = Reading(**folder.about.reading)
    model = open_encoder(path, reading, devices=devices, trust_remote_code=trust_remote_code)
    return StoredSearch(folder, model, index=index, effort=effort, devices=devices)


def search_queries(
    search: StoredSearch, queries: Sequence[Query], *, depth: int, ignore_identical: bool | None = None
) -> list[list[Hit]]:
    """The best documents of each query.

    Args:
        search: What searches.
        queries: The queries.
        depth: Documents of each.
        ignore_identical: Whether the document that has the query's own id is no hit; None: where a query has
            the id of a document, as ``evaluate`` does.
    """
    if ignore_identical is None:
        ignore_identical = not {query.id for query in queries}.isdisjoint(search.folder.ids)
    vectors = search.embed([query.text for query in queries])
    found = search.hits(vectors, depth + ignore_identical)
    if not ignore_identical:
        return found
    return [
        [hit for hit in hits if hit.id != query.id][:depth]
        for query, hits in zip(queries, found, strict=True)
    ]


def write_hits(path: Path, queries: Sequence[Query], hits: Sequence[Sequence[Hit]]) -> None:
    """Write what was found: JSON lines where the file's name ends so, else a run file of TREC.

    Args:
        path: The file; one already there is replaced.
        queries: The queries.
        hits: Documents of each, best first.
    """
    if path.suffix != ".jsonl":
        run = {q.id: {hit.id: hit.score for hit in found} for q, found in zip(queries, hits, strict=True)}
        write_trec(path, run, tag="causalneg")
        return
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for line in json_lines(queries, hits):
            file.write(line + "\n")


def json_lines(queries: Sequence[Query], hits: Sequence[Sequence[Hit]]) -> Iterator[str]:
    """A line of JSON a query: its id, its text, and id and score of every hit, best first."""
    for query, found in zip(queries, hits, strict=True):
        shown = [{"id": hit.id, "score": hit.score} for hit in found]
        yield json.dumps({"query": query.id, "text": query.text, "hits": shown}, ensure_ascii=False)
