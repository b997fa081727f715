"""Training sets of ms-swift: messages, positive_messages (exactly one), negative_messages.

One row for each positive; a prompt in the query's metadata becomes the system message.

Source: github.com/modelscope/ms-swift, docs, embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from causalneg.data.dataset import Dataset
from causalneg.data.exchange.base import TextExample, TextFormat, example_texts
from causalneg.data.jsonl import LineError, filled_text
from causalneg.data.schema import Example


class SwiftFormat(TextFormat):
    """Texts as messages of a user."""

    label = "ms-swift"
    keeps_prompts = True
    keeps_several_positives = False

    def rows(self, example: Example, dataset: Dataset | None) -> Iterator[dict[str, Any]]:
        """One row for each positive."""
        found = example_texts(example, dataset)
        system = [{"role": "system", "content": found.prompt}] if found.prompt else []
        row: dict[str, Any] = {"messages": [*system, {"role": "user", "content": found.query}]}
        others = {"negative_messages": [[{"role": "user", "content": text}] for text in found.negatives]}
        for positive in found.positives:
            first = {"positive_messages": [[{"role": "user", "content": positive}]]}
            yield row | first | (others if found.negatives else {})

    def parse(self, record: dict[str, Any]) -> TextExample:
        """A row of messages."""
        prompt, query = _messages(record.get("messages"), "messages")
        found: dict[str, tuple[str, ...]] = {}
        for key in ("positive_messages", "negative_messages"):
            group = record.get(key) or []
            if not isinstance(group, list):
                raise LineError(f"'{key}' must be a list of lists of messages")
            contents = [_messages(messages, key) for messages in group]
            if any(system for system, _ in contents):
                raise LineError(f"'{key}' has a system message, for which there is no place here")
            found[key] = tuple(text for _, text in contents)
        if not found["positive_messages"]:
            raise LineError("'positive_messages' is empty")
        return TextExample(query, prompt, found["positive_messages"], found["negative_messages"])


def _messages(messages: Any, key: str) -> tuple[str, str]:
    """System and user text of a list of messages."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise LineError(f"'{key}' must hold messages with role and content")
    roles = [message.get("role") for message in messages]
    if roles not in (["user"], ["system", "user"]):
        raise LineError(
            f"'{key}' must be one user message, a system message may stand before it; got {roles}"
        )
    *system, user = [filled_text(message, "content") for message in messages]
    return (system[0] if system else ""), user
