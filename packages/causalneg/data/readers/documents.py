"""A plain folder of documents: text and Markdown files, and JSON lines; there are no queries.

::

    notes/a.txt         its first line is no title; the name of the file is
    notes/b.md          the first heading is the title
    more.jsonl          {"text": ..., "title": ..., "_id" or "id": ...} a line; only the text is needed

Text and Markdown are cut at paragraphs into passages of at most 200 words; the second of ``notes/a.txt`` is
``notes/a.txt#2``. Hidden files do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from causalneg.data import jsonl
from causalneg.data.jsonl import LineError
from causalneg.data.readers.base import Judgement, Lines, Reader
from causalneg.data.schema import Document, Query
from common.errors import DataError

WORDS = 200
"""Most words of a passage."""

_ENDINGS = (".txt", ".md", ".jsonl")
_LETTERS = 6 * WORDS  # of scripts without blanks


class DocumentsReader(Reader):
    """Reads a plain folder of documents.

    Args:
        path: The folder.
    """

    layout = "a folder of documents holds .txt, .md or .jsonl files"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether it is a folder with such files and not a BEIR folder."""
        if not path.is_dir() or any(
            (path / name).exists() for name in ("corpus.jsonl", "queries.jsonl", "qrels")
        ):
            return False
        return next(_files(path), None) is not None

    def check(self) -> None:
        """Documents are all that is needed.

        Raises:
            DataError: There are none.
        """
        if next(_files(self.path), None) is None:
            raise DataError(f"{self.path}: no documents; {self.layout}")

    def splits(self) -> list[str]:
        """None."""
        return []

    def file(self, part: str) -> Path:
        """The folder; that of judgements is not there."""
        return self.path if part in ("documents", "queries") else self.path / "qrels" / f"{part}.tsv"

    def documents(self) -> Lines[Document]:
        """Passages of all files, in the order of their names."""
        number = 0
        for file in _files(self.path):
            name = file.relative_to(self.path).as_posix()
            for found in _read(file, re.sub(r"\s+", "_", name)):
                number += 1
                yield number, LineError(f"{name}: {found}") if isinstance(found, LineError) else found

    def queries(self) -> Lines[Query]:
        """None."""
        return iter(())

    def judgements(self, split: str) -> Lines[Judgement]:
        """None."""
        return iter(())


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in _ENDINGS and not hidden and path.is_file():
            yield path


def _read(file: Path, name: str) -> Iterator[Document | LineError]:
    if file.suffix.lower() == ".jsonl":
        for line, raw in jsonl.lines(file):
            try:
                yield _record(raw, f"{name}:{line}")
            except LineError as bad:
                yield LineError(f"line {line} {bad}")
        return
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        yield LineError(f"is not UTF-8 at byte {error.start + 1}")
        return
    title = file.stem.replace("_", " ").replace("-", " ")
    if file.suffix.lower() == ".md":
        text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
        heading = re.search(r"^#+ +(.+?) *#*$", text, flags=re.MULTILINE)
        title = heading[1] if heading else title
        text = re.sub(r"^#+ +", "", text, flags=re.MULTILINE)
    if not text.strip():
        yield LineError("is empty")
    for number, passage in enumerate(cut_passages(text), start=1):
        yield Document(id=name if number == 1 else f"{name}#{number}", title=title, text=passage)


def _record(raw: bytes, id: str) -> Document:
    record = jsonl.parse_object(raw)
    key = next((key for key in ("_id", "id") if key in record), None)
    return Document(
        id=id if key is None else jsonl.identifier(record, key),
        text=jsonl.text(record, "text"),
        title=jsonl.text(record, "title", required=False),
        metadata=jsonl.metadata(record, "_id", "id", "title", "text", "metadata"),
    )


def cut_passages(text: str) -> Iterator[str]:
    """Cut a text at paragraphs into passages of at most :data:`WORDS` words.

    Paragraphs are put together while they fit; one that is too long is cut between words.

    Args:
        text: The text.
    """
    held: list[str] = []
    for piece in _pieces(text):
        if held and _size(" ".join([*held, piece])) > WORDS:
            yield " ".join(held)
            held = []
        held.append(piece)
    if held:
        yield " ".join(held)


def _size(text: str) -> int:
    return max(len(text.split()), len(text) * WORDS // (2 * _LETTERS))


def _pieces(text: str) -> Iterator[str]:
    """Paragraphs on one line each, long ones in parts."""
    for paragraph in re.split(r"\n\s*\n", text):
        words = paragraph.split()
        for start in range(0, len(words), WORDS):
            part = " ".join(words[start : start + WORDS])
            yield from (part[at : at + 2 * _LETTERS] for at in range(0, len(part), 2 * _LETTERS))
