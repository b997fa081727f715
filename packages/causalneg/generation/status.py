"""How far a generation set is, for readers."""

from __future__ import annotations

from pathlib import Path

from causalneg.generation.journal import read_totals
from causalneg.llm.budget import Budget
from common.errors import DataError
from common.report.tables import format_number, markdown_table


def status(path: Path) -> str:
    """How far a generation set is, in Markdown; also while a process is at work on it.

    Args:
        path: Its journal.

    Raises:
        DataError: There is no such journal, or it is damaged.
    """
    totals = read_totals(path)
    about = "\n".join(f"- {name}: {value}" for name, value in totals.identity.items() if value)
    left = totals.seconds_left if totals.running or totals.finished < totals.pairs else 0.0
    share = f" of {totals.pairs} ({totals.finished / totals.pairs:.1%})" if totals.pairs else ""
    prices = Budget(prompt_price=totals.prompt_price, completion_price=totals.completion_price)
    cost = prices.cost(totals.prompt_tokens, totals.completion_tokens)
    judged = []
    try:
        judge = read_totals(path, "judge")
    except DataError:
        pass  # nobody judges
    else:
        cost += prices.cost(judge.prompt_tokens, judge.completion_tokens)
        judged = [["judge: answers", str(judge.steps["judge"])], ["judge: tokens", str(judge.tokens)]]
    rows = [
        ["pairs finished", f"{totals.finished}{share}"],
        ["with negatives", str(totals.done)],
        *([f"failed: {kind}", str(number)] for kind, number in totals.failures.most_common()),
        *([f"calls: {step}", str(number)] for step, number in sorted(totals.steps.items())),
        ["calls asked again", str(totals.asked_again)],
        ["answers repaired", str(totals.repaired)],
        ["pairs per minute", format_number(totals.rate, 1)],
        ["tokens read", str(totals.prompt_tokens)],
        ["tokens written", str(totals.completion_tokens)],
        *judged,
        ["cost", format_number(cost, 4)],
        ["time left", "n/a" if left is None else _duration(left)],
        ["at work", "yes" if totals.running else "no"],
    ]
    return f"{about}\n\n{markdown_table(['generation set', ''], rows)}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes else f"{seconds:.0f} s"
