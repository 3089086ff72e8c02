"""The page of ``report --html`` in headless Chromium: sorting, colours, values, accessibility."""

import re
import shutil

import pytest
from fake_runs import write_data, write_methods, write_run

from fairseq_peft.cli import main

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

METHODS = ("full", "lora", "adapter", "ia3", "prompt", "head_only")
#: Names of an installed Chromium, where Playwright has not fetched its own.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        program = next(filter(None, map(shutil.which, NAMES)), None)
        try:
            found = started.chromium.launch(
                executable_path=program, args=["--no-sandbox"], timeout=120_000
            )
        except playwright.Error as error:
            if "Executable doesn't exist" not in str(error):
                raise
            pytest.skip("there is no Chromium: apt-get install chromium, or playwright install")
        yield found
        found.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A page with every part."""
    folder = tmp_path_factory.mktemp("page")
    data, runs = folder / "data-bin" / "books", folder / "runs"
    target = write_data(data, "classes", ["bad", "good"], 200)
    write_methods(runs, data, target, (1, 2), METHODS)
    write_run(runs, data, target, "full", 1, "scratch", skill=0.6)
    write_run(runs, data, target, "lora-64", 1, train_rows=64, skill=0.4)
    out = folder / "page.html"
    assert main(["report", str(runs), "--html", str(out)]) == 0
    return out


@pytest.fixture
def open_page(browser, path):
    """``open_page(width=..., scheme=...)``: the page; nothing but its file was asked for, and the
    console stayed empty."""
    contexts, asked, said = [], [], []

    def start(width=1280, scheme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield start
    for context in contexts:
        context.close()
    assert {url for url in asked if not url.startswith("data:")} == {path.as_uri()}
    assert said == []


def column(page, number):
    cells = page.locator(f"table.sortable tbody tr > :nth-child({number})").all_inner_texts()
    return [cell.strip() for cell in cells]


def accuracies(page):
    return [float(cell.split()[0]) for cell in column(page, 3)]


def test_sorting_by_mouse(open_page):
    page = open_page()
    before = accuracies(page)
    head = page.get_by_role("columnheader", name="test accuracy")
    head.get_by_role("button").click()
    assert accuracies(page) == sorted(before, reverse=True) != before
    assert head.get_attribute("aria-sort") == "descending"
    head.get_by_role("button").click()
    assert accuracies(page) == sorted(before)
    assert head.get_attribute("aria-sort") == "ascending"


def test_sorting_by_keyboard(open_page):
    page = open_page()
    button = page.get_by_role("button", name="method")
    button.focus()
    page.keyboard.press("Enter")
    assert column(page, 1) == sorted(column(page, 1)) and len(column(page, 1)) == 8
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")  # to test accuracy
    page.keyboard.press("Space")
    assert accuracies(page) == sorted(accuracies(page), reverse=True)
    sorted_by = page.locator("th[aria-sort]").all_inner_texts()
    assert [" ".join(text.split()) for text in sorted_by] == ["test accuracy %"]


def test_what_is_missing_sorts_last(open_page):
    page = open_page()
    heads = page.locator("table.sortable thead th").all_inner_texts()
    place = next(n for n, text in enumerate(heads, start=1) if "p after Holm" in text)
    button = page.get_by_role("button", name="p after Holm")
    for _ in range(2):
        button.click()
        found = column(page, place)  # full, and prompt-16 without a full of as many rows
        assert found[-2:] == ["–", "–"] and found.count("–") == 2


def test_rows_are_filtered(open_page):
    page = open_page()
    page.get_by_label("Only rows with").fill("LORA pre")
    shown = page.locator("table.sortable tbody tr:visible th").all_inner_texts()
    assert shown == ["lora", "lora-64"]


def test_colours_are_the_systems_until_one_is_chosen(open_page):
    page = open_page(scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.get_by_role("button", name="Light colours").click()
    light = page.evaluate(background)
    assert [sum(map(int, re.findall(r"\d+", colour))) > 384 for colour in (dark, light)] == [
        False,
        True,
    ]
    page.emulate_media(media="print")
    assert page.evaluate(background) == "rgb(255, 255, 255)"


def test_values_by_mouse_and_by_keyboard(open_page):
    page = open_page()
    plot = page.get_by_role("group", name="Test accuracy against trainable parameters")
    point = plot.locator("[aria-roledescription=point]").first
    label = point.get_attribute("aria-label")
    assert re.fullmatch(r"\S+: [\d.]+( ± [\d.]+)? % test accuracy, [\d,]+ trainable .*", label)
    tip = page.get_by_role("status")
    point.hover()
    assert tip.inner_text() == label
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    plot.focus()
    seen = set()
    for _ in range(len(METHODS) + 1):
        page.keyboard.press("ArrowRight")
        seen.add(tip.inner_text())
    assert label in seen and len(seen) == len(METHODS) + 1
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_values_without_any_pointer(open_page):
    page = open_page()
    figure = page.locator("figure", has_text="Test accuracy against time")
    figure.get_by_text("Values").press("Enter")
    assert figure.get_by_role("rowheader", name="prompt").is_visible()


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_is_as_wide_as_the_window(open_page, width):
    page = open_page(width)
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_long_name_leaves_room_on_a_phone(browser, tmp_path):
    """The first column stands still; as wide as the window it would cover all others."""
    data = tmp_path / "data-bin" / "books"
    target = write_data(data, "classes", ["bad", "good"], 60)
    name = "lora-r64-all-linear-maps-alpha128-dropout0.1_and_an_end_without_any_place_to_break"
    for method in ("full", name):
        write_run(tmp_path / "runs", data, target, method, 1)
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "runs"), "--html", str(out)]) == 0
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.goto(out.as_uri())
    first = page.locator("table.sortable tbody th").first.bounding_box()["width"]
    page.close()
    assert first < 200


def test_all_of_it_fits_on_paper(open_page):
    """A4 with its margins is some 690 pixels wide."""
    page = open_page(690)
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 690
    assert page.locator("table.sortable").bounding_box()["width"] <= 690
    assert page.get_by_role("columnheader", name="test accuracy").is_visible()


@pytest.mark.parametrize(
    ("scheme", "options"), [("light", None), ("dark", {"runOnly": ["color-contrast"]})]
)
def test_it_is_accessible(open_page, scheme, options):
    """Names, roles, order and contrast: axe finds nothing to complain of."""
    page = open_page(scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = axe.Axe().run(page, options=options).response
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found["violations"]] == []
    assert "color-contrast" in [one["id"] for one in found["passes"]]
