"""The page of a study and of a run by the real command, and in a real browser."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from browser import CHROMIUM, Browser
from common.study.command import find_study
from common.study.execute import execute
from common.study.results import complete, resolve
from fake_train import simulate
from lain.cli import main
from lain.study.kind import CTR, SECTIONS
from tiny_retrieval import causalneg, tiny_data

STUDY = """
name: tiny
description: Does <script>alert("LAIN")</script> help & how?
data: {format: world, users: 60, rows: 400, valid_rows: 100, test_per_bucket: 50}
backbones: [twin]
arms:
  base: {length.preset: base}
  lain: {length.preset: lain}
  temperature-loglength: {length.preset: temperature-loglength}
seeds: [0, 1]
extra:
  - {backbones: [twin], arms: [base, lain], tag: sweep, seeds: [0], vary: {history.max_length: [50, 200]}}
"""


def quiet(line: str) -> None:
    assert "\n" not in line


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder whose runs are stand-ins, left as the command leaves it."""
    folder = tmp_path_factory.mktemp("page")
    path, out = folder / "tiny.yaml", folder / "runs" / "ctr-tiny"
    path.write_text(STUDY)
    loaded = find_study(CTR, str(path))
    prepared = CTR.prepare(loaded, None, out, workers=1, report=quiet)
    plan = complete(resolve(CTR, loaded.plan()), lambda config: CTR.fingerprint(prepared, config))
    assert execute(plan, simulate, out, report=quiet) == []
    done = command("study", path, "--out", out)  # nothing is left to train
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture
def copy(study: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(study.parent, tmp_path / "runs")
    return tmp_path / "runs" / "ctr-tiny"


class Reader(HTMLParser):
    """Words, tags and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_lies_beside_the_table_and_has_all_of_it(study: Path) -> None:
    text, table = (study / "page.html").read_text(), (study / "table.md").read_text()
    page = Reader(text)
    assert len(text.encode()) < 2_000_000
    assert "script" not in page.tags
    assert not [address for address in page.addresses if re.match(r"https?:|//", address)]
    words = " ".join(page.words)
    assert 'Does <script>alert("LAIN")</script> help & how?' in words
    shown = {word.strip() for word in page.words}
    cells = [
        cell.strip()
        for line in table.splitlines()
        if line.startswith("| ") and not set(line) <= set("|-: ")
        for cell in line.strip("|").split("|")
    ]
    assert len(cells) > 150
    assert {cell for cell in cells if cell} <= shown
    assert [title for title in ("Calibration", "AUC against the maximum length") if title in shown] != []
    links = [address for address in page.addresses if address.endswith(("json", "md", "parquet"))]
    assert len(links) == 3 + 3 * 2 + 2 * 2
    assert all((study / link.replace("%3D", "=")).is_file() for link in links)
    assert len(re.findall(r"<figure>", text)) == len(re.findall(r"<summary>Numbers</summary>", text)) >= 10


def test_the_answer_is_computed_from_the_runs(study: Path) -> None:
    words = " ".join(Reader((study / "page.html").read_text().split("</nav>")[0]).words)
    table = (study / "table.md").read_text()
    overview = table.split("## lain minus base, AUC x 100\n\n")[1].splitlines()[2]
    cells = [cell.strip() for cell in overview.strip("|").split("|")]
    assert f"lengths 0-50: gains for TWIN ({cells[2].rstrip('*')})" in words
    assert f"lengths 200+: loses for TWIN ({cells[-1].rstrip('*')})" in words
    assert "Against the control temperature-loglength" in words
    assert "Not shown" in words
    assert "not new seeds" in words


def test_every_difference_leads_to_users(study: Path) -> None:
    text = (study / "page.html").read_text()
    anchors = set(re.findall(r'id="([^"]+)"', text))
    table = text.split("<h3>lain minus base, AUC x 100</h3>")[1].split("</table>")[0]
    links = re.findall(r'<td class="[^"]*"><a href="#([^"]+)">', table)
    # From 100 to 200 LAIN of the stand-in scores as base does: nothing is behind that difference.
    groups = ("all", "0-50", "50-100", "0-100", "200_2b_")
    assert links == [f"changes.twin.lain.{group}" for group in groups]
    assert {to for to in re.findall(r'href="#([^"]+)"', text)} <= anchors
    # LAIN of the stand-in harms long histories, so their users lose most.
    behind = text.split('id="changes.twin.lain.200_2b_"')[1]
    counts = re.search(r"Of (\d+) users (\d+) gain, (\d+) lose", behind)
    assert counts is not None
    assert int(counts[3]) > int(counts[2])
    assert "No history: the prepared data are not those that were predicted." in text


def test_links_are_relative_to_where_the_page_lies(study: Path, tmp_path: Path) -> None:
    done = command("report", study, "--out", tmp_path / "elsewhere.html")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'elsewhere.html'}\n"), done.output
    links = Reader((tmp_path / "elsewhere.html").read_text()).addresses
    records = [link for link in links if link.endswith("record.json")]
    assert records
    assert all((tmp_path / link.replace("%3D", "=")).is_file() for link in records)


def test_an_unfinished_study_says_what_is_missing(copy: Path) -> None:
    (copy / "twin-lain-1" / "record.json").unlink()
    (copy / "twin-lain-1" / "error.txt").write_text("Traceback\nValueError: <b>too</b> much\n")
    shutil.rmtree(copy / "twin-base-1")
    assert command("report", copy).exit_code == 0
    answer = " ".join(Reader((copy / "page.html").read_text().split("</nav>")[0]).words)
    assert "Unfinished: 2 of 10 runs." in answer
    assert "Run twin-lain-1: failed: ValueError: <b>too</b> much." in answer
    assert "Run twin-base-1: not begun." in answer


def test_a_study_without_a_finished_run_has_a_page_too(copy: Path) -> None:
    for record in copy.glob("*/record.json"):
        record.unlink()
    assert command("report", copy).exit_code == 0
    words = " ".join(Reader((copy / "page.html").read_text()).words)
    assert "Nothing can be said yet" in words
    assert "Unfinished: 10 of 10 runs." in words


def test_a_run_has_a_page(copy: Path) -> None:
    run = copy / "twin-lain-0"
    (run / "config.yaml").write_text("")
    (run / "metrics.csv").write_text("step,train/loss\n0,0.7\n1,0.6\n2,\n3,0.5\n")
    done = command("report", run)
    assert (done.exit_code, done.stdout) == (0, f"{run / 'page.html'}\n"), done.output
    page = Reader((run / "page.html").read_text())
    words = {word.strip() for word in page.words}
    metrics = json.loads((run / "record.json").read_text())["metrics"]
    assert {f"{metrics[name]:.5g}" for name in ("test/auc", "test/auc/0-50", "test/logloss/200+")} <= words
    assert {"train/loss", "Calibration", "Attention by history length", "length.preset"} <= words


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    done = command("report", tmp_path)
    assert done.exit_code == 2
    assert "holds neither a run (record.json) nor a study (study.yaml)" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_section_is_one_function_and_one_line(copy: Path) -> None:
    from common.report.page.render import Section

    def seeds(report: Any) -> Section:
        return Section("Number of runs", text=[f"There are {len(report.runs)}."])

    def nothing(report: Any) -> None:
        return None

    SECTIONS.add("seeds", seeds)
    SECTIONS.add("nothing", nothing)
    try:
        assert command("report", copy).exit_code == 0
    finally:
        SECTIONS.remove("seeds")
        SECTIONS.remove("nothing")
    assert "There are 10." in (copy / "page.html").read_text()


WIDTHS = (390, 1280)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with Browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


def page_of(which: str, study: Path, folder: Path) -> Path:
    """A page of each kind."""
    page = folder / "page.html"
    if which == "study":
        return study / "page.html"
    if which == "unfinished study":
        shutil.copytree(study.parent, folder / "runs")
        shutil.rmtree(folder / "runs" / "ctr-tiny" / "twin-base-1")
        done = command("report", folder / "runs" / "ctr-tiny", "--out", page)
    elif which == "run":
        shutil.copytree(study / "twin-lain-0", folder / "run")
        (folder / "run" / "config.yaml").write_text("")
        done = command("report", folder / "run", "--out", page)
    elif which == "data":
        done = command("show", study.parent / "data" / "world", "--page", page)
    else:
        done = causalneg("show", tiny_data(folder / "corpus"), "--page", page)
    assert done.exit_code == 0, done.output
    return page


@pytest.mark.slow
@pytest.mark.parametrize("which", ["study", "unfinished study", "run", "data", "corpus"])
def test_in_a_browser(study: Path, tmp_path: Path, browser: Browser, which: str) -> None:
    page = page_of(which, study, tmp_path)
    for width, dark in itertools.product(WIDTHS, (False, True)):
        browser.show(page, width=width, dark=dark)
        found = browser.measure()
        assert (found["width"], found["dark"], found["overflow"]) == (width, dark, 0)
        assert found["low"] == []
        assert found["texts"] > 100
        assert found["reachable"]
        assert browser.console == []
        assert [address for address in browser.requests if not address.startswith(("file:", "data:"))] == []


@pytest.mark.slow
def test_examples_are_reached_without_a_mouse(study: Path, browser: Browser) -> None:
    browser.show(study / "page.html", width=1280)
    for _ in range(200):
        browser.press("Tab")
        if browser.evaluate("document.activeElement.matches('td a')"):
            break
    assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    to = browser.evaluate("document.activeElement.getAttribute('href')")
    assert to == "#changes.twin.lain.all"
    seen = f"document.getElementById('{to[1:]}').checkVisibility()"
    assert browser.evaluate(seen) is False
    browser.press("Enter")
    assert browser.evaluate(seen) is True
    browser.press("Tab")  # the first user inside
    assert browser.evaluate("document.activeElement.tagName") == "SUMMARY"
    browser.press("Enter")
    inside = f"document.getElementById('{to[1:]}').querySelector('details')"
    assert browser.evaluate(f"{inside}.open") is True
    assert browser.evaluate(f"{inside}.querySelector('table').checkVisibility()") is True


@pytest.mark.slow
def test_print_shows_tables_and_leaves_out_examples(study: Path, browser: Browser) -> None:
    browser.show(study / "page.html", width=800, dark=True, media="print")
    shown = "[...document.querySelectorAll('{}')].map(one => one.checkVisibility())"
    assert not any(browser.evaluate(shown.format(".entry")))
    folded = browser.evaluate(shown.format(".folded table"))
    assert folded
    assert all(folded)
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


@pytest.mark.slow
def test_the_browser_finds_what_is_wrong(tmp_path: Path, browser: Browser) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<body style='background:white'><p style='color:#999;width:2000px'>pale</p>"
        "<img src='http://127.0.0.1:19/a.png'><script>console.error('x')</script>"
    )
    browser.show(bad, width=390)
    found = browser.measure()
    assert found["overflow"] > 1000
    assert [words for words, _ in found["low"]] == ["pale"]
    assert "x" in browser.console
    assert "http://127.0.0.1:19/a.png" in browser.requests
