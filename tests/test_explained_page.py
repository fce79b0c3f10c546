"""The page of explained texts as a reader meets it: with a browser, a keyboard, in the dark, on a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from explained_case import BLOCK, EVIL, Elements
from test_report_page import contrast

from benchmarks.browser import browser, installed
from workbench.report.explained_page import render_explained

BROWSER = pytest.mark.skipif(installed() is None, reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two texts, whose prompts, tokens and candidates would like to be scripts."""
    block = {**BLOCK, "tokens": [EVIL, " words", "\n", ""]}
    records = [
        {"prompt": EVIL, "explained": block},
        {"prompt": "", "explained": block},
        {"prompt": "p", "explained": None},
    ]
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(render_explained(f"nado {EVIL}", "R is predicted.", records), encoding="utf-8")
    return file


def test_the_page_is_whole_and_escaped(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    elements = Elements(html)
    assert elements.open == [] and "window.evil = 1</script>" not in html
    tags = [tag for tag, _ in elements.found]
    assert tags.count("script") == 1 and "img" not in tags and tags.count("button") == 8
    places = [given[name] for _, given in elements.found for name in ("src", "href") if name in given]
    assert places == ["data:,"], "nothing is loaded"
    names = [given["id"] for _, given in elements.found if "id" in given]
    described = [given["aria-describedby"] for tag, given in elements.found if tag == "button"]
    assert len(set(names)) == len(names) and set(described) <= set(names)
    assert "the empty prompt" in html and "all that were drawn were rejected" in html


@pytest.fixture(scope="module")
def opened(page: Path) -> Iterator[Any]:
    with browser() as driver:
        driver.get(page.as_uri())
        yield driver


@BROWSER
def test_cards_stay_on_the_page(opened: Any) -> None:
    opened.set_window_size(700, 800)
    for button in opened.find_elements("css selector", "button.t"):
        opened.execute_script("arguments[0].focus()", button)
        left, right, width = opened.execute_script(
            "const b = document.activeElement.nextElementSibling.getBoundingClientRect();"
            "return [b.left, b.right, document.documentElement.clientWidth]"
        )
        assert 0 <= left < right <= width
    texts = opened.execute_script("return [...document.querySelectorAll('.text')].map((e) => e.innerText)")
    assert "words⏎" in texts[0].replace("▼", "").replace("\n", "").replace("≠", ""), "nothing between two tokens"
    opened.execute_script("document.activeElement.blur()")


SHOWN = "return [...document.querySelectorAll('.card')].filter((e) => e.offsetHeight).map((e) => e.id)"


@BROWSER
def test_a_keyboard_reads_the_page(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    assert opened.execute_script(SHOWN) == []
    buttons = opened.find_elements("css selector", "button.t")
    opened.execute_script("arguments[0].focus()", buttons[0])
    assert opened.execute_script(SHOWN) == ["c1-1"]
    buttons[0].send_keys(Keys.ARROW_RIGHT)
    assert opened.execute_script(SHOWN) == ["c1-2"]
    opened.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    assert opened.execute_script(SHOWN) == ["c1-1"]
    opened.switch_to.active_element.send_keys(Keys.TAB)
    assert opened.execute_script(SHOWN) == ["c1-2"]
    opened.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert opened.execute_script(SHOWN) == []
    opened.find_element("id", "numbers").click()
    assert "0.20" in opened.execute_script(
        "return getComputedStyle(document.querySelector('.t[data-r]'), '::after').content"
    )


@BROWSER
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_runs_no_text_and_its_colours_can_be_read(scheme: str, opened: Any) -> None:
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    assert opened.execute_script("return window.evil") is None
    assert [entry for entry in opened.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    requests = re.findall(r'Network\.requestWillBeSent.*?"url":"([a-z]+):', str(opened.get_log("performance")))
    assert not {"http", "https", "ws", "wss"} & set(requests)
    pairs = opened.execute_script(
        """document.querySelectorAll('.card').forEach((e) => { e.style.display = 'block'; });
        const back = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
             if (!/, 0\\)$/.test(c)) return c; } };
        const found = [...document.querySelectorAll('body *')].filter((e) => e.offsetParent &&
          [...e.childNodes].some((n) => n.nodeType == 3 && n.textContent.trim()))
          .map((e) => [getComputedStyle(e).color, back(e), e.outerHTML.slice(0, 60)]);
        document.querySelectorAll('.card').forEach((e) => { e.style.display = ''; });
        return found;"""
    )
    assert len(pairs) > 50
    dark = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (contrast(dark, "rgb(0, 0, 0)") < 3) == (scheme == "dark")
    assert [what for colour, behind, what in pairs if contrast(colour, behind) < 4.5] == []


@BROWSER
def test_a_phone_needs_no_sideways_scrolling(opened: Any) -> None:
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        opened.refresh()
        for button in opened.find_elements("css selector", "button.t"):
            opened.execute_script("arguments[0].focus()", button)
            assert opened.execute_script("return document.documentElement.scrollWidth") <= 360
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
