"""The page as a person uses it, in a real browser that is cut off from the network."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from interp.report.document import render

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH"
    ),
]
ARGUMENTS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(params=[1280, 390])
def page(request: pytest.FixtureRequest, browser, report, tmp_path: Path) -> Iterator:
    """The report at the width of a desk and of a phone; any complaint or request of the page fails the test."""
    path = tmp_path / "report.html"
    path.write_text(render(report))
    complaints: list[str] = []
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    page.on(
        "console",
        lambda message: complaints.append(message.text) if message.type == "error" else None,
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.route(
        "**/*",
        lambda route: (
            route.continue_()
            if route.request.url.startswith("file:")
            else complaints.append(route.request.url) or route.abort()
        ),
    )
    page.goto(path.as_uri())
    yield page
    page.close()
    assert complaints == []


def step(page) -> str:
    """The step that the replay says it shows."""
    return page.locator("#status dd").first.inner_text()


def test_nothing_is_wider_than_the_screen(page) -> None:
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")


def test_a_replay_begins_at_its_peak_and_plays_on(page) -> None:
    assert step(page) == "15"
    page.locator("#play").click()
    page.wait_for_function("Number(document.getElementById('scrub').value) >= 7")
    page.locator("#play").click()
    assert page.locator("#play").inner_text() == "Play"


def test_scrubbing_moves_the_step_and_the_picture(page) -> None:
    picture = "document.getElementById('board').toDataURL()"
    before = page.evaluate(picture)
    page.locator("#scrub").fill("1")
    assert step(page) == "11"
    assert page.evaluate(picture) != before


def test_a_clip_shows_the_same_step_before_and_after_the_edit(page) -> None:
    picture = "document.getElementById('{}').toDataURL()".format
    assert not page.locator("#twin").is_visible()
    page.locator("#pick").select_option("2")
    assert page.locator("#twin").is_visible()
    assert step(page) == "15"
    assert page.evaluate(picture("board")) != page.evaluate(picture("twin"))
    before = page.evaluate(picture("twin"))
    page.locator("#scrub").fill("1")
    assert page.evaluate(picture("twin")) != before
    assert "move | move" in page.locator("#status").inner_text()
    page.locator("#pick").select_option("0")
    assert not page.locator("#twin").is_visible()


def test_the_arrow_keys_scrub(page) -> None:
    page.locator("#scrub").focus()
    page.keyboard.press("ArrowRight")
    assert step(page) == "16"
    page.locator("#board").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert step(page) == "14"
    page.keyboard.press(" ")
    assert page.locator("#play").get_attribute("aria-pressed") == "true"


def test_the_name_of_a_concept_stays_in_sight_when_its_table_is_scrolled(page) -> None:
    name = page.locator("#concept-table tbody tr:first-child th")
    before = name.bounding_box()["x"]
    page.evaluate("document.querySelector('#concept-table').parentElement.scrollLeft = 120")
    assert name.bounding_box()["x"] == before


def test_concepts_can_be_sorted(page) -> None:
    first = page.locator("#concept-table tbody tr:first-child th b")
    head = page.locator("#concept-table th", has_text="AUROC")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert first.inner_text() == "wall"
    head.locator("button").click()
    assert first.inner_text() == "open_area"


def test_the_dark_page_draws_too(browser, report, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(report))
    page = browser.new_page(color_scheme="dark")
    page.goto(path.as_uri())
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 29)"
    assert page.evaluate("getComputedStyle(document.querySelector('figure')).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    page.close()
