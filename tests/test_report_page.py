"""The page as a reader meets it: drawn by a headless Chromium, filtered, sorted, read on a phone."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from report_case import make_run

from benchmarks.browser import ALL_DRAWN, browser, installed, until
from workbench.report.comparison import Comparison, compare, read_all
from workbench.report.output import write_page
from workbench.report.page import render
from workbench.report.run_reader import find_runs

BROWSER = pytest.mark.skipif(installed() is None, reason="needs chromium and chromedriver")
EVIL = "</script><script>window.evil = 1</script><img src=x onerror='window.evil=2'> & \"quotes\""


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Three variants of two seeds, one of which writes texts that would like to be a script."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        for method, kl in (("nado", 0.5), ("sft", 0.9), ("dinado_soft", 0.2)):
            text = EVIL if method == "nado" else "x y"
            words = (f"method={method}", f"seed={seed}")
            make_run(
                folder, f"{method}-{seed}", *words, kl=kl + seed / 50, success=1 - kl, text=text, val__bleu4=10 * kl
            )
    return compare(read_all(find_runs([str(folder)]))[0])


@pytest.fixture(scope="module")
def html(comparison: Comparison) -> str:
    return render(comparison)


@pytest.fixture(scope="module")
def page(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "page.html"
    write_page(comparison, file)
    return file


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as driver:
        yield driver


FIRST_CURVES = """const roots = Bokeh.documents.flatMap((one) => one.roots());
    const plot = roots.find((root) => root.renderers.some((one) => one.glyph.type == 'MultiLine'));"""


@pytest.fixture
def opened(chromium: Any, page: Path) -> Any:
    """The page, with all figures drawn."""
    chromium.get(page.as_uri())
    until(chromium, ALL_DRAWN)
    return chromium


# What the file says


class Outline(HTMLParser):
    """Elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_nothing_is_fetched(html: str) -> None:
    outline = Outline(html)
    links = [value for _, attributes in outline.elements for key, value in attributes.items() if key in ("src", "href")]
    assert all(link and link.startswith(("#", "data:")) for link in links)
    policy = next(
        meta["content"] for meta in outline.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy and policy.startswith("default-src 'none'") and "http" not in policy
    assert len(html) < 2_500_000


def test_texts_of_models_stay_texts(html: str) -> None:
    assert EVIL not in html and "<script>window.evil" not in html and "onerror='" not in html
    assert "&lt;/script&gt;&lt;script&gt;window.evil" in html


def test_a_screen_reader_finds_its_way(html: str) -> None:
    outline = Outline(html)
    levels = [int(tag[1]) for tag, _ in outline.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert all(th.get("scope") in ("row", "col") for th in outline.all("th"))
    assert len(outline.all("caption")) == len(outline.all("table")) > 3
    ids = {attributes["id"] for _, attributes in outline.elements if "id" in attributes}
    for figure in outline.all("figure"):
        assert figure["aria-labelledby"] in ids and figure["aria-describedby"] in ids
    sorted_columns = [th for th in outline.all("th") if th.get("aria-sort") not in (None, "none")]
    assert len(sorted_columns) == 1 and outline.all("html")[0]["lang"] == "en"
    assert all(scroll.get("tabindex") == "0" for scroll in outline.all("div") if scroll.get("class") == "scroll")


def test_only_a_live_page_refreshes(comparison: Comparison, html: str) -> None:
    assert 'http-equiv="refresh"' not in html and "data-refresh" not in html.partition("<script>")[0]
    live = render(comparison, 5.0)
    assert 'data-refresh="5.0"' in live and '<noscript><meta http-equiv="refresh" content="5"></noscript>' in live


# What the browser shows


def contrast(a: str, b: str) -> float:
    """WCAG's contrast of two colours such as ``rgb(1, 2, 3)``."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@BROWSER
def test_it_draws_without_an_error_or_a_request(opened: Any) -> None:
    assert [entry for entry in opened.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    assert opened.execute_script("return window.evil") is None
    requests = re.findall(r'Network\.requestWillBeSent.*?"url":"([a-z]+):', str(opened.get_log("performance")))
    assert "file" in requests and not {"http", "https", "ws", "wss"} & set(requests)
    drawn = opened.execute_script(
        """return [...document.querySelectorAll('.plot')].every((plot) => {
             const inside = plot.firstElementChild;
             return inside && inside.getBoundingClientRect().height > 200;
           })"""
    )
    assert drawn
    shown = opened.execute_script("return document.querySelector('.answers').innerText")
    assert "</script><script>window.evil = 1</script>" in shown


@BROWSER
def test_the_filter_reaches_table_curves_and_samples(opened: Any) -> None:
    opened.execute_script("document.querySelector('input[data-label=sft]').click()")
    state = opened.execute_script(
        FIRST_CURVES
        + """const visible = (s) => [...document.querySelectorAll(s)].filter((e) => e.offsetParent).length;
        const lines = plot.renderers.filter((r) => r.name == 'by group');
        return {
          rows: visible('#results .sortable tbody tr'),
          answers: visible('.answers:first-of-type li'),
          said: document.getElementById('shown').textContent,
          lines: lines.map((r) => [r.view.filter.booleans.filter(Boolean).length, r.view.filter.booleans.length]),
        };"""
    )
    assert state["rows"] == 2 and state["said"] == "2 of 3 shown"
    assert state["lines"] == [[6, 9]], "two seeds and one mean of each variant"
    assert state["answers"] % 3 == 0
    opened.execute_script("document.querySelector('[data-all=\"0\"]').click()")
    assert opened.execute_script("return document.getElementById('shown').textContent") == "0 of 3 shown"
    opened.execute_script("document.querySelector('[data-all=\"1\"]').click()")
    assert [e for e in opened.get_log("browser") if e["level"] == "SEVERE"] == []


@BROWSER
def test_headings_sort_by_mouse_and_keyboard(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    def names() -> list[str]:
        return opened.execute_script(
            "return [...document.querySelectorAll('.sortable tbody th')].map((th) => th.dataset.value)"
        )

    def direction(column: int) -> str:
        return opened.find_elements("css selector", ".sortable thead th")[column].get_attribute("aria-sort")

    assert names() == ["dinado_soft", "nado", "sft"]
    buttons = opened.find_elements("css selector", ".sortable thead button")
    (column,) = (i for i, button in enumerate(buttons) if button.text.startswith("BLEU-4"))
    buttons[column].click()
    assert names() == ["sft", "nado", "dinado_soft"] and direction(column) == "descending"
    buttons[column].send_keys(Keys.ENTER)
    assert names() == ["dinado_soft", "nado", "sft"] and direction(column) == "ascending"
    buttons[0].send_keys(Keys.SPACE)
    assert direction(0) == "ascending" and direction(column) == "none"


@BROWSER
def test_pointing_at_a_curve_reads_it(opened: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    place = opened.execute_script(
        FIRST_CURVES
        + """const view = Bokeh.index.find_one(plot);
        view.el.scrollIntoView({block: 'center', behavior: 'instant'});
        const box = view.el.getBoundingClientRect(), frame = view.frame.bbox;
        const means = plot.renderers.filter((r) => r.name == 'by group').at(-1).data_source.data;
        const last = means.xs.length - 1;
        const x = means.xs[last][10], y = means.ys[last][10];
        return [box.left + view.frame.x_scale.compute(x), box.top + view.frame.y_scale.compute(y)];"""
    )
    ActionChains(opened).move_by_offset(*map(round, place)).perform()
    words = until(
        opened,
        """(() => {
          const texts = [];
          const walk = (node) => {
            if (node.shadowRoot) walk(node.shadowRoot);
            const told = node.nodeType == 3 && /^\\w+, (mean of . )?seed/.exec(node.textContent);
            if (told) texts.push(node.textContent);
            node.childNodes.forEach(walk);
          };
          walk(document.body);
          return texts.join(' ');
        })()""",
    )
    assert "dinado_soft" in words or "nado" in words or "sft" in words


@BROWSER
def test_a_phone_needs_no_sideways_scrolling(chromium: Any, page: Path) -> None:
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        chromium.get(page.as_uri())
        until(chromium, ALL_DRAWN)
        chromium.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        width, inner = chromium.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert width <= 360 and inner == 360
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@BROWSER
def test_colours_can_be_read(opened: Any) -> None:
    pairs = opened.execute_script(
        """const back = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
             if (!/, 0\\)$/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
        return [...document.querySelectorAll('body *')].filter((e) => e.offsetParent && e.childNodes.length &&
          [...e.childNodes].some((n) => n.nodeType == 3 && n.textContent.trim()))
          .map((e) => [getComputedStyle(e).color, back(e), e.outerHTML.slice(0, 60)]);"""
    )
    assert len(pairs) > 50
    poor = [(what, colour, behind) for colour, behind, what in pairs if contrast(colour, behind) < 4.5]
    assert poor == []


@BROWSER
def test_a_live_page_keeps_the_reader_s_place(chromium: Any, comparison: Comparison, tmp_path: Path) -> None:
    file = tmp_path / "live.html"
    write_page(comparison, file, 600.0)
    chromium.get(file.as_uri())
    until(chromium, ALL_DRAWN)
    chromium.execute_script("document.querySelector('input[data-label=sft]').click()")
    chromium.execute_script("scrollTo({top: 500, behavior: 'instant'})")
    place = chromium.execute_script("return scrollY")
    chromium.refresh()
    until(chromium, ALL_DRAWN)
    assert chromium.execute_script("return document.getElementById('shown').textContent") == "2 of 3 shown"
    assert place > 300 and abs(chromium.execute_script("return scrollY") - place) < 5
    chromium.get("about:blank")


@BROWSER
def test_a_live_page_reads_itself_again_until_it_is_paused(
    chromium: Any, comparison: Comparison, tmp_path: Path
) -> None:
    file = tmp_path / "live.html"
    write_page(comparison, file, 1.0)
    chromium.get(file.as_uri())
    started = chromium.execute_script("return performance.timeOrigin")
    until(chromium, f"performance.timeOrigin != {started!r}")
    until(chromium, "(() => { const box = document.getElementById('paused'); return box && (box.checked = true); })()")
    started = chromium.execute_script("return performance.timeOrigin")
    time.sleep(2)
    assert chromium.execute_script("return performance.timeOrigin") == started, "a paused page stays as it is"
    chromium.get("about:blank")
