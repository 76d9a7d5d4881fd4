"""Tests of reports in Chromium, opened from disk and served. Run by `make test-browser`."""

import contextlib
import json
import os
import shutil
import time

import numpy as np
import pytest

import pytreesaver as pts
from pytreesaver._inspect.report.serving import ReportServer

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
        "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver))
    driver.set_window_size(1400, 1200)
    driver.set_script_timeout(60)
    yield driver
    with contextlib.suppress(Exception):
        driver.quit()


def opened(browser, path, width=1280, scheme="light"):
    scheme = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path if isinstance(path, str) else path.absolute().as_uri())
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


def press(browser, *keys):
    from selenium.webdriver import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def active(browser):
    return browser.execute_script("return document.activeElement.id || document.activeElement.className")


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


PLOTS = [
    "#metrics figure", "#lifetimes", "#reasons", "#save-bytes", "#save-times", "#save-intervals", "#norms", "#drifts",
    "#distribution", "#heatmap",
]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_everything_is_drawn_without_errors_network_or_overflow(browser, report, width, scheme):
    opened(browser, report, width, scheme)
    assert browser.execute_script("return document.documentElement.dataset.theme") == scheme
    for plot in PLOTS:
        wait_until(browser, f"return document.querySelector('{plot} svg') !== null")
        box = browser.execute_script(f"return document.querySelector('{plot} svg').getBoundingClientRect()")
        assert 250 < box["width"] <= width
        assert box["height"] > 60
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    outside = """
        return [...document.querySelectorAll('svg text, figure, .area, h1, h2, p, button')].filter((each) => {
          const box = each.getBoundingClientRect();
          const isOutside = box.left < 0 || box.right > document.documentElement.clientWidth;
          return !each.closest('.scroll') && box.width && isOutside;
        }).map((each) => each.outerHTML.slice(0, 200))"""
    assert browser.execute_script(outside) == []
    assert len(browser.find_elements("css selector", "#treemap .area")) > 12
    assert browser.get_log("browser") == []
    assert [url for url in requests_of(browser) if url.startswith(("http:", "https:", "ws:", "wss:"))] == []


def test_names_are_text(browser, report):
    opened(browser, report)
    assert browser.title == "run: checkpoints"
    assert "params/" + HOSTILE in texts(browser, "#variables td.name")
    assert any("<img src=x" in each for each in texts(browser, "#checkpoints td"))
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0


def test_scripts_of_others_do_not_run(browser, report):
    text = report.read_text().replace("<main>", "<main><script>document.title = 'hacked'</script>")
    report.write_text(text)
    opened(browser, report)
    assert browser.title == "run: checkpoints"
    (message,) = browser.get_log("browser")
    assert "Content Security Policy" in message["message"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast(browser, report, scheme):
    opened(browser, report, scheme=scheme)
    ratio = """
        const style = getComputedStyle(document.documentElement);
        const light = (name) => {
          const { r, g, b } = d3.color(style.getPropertyValue(name).trim());
          const linear = [r, g, b].map((v) => (v <= 10 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
          return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
        };
        const [a, b] = [light(arguments[0]), light(arguments[1])].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);"""
    for background in ("--page", "--panel"):
        for text in ("--text", "--dim", "--bad", "--kept", "--focus", *(f"--c{i}" for i in range(8))):
            assert browser.execute_script(ratio, text, background) >= (3 if text.startswith(("--c", "--k")) else 4.5), (
                text
            )
    assert browser.execute_script(ratio, "--text", "--chosen") >= 4.5


def test_sizes_are_shown_as_people_read_them(browser, report):
    opened(browser, report)
    (size,) = browser.find_elements("css selector", ".summary data.bytes")
    assert size.text.endswith(" kB")
    assert size.get_attribute("title").endswith(" bytes")
    cells = browser.find_elements("css selector", "#variables tbody tr:first-child td")
    assert [(each.text, each.get_attribute("title")) for each in cells if each.get_attribute("title")] == [
        ("1.0 kB", "1,024 bytes")
    ]


def test_tools_are_only_under_the_pointer(browser, report):
    from selenium.webdriver import ActionChains

    opened(browser, report)
    tools = browser.find_elements("css selector", "figure .tools")
    assert len(tools) == len(PLOTS)
    assert not any(each.is_displayed() for each in tools)
    ActionChains(browser).move_to_element(browser.find_element("css selector", "#metrics .drawing")).perform()
    assert [each.is_displayed() for each in tools] == [True] + [False] * (len(PLOTS) - 1)
    assert browser.find_element("css selector", "#metrics .tip").text.startswith("ckpt-2\nsaved ")


def test_learning_curves_mark_kept_and_deleted_saves(browser, report):
    opened(browser, report)
    assert texts(browser, "#status-legend span") == ["kept (3)", "deleted (2)"]
    dots = "return [...document.querySelectorAll('#metrics svg g[aria-label=dot]')]"
    colours = f"{dots}.map((g) => [g.getAttribute('stroke'), g.children.length])"
    assert browser.execute_script(colours) == [["var(--kept)", 3], ["var(--gone)", 2]]
    assert browser.find_element("css selector", "#metrics .drawing").get_attribute("aria-label") == (
        "loss: 5 saves; last 0.2 at step 4, least 0.2 at step 4"
    )


def test_a_plot_by_keyboard(browser, report):
    from selenium.webdriver import Keys

    opened(browser, report)
    spoken = "return document.querySelector('#metrics .visually-hidden').textContent"
    press(browser, Keys.TAB)
    assert active(browser) == "theme"
    press(browser, Keys.TAB, Keys.TAB)
    assert active(browser) == "drawing" or browser.execute_script("return document.activeElement.textContent") == "log"
    browser.execute_script("document.querySelector('#metrics .drawing').focus()")
    press(browser, Keys.ARROW_RIGHT)
    assert browser.execute_script(spoken).startswith("ckpt-0, saved ")
    press(browser, Keys.END)
    assert browser.execute_script(spoken).startswith("ckpt-4, saved ")
    press(browser, Keys.ARROW_LEFT)
    assert browser.execute_script(spoken).startswith("ckpt-3, saved ")
    assert browser.find_element("css selector", "#metrics .tip").is_displayed()
    ticks = "#metrics svg [aria-label='x-axis tick label'] text"
    assert texts(browser, ticks)[0] == "0"
    press(browser, "+")
    assert texts(browser, ticks)[0] != "0"
    assert browser.find_element("css selector", "#metrics .tip").text.startswith("ckpt-3")
    press(browser, "0")
    assert texts(browser, ticks)[0] == "0"
    log = browser.find_element("css selector", "#metrics .tools button[aria-pressed]")
    assert log.get_attribute("aria-pressed") == "false"
    press(browser, "l")
    assert log.get_attribute("aria-pressed") == "true"
    press(browser, Keys.ESCAPE)
    assert not browser.find_element("css selector", "#metrics .tip").is_displayed()
    assert browser.get_log("browser") == []


def test_a_drag_zooms(browser, report):
    from selenium.webdriver import ActionChains

    opened(browser, report)
    drawing = browser.find_element("css selector", "#metrics .drawing")
    lines = "return document.querySelectorAll('#metrics svg g[aria-label=dot] > *').length"
    assert browser.execute_script(lines) == 5
    ActionChains(browser).move_to_element(drawing).click_and_hold().move_by_offset(300, 0).release().perform()
    assert browser.execute_script(lines) < 5
    browser.find_element("css selector", "#metrics .tools button").click()
    assert browser.execute_script(lines) == 5


def test_the_areas_by_keyboard(browser, report):
    from selenium.webdriver import ActionChains, Keys

    opened(browser, report)
    area = next(each for each in browser.find_elements("css selector", "#treemap button") if "layer_3" in each.text)
    area.send_keys(Keys.ENTER)
    names = texts(browser, "#treemap .area > span")
    assert sorted(names) == ["bias", "kernel"]
    assert texts(browser, "#treemap-path button")[-2:] == ["params", "layer_3"]
    assert browser.execute_script("return document.activeElement.textContent") == "layer_3"
    ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
    press(browser, Keys.ENTER)
    assert texts(browser, "#treemap-path button")[-1] == "params"


def test_the_search_filters_the_table_and_the_heatmap(browser, report):
    opened(browser, report)
    assert texts(browser, "#count") == ["25 of 25 variables"]
    browser.find_element("id", "search").send_keys("LAYER_1 kernel")
    wait_until(browser, "return document.getElementById('count').textContent.startsWith('3 of')")
    assert sorted(texts(browser, "#variables td.name")) == [f"params/layer_{i}/kernel" for i in (1, 10, 11)]
    wait_until(browser, "return document.getElementById('heatmap-count').textContent.startsWith('3 of the 3')")
    browser.find_element("id", "search").send_keys(" nothing")
    wait_until(browser, "return document.getElementById('count').textContent.startsWith('0 of')")
    wait_until(browser, "return document.querySelector('#heatmap .empty') !== null")
    assert browser.get_log("browser") == []


def test_headings_sort(browser, report):
    from selenium.webdriver import Keys

    opened(browser, report)
    heading = next(
        each for each in browser.find_elements("css selector", "#variables th button") if each.text == "drift"
    )
    for action, descending in ((heading.click, True), (lambda: heading.send_keys(Keys.ENTER), False)):
        action()
        drifts = [each for each in texts(browser, "#variables tbody tr td:nth-child(8)") if each]
        numbers = [float(each.replace(",", "")) for each in drifts]
        assert len(numbers) == 13
        assert numbers == sorted(numbers, reverse=descending)


def test_rows_choose_the_curves(browser, report):
    from selenium.webdriver import Keys

    opened(browser, report)
    names = "return [...document.querySelectorAll('#norms .legend span')].map((each) => each.title)"
    # The initial selection: variables with NaN, then those with the largest drift.
    assert browser.execute_script(names)[0] == "params/layer_7/kernel"
    assert browser.execute_script(names)[-1] == "NaN or Inf"
    browser.find_element("id", "clear").click()
    assert texts(browser, "#norms .empty") == ["Choose variables in the table above."]
    browser.find_element("id", "search").send_keys("layer_5/bias")
    browser.find_element("css selector", "#variables tbody tr").click()
    assert browser.execute_script(names) == ["params/layer_5/bias"]
    assert texts(browser, "#distribution h3") == ["params/layer_5/bias"]
    browser.find_element("css selector", "#variables tbody input").send_keys(Keys.SPACE)
    assert browser.execute_script(names) == []


def test_the_theme_can_be_switched(browser, report):
    opened(browser, report)
    colours = """
        const style = (selector) => getComputedStyle(document.querySelector(selector));
        return [style('body').backgroundColor, style('#norms svg text').fill, style('#norms svg path').stroke]"""
    before = browser.execute_script(colours)
    browser.find_element("id", "theme").click()
    after = browser.execute_script(colours)
    assert all(a != b for a, b in zip(before, after, strict=True))


def test_a_run_beside_another(browser, report):
    with pts.CheckpointManager("other", block=True) as manager:
        for step in (0, 3):
            tree = {"params": {"layer_7": {"kernel": np.ones((16, 8), np.float32)}}}
            manager.save(step, tree, metrics={"loss": 0.5, "accuracy": float("nan")})
    opened(browser, pts.write_report("run", against="other"))
    assert texts(browser, "#metrics h3") == ["loss", "accuracy"]
    assert texts(browser, "#metrics figure:first-child .legend span") == ["run", "other"]
    dashed = "return document.querySelectorAll(`#${arguments[0]} svg [stroke-dasharray] path`).length"
    assert browser.execute_script(dashed, "norms") == 1
    assert "25 variables differ" in texts(browser, "#differences-note")[0]
    assert "float64[16,8]" in texts(browser, "#differences td")
    browser.find_element("css selector", "#metric option[value=loss]").click()
    assert texts(browser, "#metrics h3") == ["loss"]
    assert browser.get_log("browser") == []


def test_a_served_page_follows_the_run(browser):
    tree = {f"w{i}": np.full((4, 4), float(i)) for i in range(30)}
    with pts.CheckpointManager("run", max_to_keep=3, block=True) as manager, contextlib.ExitStack() as stack:
        for step in (1, 2):
            manager.save(step, tree, metrics={"loss": 1 / step, "accuracy": 1.0})
        server = stack.enter_context(ReportServer("run"))
        opened(browser, server.url)
        wait_until(browser, "return document.getElementById('live').textContent === 'live'")
        browser.find_element("id", "clear").click()
        browser.find_element("css selector", "#metric option[value=loss]").click()
        search = browser.find_element("id", "search")
        search.send_keys("w2")
        browser.find_element("css selector", "#variables tbody input").click()
        search.click()
        browser.execute_script("window.scrollTo(0, 700)")
        tree["w2"] = tree["w2"] + 1
        manager.save(3, tree, metrics={"loss": 0.1, "accuracy": 1.0})
        wait_until(browser, "return document.querySelectorAll('#checkpoints tbody tr').length === 3")
        assert browser.execute_script("return window.scrollY") == 700
        assert active(browser) == "search"
        assert search.get_attribute("value") == "w2"
        assert texts(browser, "#count") == ["11 of 30 variables"]
        assert texts(browser, "#metrics h3") == ["loss"]
        assert len(texts(browser, "#norms .legend span")) == 1
        assert (
            browser.execute_script("return document.querySelectorAll('#metrics svg [aria-label=dot] > *').length") == 3
        )
        assert "ckpt-3" in texts(browser, ".summary dd")
        assert browser.get_log("browser") == []
        server.close()
        wait_until(browser, "return document.getElementById('live').textContent.startsWith('no connection')")


def test_a_run_without_values_metrics_or_steps(browser):
    for name in ("a", "b"):
        pts.save({"w": np.ones(3)}, f"run/{name}")
    opened(browser, pts.write_report("run", values=False))
    assert browser.get_log("browser") == []
    assert texts(browser, "#checkpoints td.name") == ["b", "a"]
    assert not browser.find_element("id", "metrics").is_displayed()
    assert not browser.find_element("id", "norms").is_displayed()
    assert texts(browser, "#saves-note") == ["How long a save took was not recorded for 2 of 2 saves."]
    assert texts(browser, "#save-times .empty") == ["Not recorded."]


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
