"""Rules on the columns of a row, as in ``rating >= 4`` or ``click == 1 and surface in ("feed", "search")``.

Grammar::

    rule    = clause {"or" clause}
    clause  = term {"and" term}
    term    = "not" term | "(" rule ")" | column test
    test    = ("==" | "!=" | "<" | "<=" | ">" | ">=") value | "in" "(" value {"," value} ")" | "is missing"
    column  = name | "`any text`"          value = number | "text" | 'text' | true | false

A missing value fulfils no comparison, ``is missing`` alone. Nothing of a rule is evaluated as code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import reduce

import polars as pl

from common.errors import ConfigError

_TOKEN = re.compile(
    r"\s*(?:(?P<number>-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)|(?P<text>\"[^\"]*\"|'[^']*')|(?P<op>==|!=|<=|>=|<|>)"
    r"|(?P<mark>[(),])|`(?P<quoted>[^`]+)`|(?P<word>[^\W\d][\w.]*))"
)
Value = float | str
_WORDS = ("and", "or", "not", "in", "is", "missing", "true", "false")


@dataclass(frozen=True)
class _Test:
    column: str
    op: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class _Joined:
    op: str
    parts: tuple[_Node, ...]


_Node = _Test | _Joined


@dataclass(frozen=True)
class Rule:
    """A parsed rule. Get one with :func:`parse_rule`."""

    text: str
    root: _Node

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it asks for, each once."""
        return tuple(dict.fromkeys(test.column for test in _tests(self.root)))

    @property
    def numeric(self) -> tuple[str, ...]:
        """The columns that it compares with numbers."""
        return tuple(
            dict.fromkeys(t.column for t in _tests(self.root) if any(isinstance(v, float) for v in t.values))
        )

    def expression(self) -> pl.Expr:
        """Whether each row fulfils it, never null."""
        return _expression(self.root)


def _tests(node: _Node) -> list[_Test]:
    return [node] if isinstance(node, _Test) else [test for part in node.parts for test in _tests(part)]


def number_of(column: str) -> pl.Expr:
    """A column as numbers; null where it holds none. Truth values are 0 and 1."""
    text = pl.col(column).cast(pl.String).str.strip_chars().str.to_lowercase()
    return text.replace({"true": "1", "false": "0"}).cast(pl.Float64, strict=False)


def _expression(node: _Node) -> pl.Expr:
    if isinstance(node, _Joined):
        parts = [_expression(part) for part in node.parts]
        if node.op == "not":
            return ~parts[0]
        return reduce(lambda a, b: a & b if node.op == "and" else a | b, parts)
    if node.op == "missing":
        return pl.col(node.column).is_null()
    found = [_comparison(node.column, node.op, value) for value in node.values]
    return reduce(lambda a, b: a | b, found)


def _comparison(column: str, op: str, value: Value) -> pl.Expr:
    left = number_of(column) if isinstance(value, float) else pl.col(column).cast(pl.String)
    right = pl.lit(value)
    tests = {
        "==": left == right,
        "in": left == right,
        "!=": left != right,
        "<": left < right,
        "<=": left <= right,
        ">": left > right,
        ">=": left >= right,
    }
    return tests[op].fill_null(False)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.tokens, at = text, list[tuple[str, str]](), 0
        while at < len(text.rstrip()):
            found = _TOKEN.match(text, at)
            if found is None or found.end() == at:
                raise self.mistake(f"cannot be read at '{text[at:].strip()[:20]}'")
            kind = str(found.lastgroup)
            self.tokens.append((kind, found[kind]))
            at = found.end()
        self.at = 0

    def mistake(self, what: str) -> ConfigError:
        return ConfigError(f"rule '{self.text}' {what}; a rule is like: rating >= 4, "
                           "click == 1 and surface in (\"feed\", \"search\")")  # fmt: skip

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def take(self, kind: str | None = None, value: str | None = None) -> str:
        found = self.peek()
        if (kind is not None and found[0] != kind) or (value is not None and found[1] != value):
            raise self.mistake(f"lacks {value or 'a ' + str(kind)} at '{found[1] or 'its end'}'")
        self.at += 1
        return found[1]

    def rule(self) -> _Node:
        return self._joined("or", lambda: self._joined("and", self.term))

    def _joined(self, word: str, part: object) -> _Node:
        assert callable(part)
        parts: list[_Node] = [part()]
        while self.peek() == ("word", word):
            self.take()
            parts.append(part())
        return parts[0] if len(parts) == 1 else _Joined(word, tuple(parts))

    def term(self) -> _Node:
        if self.peek() == ("word", "not"):
            self.take()
            return _Joined("not", (self.term(),))
        if self.peek() == ("mark", "("):
            self.take()
            inner = self.rule()
            self.take("mark", ")")
            return inner
        kind, column = self.peek()
        if kind not in ("word", "quoted") or (kind == "word" and column in _WORDS):
            raise self.mistake(f"lacks a column at '{column or 'its end'}'")
        self.take()
        return self.test(column)

    def test(self, column: str) -> _Test:
        kind, found = self.peek()
        if kind == "op":
            self.take()
            return _Test(column, found, (self.value(),))
        if (kind, found) == ("word", "is"):
            self.take()
            self.take("word", "missing")
            return _Test(column, "missing", ())
        if (kind, found) == ("word", "in"):
            self.take()
            self.take("mark", "(")
            values = [self.value()]
            while self.peek() == ("mark", ","):
                self.take()
                values.append(self.value())
            self.take("mark", ")")
            return _Test(column, "in", tuple(values))
        raise self.mistake(f"lacks a comparison at '{found or 'its end'}'")

    def value(self) -> Value:
        kind, found = self.peek()
        self.take()
        if kind == "number":
            return float(found)
        if kind == "text":
            return found[1:-1]
        if kind == "word" and found in ("true", "false"):
            return float(found == "true")
        raise self.mistake(f"lacks a number or a quoted text at '{found or 'its end'}'")


def parse_rule(text: str) -> Rule:
    """Read a rule.

    Args:
        text: The rule.

    Raises:
        ConfigError: It is not one; the line says where.
    """
    parser = _Parser(text)
    root = parser.rule()
    if parser.peek()[0] != "end":
        raise parser.mistake(f"cannot be read at '{parser.peek()[1]}'")
    return Rule(text, root)


def is_rule(text: str) -> bool:
    """Whether a text is meant as a rule rather than as the name of a column."""
    return re.search(r"==|!=|<|>|\bin\s*\(|\bis\s+missing\b", text) is not None
