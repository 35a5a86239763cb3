"""What a person sees of a sweep in MLflow's UI, checked in a real browser."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from support.ports import answers, free_port
from support.records import write_sweep
from support.tracked import deliver_sweep

from tokconv.evaluation.figures import FIGURES
from tokconv.sweep.judge.snapshot import read_sweep
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.log import Record
from tokconv.sweep.report.table import summary_markdown
from tokconv.sweep.tracking.mlflow_connection import local_uri
from tokconv.sweep.tracking.mlflow_ui import mlflow_server
from tokconv.sweep.tracking.mlflow_view import baseline_run_name, run_name

CHROMIUM = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of MLflow and SQLAlchemy
    pytest.mark.skipif(
        CHROMIUM is None or shutil.which("chromedriver") is None, reason="needs chromium and chromedriver"
    ),
]
Found = TypeVar("Found")
SHOT = os.environ.get("TOKCONV_SCREENSHOT")
"""Path of a screenshot of the table, if one is wanted."""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> SweepDirectory:
    """A sweep of 14 trials and its confirmations, in a database."""
    root = tmp_path_factory.mktemp("ui")
    directory = write_sweep(root, trials=14)
    view = read_sweep(directory)
    record = Record(directory.events)
    summary = summary_markdown(view)
    record.append("sweep_ended", state="finished", champions={}, evidence={}, artifacts=None, summary=summary)
    record.close()
    deliver_sweep(directory)
    return directory


@pytest.fixture(scope="module")
def server(sweep: SweepDirectory) -> Iterator[str]:
    """Run the server of `tokconv ui`, on a free port."""
    runs, port = sweep.path.parents[1], free_port()
    with mlflow_server(local_uri(runs), runs, port) as address:
        yield address
    assert not answers(f"{address}/health")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"),
        *("disable-background-networking", "disable-component-update", "window-size=1800,1100"),
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def table(browser: webdriver.Chrome, server: str) -> webdriver.Chrome:
    """Open the link that a sweep prints."""
    browser.get("about:blank")
    browser.get(f"{server}/#/experiments/1/runs?viewStateShareKey=tokconv")
    _until(lambda: _rows(browser), 60)
    return browser


def test_the_table_compares_ratios_without_any_setup(table: webdriver.Chrome, sweep: SweepDirectory) -> None:
    view = read_sweep(sweep)
    found = [
        (trial.figures["val/fvu"], run_name(trial), trial.ratio) for trial in view.trials.values() if trial.figures
    ]
    for one in view.verdicts:
        rows = one.baselines.items()
        found += [(row["val/fvu"], baseline_run_name(name, one.grid, one.ratio), one.ratio) for name, row in rows]
    expected = sorted(found)
    # Trials and baselines, the best first: no parent run and no confirmation. The browser draws only the first rows.
    assert [row.splitlines()[-2] for row in _rows(table)][:8] == [name for _, name, _ in expected[:8]]
    headings = [element.text for element in _all(table, "[role=columnheader]") if element.text]
    assert {"Run Name", "compression_ratio", "val/fvu", "val/gain"} <= set(headings)
    ratios = _column(table, "compression_ratio")[:8]
    assert ratios == [f"{ratio:.6g}" for _, _, ratio in expected[:8]]
    assert FIGURES["val/fvu"].meaning in _text(table).replace("\n", " ")


def test_the_view_of_a_ratio_compares_its_runs_alone(browser: webdriver.Chrome, server: str) -> None:
    browser.get("about:blank")
    browser.get(f"{server}/#/experiments/1/runs?viewStateShareKey=tokconv-08")
    _until(lambda: _rows(browser), 60)
    assert {row.splitlines()[-2].split()[1] for row in _rows(browser)} == {"k=8"}
    assert set(_column(browser, "compression_ratio")[: len(_rows(browser))]) == {"9"}
    if SHOT is not None:
        browser.save_screenshot(SHOT)


def test_the_charts_plot_ratio_against_fidelity(table: webdriver.Chrome) -> None:
    table.execute_script("arguments[0].click()", table.find_element(By.CSS_SELECTOR, "input[value=CHART]"))
    titles = lambda: [element.text for element in _all(table, ".xtitle, .ytitle")]  # noqa: E731
    _until(lambda: titles()[:4] == ["compression_ratio", "val/fvu", "val/fvu", "val/swd"], 60)


def test_selected_runs_are_compared(table: webdriver.Chrome) -> None:
    boxes = _all(table, ".ag-row .ag-selection-checkbox .ag-checkbox-input-wrapper")
    names = [row.splitlines()[-2] for row in _rows(table)]
    for index in (0, 3, 5):
        boxes[index].click()
    _until(lambda: _button(table, "Compare"), 20).click()
    _until(lambda: "Comparing 3 Runs" in _text(table), 60)
    text = _text(table)
    assert all(names[index] in text for index in (0, 3, 5))
    ratios = " ".join(names[index].split("x", 1)[0] for index in (0, 3, 5))
    assert f"compression_ratio {ratios}" in text


def test_the_parent_run_shows_the_result(browser: webdriver.Chrome, server: str, sweep: SweepDirectory) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(local_uri(sweep.path.parents[1]))
    [parent] = client.search_runs(["1"], "tags.`tokconv.kind` = 'sweep'")
    browser.get(f"{server}/#/experiments/1/runs/{parent.info.run_id}")
    _until(lambda: "window PCA" in _text(browser), 60)
    _until(lambda: _button(browser, "Show more"), 20).click()
    _until(lambda: "8x8" in _text(browser), 20)


def _until(reached: Callable[[], Found], seconds: float) -> Found:
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = reached()
        except (NoSuchElementException, StaleElementReferenceException):
            found = None  # type: ignore[assignment]
        if found:
            return found
        assert time.monotonic() < deadline, "the page never reaches that state"
        time.sleep(0.3)


def _all(browser: webdriver.Chrome, selector: str) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def _rows(browser: webdriver.Chrome) -> list[str]:
    """Return the text of the pinned part of each row: name and age."""
    return [row.text for row in _all(browser, ".ag-pinned-left-cols-container .ag-row") if row.text]


def _column(browser: webdriver.Chrome, name: str) -> list[str]:
    """Return the texts of a column, from the top."""
    rows = _all(browser, ".ag-center-cols-container .ag-row")
    rows.sort(key=lambda row: int(row.get_attribute("row-index") or 0))
    return [row.find_element(By.CSS_SELECTOR, f"[col-id*='metric'][col-id*='{name}']").text for row in rows]


def _text(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.TAG_NAME, "body").text


def _button(browser: webdriver.Chrome, text: str) -> WebElement | None:
    return next((button for button in _all(browser, "button") if button.text == text), None)
