"""Tests of reports opened from disk in Chromium. Run by `make test-browser`."""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

import pytreesaver as pts

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=\"document.title='hacked'\">"


@pytest.fixture
def browser(tmp_path, request):
    """A headless Chromium that records console messages and network requests."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    chromium = chromium or shutil.which("google-chrome")
    driver = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")
    assert chromium, "no Chromium: apt-get install chromium chromium-driver"
    assert driver, "no chromedriver: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver))
    driver.set_window_size(1400, 1200)
    driver.set_script_timeout(60)
    yield driver
    with contextlib.suppress(Exception):
        driver.quit()


def opened(browser, path):
    browser.get(Path(path).absolute().as_uri())
    wait_until(browser, "return document.documentElement.dataset.drawn !== undefined")


def wait_until(browser, script, seconds=60):
    deadline = time.monotonic() + seconds
    while not browser.execute_script(script):
        assert time.monotonic() < deadline, script
        time.sleep(0.1)


def texts(browser, selector):
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)", selector
    )


def requests_of(browser):
    urls = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            urls.append(message["params"]["request"]["url"])
    return urls


@pytest.fixture
def report():
    rng = np.random.default_rng(0)
    params = {f"layer_{i}": {"kernel": rng.normal(size=(16, 8)), "bias": np.zeros(8)} for i in range(12)}
    with pts.CheckpointManager("run", max_to_keep=3, block=True) as manager:
        for step in range(5):
            for layer in params.values():
                layer["kernel"] = layer["kernel"] + rng.normal(size=(16, 8)) * 0.1
            tree = {**params, HOSTILE: np.ones(4)}
            if step == 4:
                tree["layer_7"] = {**params["layer_7"], "kernel": np.full((16, 8), np.nan)}
            manager.save(step, {"params": tree}, metrics={"loss": 1 / (step + 1)}, metadata={"note": HOSTILE})
    return pts.write_report("run")


def test_all_plots_are_drawn_without_errors_or_network(browser, report):
    opened(browser, report)
    for plot in ("lifetimes", "reasons", "metrics", "treemap", "norms", "drifts", "heatmap"):
        wait_until(browser, f"return document.querySelector('#{plot} .main-svg') !== null")
        box = browser.execute_script(f"return document.querySelector('#{plot} .main-svg').getBoundingClientRect()")
        assert box["width"] > 400
        assert box["height"] > 100
    assert browser.get_log("browser") == []
    assert [url for url in requests_of(browser) if url.startswith(("http:", "https:", "ws:", "wss:"))] == []
    assert browser.title == "run: checkpoints"
    assert "params/" + HOSTILE in texts(browser, "#variables td.name")
    assert any("<img src=x" in each for each in texts(browser, "#checkpoints td"))
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0


def test_the_search_filters_the_table_and_the_heatmap(browser, report):
    opened(browser, report)
    assert texts(browser, "#count") == ["25 of 25 variables"]
    browser.find_element("id", "search").send_keys("LAYER_1 kernel")
    wait_until(browser, "return document.getElementById('count').textContent.startsWith('3 of')")
    assert sorted(texts(browser, "#variables td.name")) == [f"params/layer_{i}/kernel" for i in (1, 10, 11)]
    wait_until(browser, "return document.getElementById('heatmap').data[0].y.length === 3")
    browser.find_element("id", "search").send_keys(" nothing")
    wait_until(browser, "return document.getElementById('count').textContent.startsWith('0 of')")
    assert browser.get_log("browser") == []


def test_a_click_on_a_heading_sorts(browser, report):
    opened(browser, report)
    heading = next(each for each in browser.find_elements("css selector", "#variables th") if each.text == "drift")
    for descending in (True, False):
        heading.click()
        drifts = [each for each in texts(browser, "#variables tbody tr td:nth-child(7)") if each]
        numbers = [float(each.replace(",", "")) for each in drifts]
        assert len(numbers) == 13
        assert numbers == sorted(numbers, reverse=descending)


def test_a_click_on_a_row_draws_its_curve(browser, report):
    opened(browser, report)
    names = "return document.getElementById('norms').data.map((each) => each.name)"
    # The initial selection: variables with NaN, then those with the largest drift.
    assert "params/layer_7/kernel" in browser.execute_script(names)
    assert browser.execute_script("return document.getElementById('norms').data.at(-1).text") == [
        "params/layer_7/kernel: 128 NaN, 0 Inf"
    ]
    browser.find_element("id", "clear").click()
    assert browser.execute_script(names) == ["NaN or Inf"]
    browser.find_element("id", "search").send_keys("layer_5/bias")
    browser.find_element("css selector", "#variables tbody tr").click()
    assert browser.execute_script(names) == ["params/layer_5/bias", "NaN or Inf"]


def test_light_and_dark_theme(browser, report):
    opened(browser, report)
    colour = "return getComputedStyle(document.body).backgroundColor"
    ink = "return document.getElementById('norms')._fullLayout.font.color"
    before = browser.execute_script(colour), browser.execute_script(ink)
    browser.find_element("id", "theme").click()
    after = browser.execute_script(colour), browser.execute_script(ink)
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_a_run_without_values_metrics_or_steps(browser):
    for name in ("a", "b"):
        pts.save({"w": np.ones(3)}, f"run/{name}")
    opened(browser, pts.write_report("run", values=False))
    assert browser.get_log("browser") == []
    assert texts(browser, "#checkpoints td.name") == ["b", "a"]
    assert not browser.find_element("id", "metrics").is_displayed()
    assert not browser.find_element("id", "norms").is_displayed()


def test_many_checkpoints_and_variables(browser):
    values = np.random.default_rng(0).normal(size=(2000, 4))
    with pts.CheckpointManager("run", policy=pts.KeepAll(), block=True) as manager:
        for step in range(30):
            manager.save(step, {f"layer_{i // 10}/w{i % 10}": values[i] + step for i in range(2000)})
    opened(browser, pts.write_report("run"))
    assert texts(browser, "#count") == ["2,000 of 2,000 variables"]
    browser.find_element("id", "search").send_keys("layer_199/w")
    wait_until(browser, "return document.getElementById('count').textContent.startsWith('10 of')")
    assert browser.get_log("browser") == []
