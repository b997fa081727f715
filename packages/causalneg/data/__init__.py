"""Data of retrieval: what a query, a document and a training example are, and the files that hold them."""

from causalneg.data.dataset import Dataset, Qrels, passage_key, resolve_passage
from causalneg.data.exchange import FORMATS, export_examples, import_examples, read_examples, write_examples
from causalneg.data.jsonl import Report
from causalneg.data.readers import READERS, read_dataset, write_dataset

__all__ = [
    "FORMATS",
    "READERS",
    "Dataset",
    "Qrels",
    "Report",
    "export_examples",
    "import_examples",
    "passage_key",
    "read_dataset",
    "read_examples",
    "resolve_passage",
    "write_dataset",
    "write_examples",
]
