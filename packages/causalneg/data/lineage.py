"""What a step reads and makes, for a tracker's lineage: data -> mined -> generated -> encoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from causalneg.data.readers import find_reader
from causalneg.data.schema import Example
from common.training.task import Artifact


def dataset_artifact(path: Path, **facts: object) -> Artifact:
    """Corpus and queries of a data set: the same for every step, whatever splits it reads.

    Args:
        path: The data set.
        facts: What else is known of it.
    """
    reader = find_reader(path)
    files = tuple(dict.fromkeys((reader.file("documents"), reader.file("queries"))))
    return Artifact(path.resolve().name, "dataset", files, facts=facts)


def set_artifact(path: Path, examples: Sequence[Example], *, made: bool = False, **facts: object) -> Artifact:
    """A set of negatives: mined, or with generated ones in it.

    Args:
        path: Its file.
        examples: What it holds.
        made: Whether it was made; else it was read.
        facts: What else is known of it.
    """
    backends = Counter(n.backend for e in examples for n in e.negatives)
    written = any(n.source == "generated" for e in examples for n in e.negatives)
    known = {"queries": len(examples), "negatives": dict(backends), **facts}
    return Artifact(path.stem, "generated" if written else "mined", (path,), made=made, facts=known)
