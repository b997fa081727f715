"""Logs with mistakes: one clear line each, exit code 2, and nothing half-written."""

from __future__ import annotations

import errno
import gzip
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result

from common.errors import DataError
from lain.cli import main
from lain.data.store import Store
from lain.formats.log import load_schema, prepare_log
from lain.formats.log.spool import Spool
from lain.formats.tables import Progress

HEADER = "user,item,time,click,price,place"
ROWS = [f"u{n % 5},i{n % 7},{1_700_000_000 + 60 * n},{n % 2},{n}.5,{'ab'[n % 2]}" for n in range(60)]
SCHEMA = """
columns: {user: user, item: item, time: time, label: click}
features:
  price: {kind: numeric}
  place: {}
"""


def run(folder: Path, content: str | bytes, schema: str = SCHEMA, name: str = "log.csv") -> Result:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / "log.yaml").write_text(schema)
    source = folder if "source: {files" in schema else file
    arguments = [
        "prepare",
        "log",
        str(source),
        str(folder / "made" / "out"),
        "--schema",
        str(folder / "log.yaml"),
    ]
    return CliRunner().invoke(main, [*arguments, "--quiet"])


def refused(folder: Path, content: str | bytes, schema: str = SCHEMA, name: str = "log.csv") -> str:
    """The one line of a refusal, without the folder."""
    result = run(folder, content, schema, name)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    made = folder / "made"
    assert not made.exists() or list(made.iterdir()) == []
    (line,) = result.stderr.splitlines()
    return line.removeprefix(f"error: {folder}/")


def lines(*changed: tuple[int, str], header: str = HEADER) -> str:
    rows = list(ROWS)
    for number, row in changed:
        rows[number] = row
    return "\n".join([header, *rows]) + "\n"


WRONG: dict[str, tuple[str | bytes, str, str]] = {
    "separator": (lines().replace(",", ";"), SCHEMA + 'source: {separator: ","}', "column 'user' is "
                                                                                  "missing; its only column "
                                                                                  "is"),
    "duplicate header": (lines(header="user,item,time,click,price,price"), SCHEMA, "log.csv: column 'price' "
                                                                                   "is there twice"),
    "nameless column": (lines(header="user,item,time,click,,place"), SCHEMA, "log.csv: column 4 of the "
                                                                             "header has no name"),
    "missing column": (lines(header="user,itm,time,click,price,place"), SCHEMA, "column 'item' is missing; "
                                                                                "did you mean 'itm'?"),
    "unparsable time": (lines((7, "u1,i1,yesterday,1,1.5,a")), SCHEMA, "log.csv: column 'time', row 7: "
                                                                       "'yesterday' is not a time"),
    "seconds and milliseconds": (
        lines((7, "u1,i1,1700000000123,1,1.5,a")), SCHEMA, "column 'time', row 7: 1700000000123 is not a "
                                                           "time in s"
    ),
    "mixed types": (lines((9, "u1,i1,1700000000,1,cheap,a")), SCHEMA, "log.csv: column 'price', row 9: "
                                                                      "'cheap' is not a number"),
    "infinite": (lines((9, "u1,i1,1700000000,1,inf,a")), SCHEMA, "column 'price', row 9: inf is not a "
                                                                 "finite number"),
    "label": (lines((3, "u1,i1,1700000000,2,1.5,a")), SCHEMA, "column 'click', row 3: a label must be 0 or "
                                                              "1, got 2"),
    "label text": (lines((3, "u1,i1,1700000000,yes,1.5,a")), SCHEMA, "column 'click', row 3: 'yes' is not a "
                                                                     "number"),
    "rule on text": (
        lines(), SCHEMA.replace("click}", 'place >= 4}'), "column 'place', row 0: 'a' is not a number, but "
                                                          "the label's rule"
    ),
    "rule of nobody": (
        lines(), SCHEMA.replace("click}", "stars >= 4}"), "log.csv: column 'stars' is missing"
    ),
    "one class": (lines(), SCHEMA.replace("click}", "price >= 0}"), "the label is 1 in all 48 train rows"),
    "no such event": (lines(), SCHEMA + 'history: {events: place == "zoo"}', "no row fulfils history.events"),
    "users without a value": (
        lines(*((n, "," + ROWS[n].partition(",")[2]) for n in range(0, 60, 2))), SCHEMA,
        "log.csv: column 'user', row 0: no value (and 29 more rows)",
    ),
    "too few values": (lines((5, "u1,i1,1700000000,1")), SCHEMA, "log.csv, row 5: 4 values for 6 columns"),
    "too many values": (lines((5, ROWS[5] + ",x")), SCHEMA, "log.csv, row 5: 7 values for 6 columns"),
    "cut off": (lines()[:-9], SCHEMA, "log.csv, row 59: 4 values for 6 columns (separator ','); the file "
                                       "is cut off there"),
    "nothing": ("", SCHEMA, "log.csv: is empty"),
    "header only": (HEADER + "\n", SCHEMA, "log.csv: has no rows"),
    "not a text": (b"\x00\x01\x02" * 50, SCHEMA, "log.csv: is not a text file"),
    "UTF-16": (lines().encode("utf-16"), SCHEMA, "log.csv: is UTF-16 text; save it as UTF-8"),
    "Latin-1": (
        lines((40, "u1,caf\xe9,1700000000,1,1.5,a")).encode("latin-1"), SCHEMA, "log.csv: damaged or cut "
                                                                                "off after row"
    ),
    "split values": (
        lines(), SCHEMA + "splits: {by: column, column: place, values: {train: a, test: c}}",
        "column 'place', row 1: 'b' is no split; there are a, c",
    ),
    "time zone": (lines(), SCHEMA + "time: {zone: Mars/Base}", "time.zone: 'Mars/Base' is not a time zone"),
    "split moment": (lines(), SCHEMA + "splits: {by: time, test: soon}", "splits.test: 'soon' is not a time"),
    "split before all": (lines(), SCHEMA + "splits: {by: time, test: '2001-01-01'}", "splits.test: no row "
                                                                                     "is earlier"),
    "table": (lines(), SCHEMA + "items: [{file: items.csv, key: item}]", "items.csv: there is no such file"),
    "feature nowhere": (lines(), SCHEMA + "  colour: {source: item}\n", "log.csv: column 'colour' is "
                                                                        "missing"),
    "reserved": (lines(), SCHEMA + "  item_id: {source: item, column: place}\n", "the name is taken by the "
                                                                                 "id"),
    "no time": (lines(), SCHEMA.replace("time: time, ", "") + "splits: {by: random}", "without a time there "
                                                                                      "is no history"),
    "cut gzip": (gzip.compress(lines().encode())[:200], SCHEMA, "log.csv.gz: cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_one_line(tmp_path: Path, mistake: str) -> None:
    content, schema, line = WRONG[mistake]
    name = "log.csv.gz" if mistake == "cut gzip" else "log.csv"
    assert line in refused(tmp_path, content, schema, name)


def test_time_zones_mixed_are_one_line(tmp_path: Path) -> None:
    rows = [
        row.replace(str(1_700_000_000 + 60 * n), f"2024-05-01 10:{n:02d}:00") for n, row in enumerate(ROWS)
    ]
    rows[8] = rows[8].replace("10:08:00", "10:08:00+02:00")
    found = refused(tmp_path, "\n".join([HEADER, *rows]))
    assert "column 'time', row 8: '2024-05-01 10:08:00+02:00': the rows before have no time zone" in found


def test_time_zones_are_understood(tmp_path: Path) -> None:
    """The same moments as seconds, as local times and with offsets give the same rows."""
    kept = {}
    for name, zone, form in (
        ("s", "UTC", "%s"),
        ("local", "Europe/Copenhagen", "local"),
        ("offset", "UTC", "offset"),
    ):
        moments = pl.from_epoch(pl.Series([1_700_000_000 + 60 * n for n in range(60)])).dt.replace_time_zone(
            "UTC"
        )
        if form == "%s":
            texts = moments.dt.epoch("s").cast(pl.String)
        elif form == "local":
            texts = moments.dt.convert_time_zone("Europe/Copenhagen").dt.strftime("%Y-%m-%d %H:%M:%S")
        else:
            texts = moments.dt.convert_time_zone("Asia/Shanghai").dt.strftime("%Y-%m-%dT%H:%M:%S%z")
        rows = [row.replace(str(1_700_000_000 + 60 * n), texts[n]) for n, row in enumerate(ROWS)]
        result = run(tmp_path / name, "\n".join([HEADER, *rows]), SCHEMA + f"time: {{zone: {zone}}}")
        assert result.exit_code == 0, result.output
        kept[name] = Store.open(tmp_path / name / "made" / "out").split("train").context["time"].tolist()
    assert kept["s"] == kept["local"] == kept["offset"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "|"),
        lambda text: text.rstrip("\n"),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: text.replace("u1,", '"u1",'),
        lambda text: text.replace("u1,", " u1 ,"),
    ],
    ids=["BOM", "CRLF", "tab", "semicolon", "bar", "no last newline", "blank lines", "quotes", "blanks"],
)
def test_ways_to_write_the_same(tmp_path: Path, change: Callable[[str], str]) -> None:
    plain, other = run(tmp_path / "a", lines()), run(tmp_path / "b", change(lines()))
    assert plain.exit_code == other.exit_code == 0, other.output
    first, second = (Store.open(tmp_path / name / "made" / "out").fingerprint for name in "ab")
    assert first == second


def test_an_item_twice_in_its_table(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "items.csv").write_text("item,colour\ni0,red\ni1,blue\ni0,green\n")
    schema = SCHEMA + "  colour: {source: item}\nitems: [{file: items.csv, key: item}]\n"
    assert refused(tmp_path, lines(), schema) == "items.csv: column 'item', row 2: item 'i0' is there twice"


def test_lists_of_lists_in_parquet(tmp_path: Path) -> None:
    frame = pl.read_csv(lines().encode()).with_columns(tags=pl.lit([[1, 2], [3]]))
    frame.write_parquet(tmp_path / "log.parquet")
    found = refused(
        tmp_path, (tmp_path / "log.parquet").read_bytes(), SCHEMA + "  tags: {kind: list}\n", "log.parquet"
    )
    assert found == "log.parquet: column 'tags' holds lists of lists; one list per row can be read"


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_parquet_file_cut_off(tmp_path: Path, keep: float) -> None:
    pl.read_csv(lines().encode()).write_parquet(tmp_path / "whole.parquet")
    content = (tmp_path / "whole.parquet").read_bytes()
    found = refused(tmp_path, content[: int(len(content) * keep)], name="log.parquet")
    assert found.startswith("log.parquet: not a Parquet file, or cut off")


def test_rows_without_ids_are_left_out_where_that_is_wanted(tmp_path: Path) -> None:
    content = lines((4, ",i1,1700000000,1,1.5,a"), (5, "u1,,1700000000,1,1.5,a"))
    result = run(tmp_path, content, SCHEMA + "source: {drop_rows_without_ids: true}")
    assert result.exit_code == 0, result.output
    assert "note: 2 rows without user or item were left out" in result.stderr
    assert sum(Store.open(tmp_path / "made" / "out").splits.values()) == 58


def test_hashed_ids_are_just_ids(tmp_path: Path) -> None:
    rows = [f"{2**31 + 7919 * (n % 5)},{-(2**62) + n % 7},{1_700_000_000 + n},{n % 2},1,a" for n in range(60)]
    result = run(tmp_path, "\n".join([HEADER, *rows]))
    assert result.exit_code == 0, result.output
    store = Store.open(tmp_path / "made" / "out")
    assert (store.num_items, store.num_users) == (8, 5)


def test_no_history_at_all_is_said(tmp_path: Path) -> None:
    result = run(tmp_path, lines(), SCHEMA + "history: {events: none}")
    assert result.exit_code == 0, result.output
    assert "note: no row has a history" in result.stderr
    assert not Store.open(tmp_path / "made" / "out").split("train").end.any()


def test_a_user_and_an_item_in_test_only(tmp_path: Path) -> None:
    content = lines((59, "new,fresh,1700003600,1,1.5,z"))
    result = run(tmp_path, content, SCHEMA + "ids: {user: true}")
    assert result.exit_code == 0, result.output
    store = Store.open(tmp_path / "made" / "out")
    test = store.split("test")
    last = int(test.context["time"].argmax())
    assert store.users["user"][test.user[last]] == store.items["item"][test.item[last]] == 1
    assert (test.context["place"][last], test.end[last]) == (1, 0)


def test_one_class_in_test_is_said(tmp_path: Path) -> None:
    changed = ((n, ROWS[n].replace(f",{n % 2},", ",0,")) for n in range(54, 60))
    result = run(tmp_path, lines(*changed))
    assert result.exit_code == 0, result.output
    assert "test: the label is 0 in all its 6 rows" in result.stderr


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it happens while the log is spooled; what was at the path before is still there."""
    assert run(tmp_path, lines()).exit_code == 0
    before = Store.open(tmp_path / "made" / "out").fingerprint

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Spool, "write", full)
    with pytest.raises(DataError, match=r"cannot be written \(the disk is full"):
        prepare_log(
            tmp_path / "log.csv",
            tmp_path / "made" / "out",
            load_schema(tmp_path / "log.yaml"),
            Progress(False),
        )
    assert Store.open(tmp_path / "made" / "out").fingerprint == before
    assert [entry.name for entry in (tmp_path / "made").iterdir()] == ["out"]


def test_a_folder_that_is_no_prepared_set_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "made" / "out").mkdir(parents=True)
    (tmp_path / "made" / "out" / "thesis.tex").write_text("mine")
    result = run(tmp_path, lines())
    assert result.exit_code == 2
    assert (tmp_path / "made" / "out" / "thesis.tex").read_text() == "mine"


LEAK = """
columns: {user: user, item: item, time: time, label: click}
history: {given: {items: past, separator: " "}}
splits: {by: time}
"""


def test_the_target_as_the_last_behaviour_of_its_own_click_is_said(tmp_path: Path) -> None:
    def content(leak: bool) -> str:
        rows = []
        for n in range(300):
            past = f"i{(n * 5 + 1) % 7} i{(n * 3 + 2) % 7}" + (f" i{n % 7}" if leak and n % 2 else "")
            rows.append(f"u{n % 5},i{n % 7},{1_700_000_000 + n},{n % 2},{past}")
        return "\n".join(["user,item,time,click,past", *rows])

    said = run(tmp_path / "a", content(leak=True), LEAK)
    assert said.exit_code == 0, said.output
    assert (
        "train: in 100% of the clicks the last behaviour of the history is the target itself" in said.stderr
    )
    assert "target itself" not in run(tmp_path / "b", content(leak=False), LEAK).stderr


def test_a_feature_that_tells_the_click_is_said(tmp_path: Path) -> None:
    rows = [f"u{n % 5},i{n % 7},{1_700_000_000 + n},{n % 2},{n % 2 * 30 + n % 3},a" for n in range(300)]
    result = run(tmp_path, "\n".join([HEADER, *rows]))
    assert result.exit_code == 0, result.output
    assert "feature 'price' alone tells clicks from the rest (AUC 1.000)" in result.stderr


def test_given_histories_that_reach_past_the_row_are_cut_and_said(tmp_path: Path) -> None:
    schema = LEAK.replace('separator: " "', 'separator: " ", times: when')
    rows = [f"u{n % 5},i{n % 7},{1_700_000_000 + n},{n % 3 % 2},a b c,{1_700_000_000 + n - 5} "
            f"{1_700_000_000 + n - 1} {1_700_000_000 + n}" for n in range(60)]  # fmt: skip
    result = run(tmp_path, "\n".join(["user,item,time,click,past,when", *rows]), schema)
    assert result.exit_code == 0, result.output
    assert "60 given behaviours were not before the row" in result.stderr
    assert (Store.open(tmp_path / "made" / "out").split("train").length == 2).all()


def test_a_mistake_inside_a_list_has_the_row_of_the_list(tmp_path: Path) -> None:
    schema = LEAK.replace('separator: " "', 'separator: " ", times: when')
    header = "user,item,time,click,past,when"
    rows = [
        f"u{n % 5},i{n % 7},{1_700_000_000 + n},{n % 3 % 2},a b,{1_699_999_000 + n} {1_699_999_100 + n}"
        for n in range(60)
    ]
    good = rows[31]
    rows[31] = good.replace(" 1699999131", " soon")
    found = refused(tmp_path, "\n".join([header, *rows]), schema)
    assert found.startswith("log.csv: column 'when', row 31: 'soon' is not a time")
    rows[31] = good.replace(" 1699999131", "")
    found = refused(tmp_path / "b", "\n".join([header, *rows]), schema)
    assert found == "log.csv: column 'when', row 31: 1 entries for 2 behaviours in 'past'"
