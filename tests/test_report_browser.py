"""The page in a real browser: a script of clicks in headless Chromium. Skipped, with the reason, where none is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from openclaw_opt.report import write_report
from openclaw_opt.report.joint import write_joint
from tests.test_report import missed, report, unfinished, with_baseline, with_batches

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no browser on PATH: none of {', '.join(NAMES)}")
PHONE, DESKTOP = (360, 740), (1280, 900)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"], timeout=120_000
        )
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name to file URL: a missed build with everything in it, an unfinished one, a joint report of three."""
    folder = tmp_path_factory.mktemp("pages")
    every = {"missed": with_baseline(with_batches(missed())), "unfinished": unfinished()}
    for name, one in every.items():
        (folder / name).mkdir()
        write_report(one, folder / name)
    (folder / "joint").mkdir()
    three = [
        ("a", report()),
        ("b", missed().model_copy(update={"name": "b", "engine_bytes": 8_000_000})),
        ("c", unfinished()),
    ]
    other = report(name="other", model="another", checkpoint_files={"model.safetensors": "ab" * 32})
    write_joint([*three, ("d", other)], folder / "joint", "three builds and a stranger")
    return {name: (folder / name / "report.html").as_uri() for name in (*every, "joint")}


def opened(browser: Browser, url: str, size: tuple[int, int] = DESKTOP, **options: Any) -> tuple[Page, list[str]]:
    """The page, and what the console and the content policy complain about."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, **options)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    page.goto(url)
    return page, said


ALL = pytest.mark.parametrize("name", ["missed", "unfinished", "joint"])


@pytest.mark.slow
@ALL
def test_nothing_is_complained_about_and_nothing_loaded(browser: Browser, pages: dict[str, str], name: str) -> None:
    page, said = opened(browser, pages[name])
    closed = page.locator("details:not([open]) > summary")
    while closed.count():
        before = closed.count()
        closed.first.click()
        assert closed.count() < before
    assert page.locator("details:not([open])").count() == 0
    assert said == []
    page.close()


@pytest.mark.slow
@ALL
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_page_never_scrolls_sideways(
    browser: Browser, pages: dict[str, str], name: str, size: tuple[int, int]
) -> None:
    page, _ = opened(browser, pages[name], size)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    wide = page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > one.clientWidth + 1)"
        ".map((one) => `${one.getAttribute('aria-label')}: ${one.scrollWidth} in ${one.clientWidth}`)"
    )
    assert wide == [], "tables that do not fit their card"
    page.close()


def column(page: Page, table: str, index: int) -> list[str]:
    return [text.strip() for text in page.locator(f"{table} tbody tr > *:nth-child({index})").all_inner_texts()]


def test_tables_sort_by_click_and_by_keyboard(browser: Browser, pages: dict[str, str]) -> None:
    page, _ = opened(browser, pages["missed"])
    table = "#passes > .scroll table"
    sizes = column(page, table, 4)
    head = page.locator(f"{table} thead th", has_text="Size")
    assert head.get_attribute("aria-sort") == "none"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    ascending = column(page, table, 4)
    assert sorted(sizes) == sorted(ascending) != ascending
    megabytes = [float(text.split()[0]) for text in ascending]
    assert megabytes == sorted(megabytes)
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(text.split()[0]) for text in column(page, table, 4)] == sorted(megabytes, reverse=True)
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "ascending"
    page.close()


def test_the_keyboard_reaches_the_verdict_and_shows_where_it_is(browser: Browser, pages: dict[str, str]) -> None:
    page, _ = opened(browser, pages["missed"])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the verdict"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.close()


@pytest.mark.slow
@ALL
def test_every_picture_has_a_name_and_a_table(browser: Browser, pages: dict[str, str], name: str) -> None:
    page, _ = opened(browser, pages[name])
    figures = page.locator("figure").all()
    assert figures if name != "unfinished" else True
    for figure in figures:
        image = figure.locator("svg")
        assert image.get_attribute("role") == "img"
        ids = (image.get_attribute("aria-labelledby"), image.get_attribute("aria-describedby"))
        assert all(page.locator(f"[id='{one}']").text_content() for one in ids)
        assert figure.locator("table tbody tr").count() > 0
    doubled = page.evaluate(
        "[...document.querySelectorAll('[id]')].map((one) => one.id).filter((id, i, all) => all.indexOf(id) !== i)"
    )
    assert doubled == []
    page.close()


def test_colours_follow_the_reader(browser: Browser, pages: dict[str, str]) -> None:
    def colours(scheme: str) -> list[str]:
        page, _ = opened(browser, pages["missed"], color_scheme=scheme)
        found: list[str] = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('figure text')).fill,"
            " getComputedStyle(document.querySelector('.verdict h2')).color]"
        )
        page.close()
        return found

    light, dark = colours("light"), colours("dark")
    assert all(a != b for a, b in zip(light, dark, strict=True))


def luminance(colour: str) -> float:
    channels = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground(browser: Browser, pages: dict[str, str], scheme: str) -> None:
    """WCAG 2.2, 1.4.3: a contrast of 4.5 for text, marks of results and the figures' labels included."""
    page, _ = opened(browser, pages["missed"], color_scheme=scheme)
    pairs = page.evaluate(
        "['ink', 'soft', 'good', 'bad', 'open'].map((name) => { const probe = document.createElement('p');"
        " probe.style.setProperty('color', `var(--${name})`); document.body.append(probe);"
        " const found = getComputedStyle(probe).color; probe.remove(); return [name, found]; })"
    )
    card = page.evaluate("getComputedStyle(document.querySelector('figure')).backgroundColor")
    for name, colour in pairs:
        light, dark = sorted((luminance(colour), luminance(card)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, name
    page.close()


def test_printed_it_has_pages_and_everything_on_them(browser: Browser, pages: dict[str, str]) -> None:
    page, _ = opened(browser, pages["missed"])
    page.emulate_media(media="print")
    wide = page.evaluate(
        "[...document.querySelectorAll('table')].filter((one) => one.offsetParent && one.scrollWidth > 1400).length"
    )
    assert wide == 0
    assert page.pdf(format="A4").count(b"/Type /Page\n") > 1
    page.close()
