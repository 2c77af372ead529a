"""The report in a real browser: nothing is asked for, nothing is missed, everybody can read it."""

import io
import json
import math
from random import Random

import pytest
from PIL import Image, ImageStat

from hn.evaluation.report import html
from tests.report import browser as driver
from tests.report import example

PHONE = 360  # pixels

# Text is read against the nearest ground that is painted; WCAG 2.2, 1.4.3: 4.5, large text 3.
LOW_CONTRAST = """(() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = colour => colour.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = it => {
    for (; it; it = it.parentElement) {
      const colour = parse(getComputedStyle(it).backgroundColor);
      if (colour.length == 3 || colour[3] == 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const it of document.body.querySelectorAll('*')) {
    if (![...it.childNodes].some(n => n.nodeType == 3 && n.textContent.trim())) continue;
    if (it.tagName == 'title') continue;
    const style = getComputedStyle(it), inDrawing = it.tagName == 'text';
    const a = light(parse(inDrawing ? style.fill : style.color)), b = light(ground(it));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const enough = parseFloat(style.fontSize) >= 24 ? 3 : 4.5;
    if (ratio < enough) found.push(`${it.tagName} ${it.className} ${ratio}`);
  }
  return found;
})()"""
# What sticks out of the window, unless it can be scrolled into view in a frame of its own.
STICKING_OUT = """[...document.body.querySelectorAll('*')]
  .filter(it => !it.closest('.frame') && !it.closest('svg') && !it.closest('.skip'))
  .filter(it => it.getBoundingClientRect().right > innerWidth + 0.5)
  .map(it => it.outerHTML.slice(0, 80))"""
UNLABELLED = """[
  ...document.querySelectorAll('img:not([alt]), img[alt=""]'),
  ...[...document.querySelectorAll('svg')].filter(it => !it.ariaHidden && !(
    it.role == 'img' && it.ariaLabel)),
  ...[...document.querySelectorAll('table')].filter(it => !it.caption),
  ...document.querySelectorAll('th:not([scope])'),
  ...[...document.querySelectorAll('section')].filter(it => !document.getElementById(
    it.getAttribute('aria-labelledby'))),
].map(it => it.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if driver.EXECUTABLE is None:
        pytest.skip("no chromium: install the Debian package of that name")
    with driver.Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with all its parts."""
    run = example.make_run(tmp_path_factory.mktemp("whole") / "neon")
    return written(example.make_evaluation(), run)


def written(evaluation, run, name="report"):
    page = run / f"evaluation/{name}.html"
    # as it comes from the file, with everything that JSON does to numbers
    html.write(json.loads(json.dumps(evaluation)), run, page)
    return page


def test_it_loads_whole_and_asks_for_nothing(browser, report):
    visit = browser.open(report)
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith("data:image/")] == [report.as_uri()]
    images = "[...document.images].map(it => [it.naturalWidth, it.complete])"
    assert visit.ask(images) == [[400, True], [796, True], [64, True]]
    assert visit.ask("document.scripts.length") == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_both_themes_can_be_read(browser, report, dark):
    visit = browser.open(report, dark=dark)
    with Image.open(io.BytesIO(visit.screenshot())) as shot:
        brightness = ImageStat.Stat(shot.convert("L")).mean[0]
    assert brightness < 70 if dark else brightness > 200
    visit.ask("document.querySelectorAll('details').forEach(it => it.open = true)")
    assert visit.ask(LOW_CONTRAST) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(browser, report, dark):
    visit = browser.open(report, width=PHONE, dark=dark)
    visit.ask("document.querySelectorAll('details').forEach(it => it.open = true)")
    assert visit.ask("document.documentElement.scrollWidth") == PHONE
    assert visit.ask(STICKING_OUT) == []
    smallest = "Math.min(...[...document.querySelectorAll('.plot text')].map(it => "
    smallest += "it.getBoundingClientRect().height))"
    assert visit.ask(smallest) >= 9


def test_a_keyboard_is_enough(browser, report):
    visit = browser.open(report)
    visit.press("Tab", 9)
    assert visit.ask("document.activeElement.className") == "skip"
    assert visit.ask("document.activeElement.getBoundingClientRect().top") >= 0
    assert visit.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    visit.press("Tab", 9)
    assert visit.ask("document.activeElement.hash") == "#advice"
    summary = "document.querySelector('#ranking summary')"
    visit.ask(f"{summary}.focus()")
    visit.press(" ", 32)
    assert visit.ask(f"{summary}.parentElement.open") is True
    wide = "[...document.querySelectorAll('.frame')].filter(it => it.scrollWidth > it.clientWidth)"
    phone = browser.open(report, width=PHONE)
    assert phone.ask(f"{wide}.length") >= 2
    assert phone.ask(f"{wide}.every(it => it.tabIndex == 0 && it.ariaLabel)") is True


def test_everything_has_a_name(browser, report):
    visit = browser.open(report)
    assert visit.ask(UNLABELLED) == []
    assert visit.ask("document.querySelectorAll('h1').length") == 1
    assert visit.ask("document.documentElement.lang") == "en"
    ids = visit.ask("[...document.querySelectorAll('[id]')].map(it => it.id)")
    assert len(ids) == len(set(ids))
    links = visit.ask("[...document.links].map(it => it.hash.slice(1))")
    assert set(links) <= set(ids)


def test_what_is_drawn_can_be_told_apart_without_colours(browser, report):
    visit = browser.open(report)
    held_out = "document.querySelector('#learning figure')"
    dashes = f"['main', 'second', 'base'].map(it => getComputedStyle({held_out}.querySelector("
    dashes += "`.plot .${it} .line`)).strokeDasharray)"
    assert len(set(visit.ask(dashes))) == 3
    assert visit.ask(f"{held_out}.querySelectorAll('.plot circle').length") == 7
    assert visit.ask(f"{held_out}.querySelectorAll('.plot rect').length") == 6


def test_the_recommendation_says_which_file_goes_where(browser, report):
    words = browser.open(report).ask("document.querySelector('#advice').innerText")
    assert "Use neon-300.pt at strength 1" in words
    assert "checkpoints/step-00000300/neon-300.pt" in words
    assert "<hypernet:neon-300:1>" in words
    assert example.make_evaluation()["recommendation"]["reason"] in words
    assert "93.3\u202f%" in words


def test_the_table_ranks_with_the_recommended_first(browser, report):
    visit = browser.open(report)
    rows = "[...document.querySelectorAll('#ranking table')[0].tBodies[0].rows]"
    cells = visit.ask(f"{rows}.map(row => [...row.cells].map(it => it.innerText.trim()))")
    assert [row[1] for row in cells] == [str(rank) for rank in range(1, 14)]
    assert cells[0][0].split("\n")[0].startswith("step 300") and "recommended" in cells[0][0]
    assert cells[0][5] == "\u22121.63 [\u22121.69, \u22121.57]"
    assert cells[-1][-1] == "diverged"
    words = visit.ask("document.querySelector('#ranking').innerText")
    for meaning in ("It is never recommended", "it repeats them", "no longer on those"):
        assert meaning in words


def test_text_of_files_stays_text(browser, report):
    """A caption that is markup is shown, not followed."""
    visit = browser.open(report)
    shown = visit.ask("document.querySelector('.caption').textContent")
    assert shown == example.HOSTILE.replace("\u202e", "?")
    assert visit.ask("document.images.length") == 3


@pytest.mark.parametrize("part", sorted(example.make_evaluation()))
def test_without_a_part_the_rest_is_there(part, report):
    evaluation = example.make_evaluation()
    del evaluation[part]
    page = written(evaluation, report.parent.parent, f"without-{part}").read_text()
    for anchor in html.PLACES:
        assert f'id="{anchor}"' in page
    said = {
        "checkpoints": "No checkpoint was evaluated",
        "grids": "No pictures were drawn",
        "heldout": "There were no held-out pictures",
        "pictures": "Pictures were not compared",
        "recommendation": "None of the checkpoints can be recommended",
        "settings": "settings are not known",
        "sweep": "Strengths were not compared",
        "versions": "The versions are not known",
    }
    assert said.get(part, "") in page


def test_an_evaluation_of_nothing_is_a_page(browser, tmp_path):
    (tmp_path / "run/evaluation").mkdir(parents=True)
    visit = browser.open(written({}, tmp_path / "run"), width=PHONE)
    assert visit.complaints == []
    words = visit.ask("document.body.innerText")
    assert "No held-out loss: the run had no pictures" in words
    assert "metrics.jsonl has no training loss" in words
    assert visit.ask("document.documentElement.scrollWidth") == PHONE


def test_the_training_alone_is_shown(browser, tmp_path):
    """A run that nobody evaluated: its curves, and the held-out loss it measured itself."""
    run = example.make_run(tmp_path / "run")
    words = browser.open(written({}, run)).ask("document.querySelector('#learning').innerText")
    assert "over 700 reports" in words
    assert "From 0.280 at step 100 to 4.20 at step 700" in words


def test_numbers_that_are_none_and_lines_that_are_broken_are_said(browser, tmp_path):
    run = example.make_run(tmp_path / "run")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 701, "loss": NaN}\n[1]\n{"step": "x"}\n{"step": 7')
    evaluation = example.make_evaluation()
    evaluation["checkpoints"][-1] |= {"loss": math.nan, "gain": -math.inf, "difference": None}
    evaluation["checkpoints"][-1]["bands"][0]["base_loss"] = 0.0
    visit = browser.open(written(evaluation, run))
    words = visit.ask("document.body.innerText")
    assert "1 values are not finite and not drawn" in words
    assert "3 lines of metrics.jsonl could not be read" in words
    assert "not finite" in visit.ask("document.querySelector('#ranking').innerText")
    drawing = visit.ask("[...document.querySelectorAll('svg')].map(it => it.outerHTML).join()")
    assert "nan" not in drawing.lower() and "inf" not in drawing.lower()


@pytest.mark.parametrize("name", ["gone.png", "../secret.png", "torn.png", "drawing.svg", ""])
def test_a_grid_that_cannot_be_shown_is_named(name, report):
    """Only pictures beside the report are put into it."""
    run = report.parent.parent
    (run / "secret.png").write_bytes((run / "evaluation/sweep.png").read_bytes())
    (run / "evaluation/torn.png").write_bytes((run / "evaluation/sweep.png").read_bytes()[:999])
    (run / "evaluation/drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    evaluation = example.make_evaluation()
    evaluation["grids"] = [{"title": "A grid", "file": name}]
    evaluation["pictures"] = []
    page = written(evaluation, run, "without-grid").read_text()
    assert "<img" not in page
    assert f"&#x27;{name}&#x27; " in page


def test_a_large_grid_is_put_in_smaller(tmp_path):
    run = example.make_run(tmp_path / "run")
    noise = Random(0).randbytes(3 * 600 * 600)
    Image.frombytes("RGB", (600, 600), noise).save(run / "evaluation/sweep.png")
    page = written(example.make_evaluation(), run)
    assert "data:image/webp;base64," in page.read_text()
    assert page.stat().st_size < (run / "evaluation/sweep.png").stat().st_size
