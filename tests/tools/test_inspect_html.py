"""The report in a real browser: no console errors, every control does something."""

import os
import shutil
from pathlib import Path

import pytest

from tests.toys import build
from zigpass.inspection import inspect_model
from zigpass.runtime import ZigpassError
from zigpass.site_profile import profile_sites
from zigpass.sites import find_sites
from zigpass.tools.inspect_data import Inspected
from zigpass.tools.inspect_html import render_html, write_html
from zigpass.tools.inspect_svg import choose_block, write_svg

SCREENSHOTS = Path(__file__).parent.parent.parent / "build" / "screenshots"
# As root in a container there is no sandbox, and no network to look for updates in.
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


@pytest.fixture(scope="module")
def data():
    model, args = build()
    for site in find_sites(model).values():
        site.set_threshold(site.threshold, target_sparsity=0.25)
    inspection = inspect_model(model, args, {})
    sites = profile_sites(model, [lambda: model(*args)])
    return Inspected("toy <&>", inspection, sites, "the example call", 2e9).to_dict()


def in_ci_a_failure(reason):
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def page(data, tmp_path_factory):
    """The report, open; what it prints to the console is in `page.problems`."""
    sync_api = pytest.importorskip("playwright.sync_api")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        in_ci_a_failure("no Chromium on the PATH")
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_html(data, path)
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=FLAGS)
        page = chromium.new_page(viewport={"width": 1300, "height": 850}, offline=True)
        page.problems = []
        page.on("console", lambda message: page.problems.append(message.text))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("requestfailed", lambda request: page.problems.append(request.url))
        page.goto(path.as_uri())
        yield page
        chromium.close()


def screenshot(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def test_it_loads_without_errors_and_shows_the_totals(page):
    assert page.title() == "toy <&> · zigpass"
    assert "6 linears" in page.locator(".cards").inner_text()
    assert "reads 2.0 GB/s" in page.locator(".cards").inner_text()
    assert "leaky_relu of layers.1.gate_proj" in page.locator("#refusals").inner_text()
    screenshot(page, "report")
    assert page.problems == []


def test_layers_are_filtered(page):
    rows = page.locator("tr.layer:visible")
    assert rows.count() == 6
    assert page.locator("#layers .bar").count() == 6
    page.fill("#layer-filter", "down_proj")
    assert rows.count() == 2
    assert page.locator("#layer-count").inner_text() == "2 of 6"
    page.fill("#layer-filter", "")
    assert rows.count() == 6


def test_a_pass_opens_its_difference(page):
    difference = page.locator("details.pass:has(code:text-is('fuse_gated_mlp'))")
    assert not difference.locator("pre.diff").is_visible()
    difference.locator("summary").click()
    assert any("zigpass.gated_mlp(" in line for line in difference.locator("pre.diff .added").all_inner_texts())


def test_blocks_are_compared(page):
    page.select_option("#block", "layers.0")
    assert page.locator("#before div[data-region]").count() == 5
    assert page.locator("#after div[data-region]").count() == 1
    colors = [
        page.locator(f"#{side} div[data-region]").first.evaluate("line => line.style.borderLeftColor")
        for side in ("before", "after")
    ]
    assert colors[0] == colors[1] != ""
    page.locator("#regions button").first.click()
    assert page.locator("#before .chosen").count() == 5
    page.click("#block-next")
    assert page.locator("#block").input_value() == "layers.1"
    assert "leaky_relu" in page.locator("#regions").inner_text()
    lines = page.locator("#before div").count()
    page.check("#only-changed")
    assert page.locator("#before div").count() < lines
    screenshot(page, "blocks")
    page.click("#block-previous")
    assert page.locator("#block").input_value() == "layers.0"
    page.uncheck("#only-changed")


def test_histograms_follow_the_choice(page):
    page.select_option("#site-kind", "mlp_mid")
    assert page.locator("#site option").all_inner_texts() == ["layers.0.mlp_mid", "layers.1.mlp_mid"]
    page.select_option("#site", "layers.1.mlp_mid")
    assert "layers.1.mlp_mid: threshold 0.300, target 25.0 %" in page.locator("#histogram").inner_html()
    assert page.locator("#histogram line.threshold").count() == 1
    assert page.locator("#histogram rect.inactive").count() > 0
    before = page.locator("#histogram").inner_html()
    page.check("#log-counts")
    assert page.locator("#histogram").inner_html() != before
    screenshot(page, "histograms")


def test_nothing_went_wrong_on_the_way(page):
    assert page.problems == []


def test_nothing_is_loaded_from_elsewhere(data):
    text = render_html(data)
    assert "toy &lt;&amp;&gt;" in text
    assert '<link rel="icon" href="data:,">' in text
    for reference in ("src=", "http://", "@import", "url("):
        assert reference not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_report_without_activations(data):
    text = render_html({**data, "sites": [], "bound": {**data["bound"], "bandwidth": None}})
    assert "Nothing was run, or the model has no packed linears" in text


def test_a_block_is_drawn(data, tmp_path):
    if shutil.which("dot") is None:
        in_ci_a_failure("no Graphviz")
    write_svg(data["blocks"], "layers.0", tmp_path / "block.svg")
    drawn = (tmp_path / "block.svg").read_text()
    assert drawn.count("zigpass.linear") >= 3
    assert "zigpass.gated_mlp" in drawn
    assert choose_block(data["blocks"], None)["name"] == "layers.1"  # a near miss, a qkv and a linear
    with pytest.raises(
        ZigpassError, match=r"no block 'layer'; the blocks are outside of all blocks, layers\.0, layers\.1"
    ):
        choose_block(data["blocks"], "layer")
