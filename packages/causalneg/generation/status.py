"""How far a generation set is, for readers."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from causalneg.generation.journal import Role, check_layout, is_locked, refuse_foreign
from causalneg.generation.totals import Totals, count, damaged
from causalneg.llm.budget import Budget
from common.errors import DataError
from common.report.tables import format_number, markdown_table


def read_totals(path: Path, role: Role = "writer") -> Totals:
    """What the ledger that was worked on last amounts to, while a process may be at work on it.

    Args:
        path: The journal.
        role: Whose ledger.

    Raises:
        DataError: There is no such file, it is no journal, or nobody in that role has begun.
    """
    nothing = DataError(f"{path}: there is no journal; nothing has been generated here yet")
    if not path.exists():
        raise nothing
    refuse_foreign(path)
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            check_layout(database, path, empty=False)
            last = database.execute(
                "SELECT ledgers.id FROM ledgers LEFT JOIN runs ON runs.ledger = ledgers.id WHERE role = ? "
                "ORDER BY runs.id DESC, ledgers.id DESC LIMIT 1",
                (role,),
            ).fetchone()
            if last is None:
                raise nothing
            totals = count(database, last[0], path)
        finally:
            database.close()
    except sqlite3.Error as error:
        raise damaged(path, str(error)) from error
    totals.running = is_locked(path)
    return totals


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
