"""What looks like a secret does not get out."""

from __future__ import annotations

import sys

import pytest

from common.redact import HIDDEN, redact, redact_arguments, redact_text, redacted_command_line


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("api_key=abc", f"api_key={HIDDEN}"),
        ("extra_body={api-key: abc, top_p: 1}", f"extra_body={{api-key: {HIDDEN}, top_p: 1}}"),
        ('{"password": "a b", "n": 1}', f'{{"password": {HIDDEN}, "n": 1}}'),
        ("--store=redis://user:hunter2@host:1/0", f"--store=redis://{HIDDEN}@host:1/0"),
        ("Authorization: Bearer abc.def", f"Authorization: {HIDDEN} {HIDDEN}"),
        ("model=sk-0123456789abcdef0123", f"model={HIDDEN}"),
        ("hf_0123456789abcdefghij", HIDDEN),
        ("budget.tokens=5000", "budget.tokens=5000"),
        ("encoder.max_tokens=128", "encoder.max_tokens=128"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("data=task-keys/sk-1", "data=task-keys/sk-1"),
    ],
)
def test_texts(text: str, safe: str) -> None:
    assert redact_text(text) == safe


def test_settings_by_key_and_form() -> None:
    settings = {
        "seed": 1,
        "name": None,
        "backend": {"api_key": "abc", "tokens": 5, "endpoints": ["http://u:p@h/v1"]},
        "access_token": "",
    }
    assert redact(settings) == {
        "seed": 1,
        "name": None,
        "backend": {"api_key": HIDDEN, "tokens": 5, "endpoints": [f"http://{HIDDEN}@h/v1"]},
        "access_token": "",
    }


def test_words_of_a_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train", "--api-key", "abc", "--quiet", "seed=1", "token=abc"]
    safe = ["train", "--api-key", HIDDEN, "--quiet", "seed=1", f"token={HIDDEN}"]
    assert redact_arguments(words) == safe
    monkeypatch.setattr(sys, "argv", ["lain", *words])
    with redacted_command_line():
        assert sys.argv == ["lain", *safe]
    assert sys.argv == ["lain", *words]
