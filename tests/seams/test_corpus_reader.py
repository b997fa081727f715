"""A layout of corpora is one file and one line in READERS."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path

import pytest

from causalneg.data import READERS, read_dataset
from tiny_retrieval import DOCUMENTS, QRELS, QUERIES, causalneg, tiny_data, train

FILE = '''
from __future__ import annotations
import csv
from pathlib import Path
from typing import Any
from causalneg.data.jsonl import LineError
from causalneg.data.readers import Judgement, Lines, Reader
from causalneg.data.schema import Document, Query

class CsvReader(Reader):
    """Three kinds of comma-separated files."""

    layout = "a CSV folder holds documents.csv, queries.csv and SPLIT.judged.csv"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return (path / "documents.csv").is_file()

    def splits(self) -> list[str]:
        return sorted(file.name.removesuffix(".judged.csv") for file in self.path.glob("*.judged.csv"))

    def file(self, part: str) -> Path:
        return self.path / (f"{part}.csv" if part in ("documents", "queries") else f"{part}.judged.csv")

    def rows(self, part: str) -> Any:
        with self.file(part).open(newline="") as file:
            yield from enumerate(csv.reader(file), start=1)

    def documents(self) -> Lines[Document]:
        for line, row in self.rows("documents"):
            yield line, Document(id=row[0], text=row[1]) if len(row) == 2 else LineError("has no two columns")

    def queries(self) -> Lines[Query]:
        for line, row in self.rows("queries"):
            yield line, Query(id=row[0], text=row[1])

    def judgements(self, split: str) -> Lines[Judgement]:
        for line, row in self.rows(split):
            yield line, Judgement(row[0], row[1], int(row[2]))
'''


def write(path: Path, rows: list[list[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_a_corpus_from_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny_csv.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(READERS, "csv", importlib.import_module("tiny_csv").CsvReader)
    data = tmp_path / "csv" / "data"
    write(data / "documents.csv", [[d.id, d.text] for d in DOCUMENTS])
    write(data / "queries.csv", [[q.id, q.text] for q in QUERIES])
    for split, judged in QRELS.items():
        pairs: list[list[object]] = [[query, *pair] for query, of in judged.items() for pair in of.items()]
        write(data / f"{split}.judged.csv", pairs)
    same = tiny_data(tmp_path / "beir" / "data")
    assert read_dataset(data).fingerprint == read_dataset(same).fingerprint
    run = train(tmp_path / "csv", data)
    other = train(tmp_path / "beir", same)
    of_csv, of_beir = (json.loads((r / "record.json").read_text())["metrics"] for r in (run, other))
    assert of_csv == of_beir
    assert "ndcg@10" in causalneg("evaluate", "--bm25", "--data", data, "--out", tmp_path / "e").stdout
    write(data / "documents.csv", [["fox 0", "a text"], ["one column"]])
    from click.testing import CliRunner

    from causalneg.cli import main

    refused = CliRunner().invoke(main, ["evaluate", "--bm25", "--data", str(data)])
    assert refused.exit_code == 2
    assert f"{data / 'documents.csv'}:1: document id 'fox 0' has a blank" in refused.stderr
    assert f"{data / 'documents.csv'}:2: has no two columns" in refused.stderr
