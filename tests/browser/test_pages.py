"""The pages in headless Chromium, as a person uses them: pointer, keys, dark mode, a phone. Run by `make test-browser`.

Screenshots are written to the folder that PARALLEL_R1_SCREENSHOTS names, or else to the folder of the test run.
"""

import random
from dataclasses import replace

import pytest
from common import RECIPE, run
from conftest import TINY
from written import HOSTILE, OPEN, SCROLL, countdown_answers, long_answer, nested, rollout_of

from parallel_r1 import models
from parallel_r1.answers.rollout import Problem, Rollout, write_jsonl
from parallel_r1.answers.schemas import SCHEMAS
from parallel_r1.answers.trace import TRUNK, Span, Trace
from parallel_r1.evaluation.analysis.paths import Judge
from parallel_r1.models.policy import Policy
from parallel_r1.report.pages.pack import Shown
from parallel_r1.report.pages.saved import verdicts_of
from parallel_r1.report.pages.token_texts import cutter
from parallel_r1.report.pages.viewer import viewer_page

pytestmark = pytest.mark.browser


@pytest.fixture
def open_page(browser):
    """Opens a file as a page. At the end of the test nothing may have been logged or requested, but the file."""
    heard, contexts = [], []

    def open_(file, width=1360, height=900, **settings):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **settings))
        page = contexts[-1].new_page()
        page.on("console", lambda message: heard.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("dialog", lambda dialog: heard.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: heard.append(request.url) if request.url != file.as_uri() else None)
        page.goto(file.as_uri())
        page.wait_for_selector("[data-shown]")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert heard == []


@pytest.fixture(scope="module")
def policy():
    tokenizer = models.load_tokenizer(str(TINY))
    return Policy(None, tokenizer, models.tag_ids(tokenizer))


@pytest.fixture(scope="module")
def viewer(tmp_path_factory, policy):
    """A page with 60 answers in three steps; the first problem occurs in all of them."""
    answers = countdown_answers(policy, 60)
    for index in (20, 40):
        answers[index] = replace(answers[index], problem=answers[0].problem)
    shown = [
        Shown(rollout, 10 * (1 + index // 20), "easy" if index < 40 else "hard", verdicts)
        for index, (rollout, verdicts) in enumerate(zip(answers, verdicts_of(answers, Judge()), strict=True))
    ]
    file = tmp_path_factory.mktemp("viewer") / "viewer.html"
    cut = cutter(lambda ids: policy.tokenizer.decode(ids, skip_special_tokens=False))
    file.write_text(viewer_page("countdown", shown, cut))
    return file


def shown(page):
    """The number of the answer that is shown."""
    page.wait_for_timeout(60)
    return int(page.get_attribute("[data-shown]", "data-shown"))


def test_it_opens(open_page, viewer, shots):
    page = open_page(viewer)
    assert page.locator(".timeline .token").count() > 3
    assert "tokens one after the other" in page.inner_text(".figures")
    assert page.get_attribute(".timeline", "aria-label").startswith("Answer with 1 fork with 6 paths")
    page.screenshot(path=shots / "viewer.png")


def test_the_slider_shows_one_problem_through_training(open_page, viewer):
    page = open_page(viewer)
    page.locator(".row").first.click()
    assert shown(page) == 0
    assert "this problem through training" in page.inner_text(".steps")
    page.locator(".steps input").fill("2")
    assert shown(page) == 40
    assert "step 30, hard" in page.inner_text(".steps")
    page.keyboard.press("[")
    assert shown(page) == 20
    page.click("#answers-row-19")  # its problem occurs once: the slider goes through answers to its task
    assert shown(page) == 19
    assert "countdown-easy through training" in page.inner_text(".steps")


def test_filters_search_and_order(open_page, viewer):
    page = open_page(viewer)
    page.wait_for_selector(".row")

    def columns(name):
        return page.evaluate(
            "name => { const {list, data} = document.querySelector('[data-viewer]').viewer;"
            " return list.view.map((at) => data[name][at]); }",
            name,
        )

    everything = len(columns("correct"))
    assert everything == 60
    for chip, column, expected in (("wrong", "correct", {0}), ("right", "correct", {1}), ("cut", "cut", {1})):
        page.click(f'[data-filter="{chip}"]')
        assert page.get_attribute(f'[data-filter="{chip}"]', "aria-pressed") == "true"
        assert set(columns(column)) == expected
        assert 0 < len(columns(column)) < everything
        page.click(f'[data-filter="{chip}"]')
    page.click('[data-filter="malformed"]')
    assert min(columns("defects")) > 0
    assert f"{len(columns('defects'))} of 60 answers" in page.inner_text(".count")
    page.click('[data-filter="malformed"]')
    page.select_option(".order-row select", "forks")
    assert columns("paths") == sorted(columns("paths"), reverse=True)
    prompt = page.inner_text(".row-prompt >> nth=0")[2:]
    page.fill("input[type=search]", prompt.removeprefix("Use ").removesuffix("."))
    assert {page.inner_text(f".row-prompt >> nth={index}")[2:] for index in range(len(columns("step")))} == {prompt}
    page.fill("input[type=search]", "no such problem")
    assert "No answer matches" in page.inner_text(".list")


def test_pointing_at_a_token_lights_it_up_everywhere(open_page, viewer):
    page = open_page(viewer)
    page.locator(".t:not(.given):not(.tag)").nth(3).hover()
    tip = page.inner_text(".tip")
    assert "sampled, p = " in tip
    assert "bits" in tip
    assert "position" in tip
    assert page.locator(".t.pointed").count() == 1
    assert page.get_attribute(".timeline .cursor", "visibility") == "visible"
    page.locator(".t.given").first.hover()
    assert "given by the runtime" in page.inner_text(".tip")
    # The same token by its place in the timeline.
    token = int(page.get_attribute(".t.given >> nth=0", "data-token"))
    place = page.evaluate(
        "token => { const b = document.querySelector('[data-viewer]').viewer.timeline.place(token);"
        " return [(b.left + b.right) / 2, (b.top + b.bottom) / 2]; }",
        token,
    )
    page.mouse.move(5, 5)
    assert page.is_hidden(".tip")
    page.mouse.move(*place)
    assert page.get_attribute(".t.pointed", "data-token") == str(token)


def test_it_is_operated_by_keys(open_page, viewer, shots):
    page = open_page(viewer)
    page.locator(".row").first.click()
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert shown(page) == 2
    page.keyboard.press("k")
    assert shown(page) == 1
    page.focus(".list")
    page.keyboard.press("End")
    assert shown(page) == 59
    page.keyboard.press("ArrowUp")
    assert shown(page) == 58
    assert page.get_attribute(".list", "aria-activedescendant") == "answers-row-58"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.type") == "search"
    page.keyboard.type("jk?")
    assert page.input_value("input[type=search]") == "jk?"  # letters are text there
    page.fill("input[type=search]", "")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "list"
    page.keyboard.press("t")
    assert page.get_attribute(".tools .chip >> nth=0", "aria-pressed") == "false"
    page.keyboard.press("m")
    assert page.is_visible(".mask")
    page.keyboard.press("?")
    assert page.is_visible("dialog")
    page.keyboard.press("Escape")
    assert page.is_hidden("dialog")


def test_a_token_can_be_reached_by_keys(open_page, viewer):
    page = open_page(viewer)
    page.focus(".timeline-scroll")
    for key in ("ArrowRight", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert "token 2," in page.inner_text(".tip")
    lane = page.inner_text(".tip .quiet")
    page.keyboard.press("ArrowDown")
    assert page.inner_text(".tip .quiet") != lane
    assert page.get_attribute(".tip", "role") == "status"
    page.keyboard.press("Escape")
    assert page.is_hidden(".tip")
    outline = "document.activeElement === document.body || getComputedStyle(document.activeElement).outlineStyle"
    for _ in range(12):  # whatever has the focus shows it
        page.keyboard.press("Shift+Tab")
        assert page.evaluate(outline) in (True, "solid", "auto")


def test_the_mask_is_that_of_the_relation(open_page, viewer, shots):
    page = open_page(viewer)
    page.keyboard.press("m")
    page.locator(".mask").scroll_into_view_if_needed()
    blind = page.evaluate(
        "() => { const a = document.querySelector('[data-viewer]').viewer.answer;"
        " const in_ = (path) => a.span.findIndex((span) => String(a.addresses[a.address[span]]) === path);"
        " return [a.seen(in_('0,1'), in_('0,0')), a.seen(a.size - 1, in_('0,0')), a.seen(0, 1)]; }"
    )
    assert blind == [False, True, False]
    box = page.locator(".mask").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 300)
    assert "token" in page.inner_text(".tip")
    page.screenshot(path=shots / "mask.png")


def test_dark_mode_and_reduced_motion(open_page, viewer, shots):
    page = open_page(viewer, color_scheme="dark", reduced_motion="reduce")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, background.removeprefix("rgb(").removesuffix(")").split(","))) < 120
    assert page.evaluate("getComputedStyle(document.querySelector('.chip')).transitionDuration") == "0s"
    page.screenshot(path=shots / "dark.png")


def test_a_phone_has_no_horizontal_scroll(open_page, viewer, shots):
    page = open_page(viewer, width=360, height=780, has_touch=True)
    for _ in range(4):
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.keyboard.press("j")
        page.wait_for_timeout(50)
    page.keyboard.press("m")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.screenshot(path=shots / "phone.png", full_page=True)


def test_scripts_in_answers_are_text(open_page, tmp_path, shots):
    spans = (
        Span((1,), TRUNK, True, (-0.5,)),
        Span((2,), ((0, 0),), True),
        Span((3,), ((0, 1),), True),
        Span((4,), TRUNK, True),
    )
    trace = Trace((1,), spans, sampler="isolated")
    problem = Problem(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    rollout = Rollout(problem, trace, (HOSTILE, "a", HOSTILE, "z"), False, 3, 4, {HOSTILE: 1.0, "b": 2.0})
    file = tmp_path / "hostile.html"
    file.write_text(viewer_page(HOSTILE, [Shown(rollout, 1, HOSTILE)]), encoding="utf-8", errors="backslashreplace")
    page = open_page(file)
    page.locator(".t").first.hover()
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    assert page.inner_text(".path-text >> nth=1").replace("\n", "").endswith("javascript:window.hacked=4'>")
    assert page.locator("img").count() == 0
    assert page.locator(".viewer a").count() == 0


def test_markup_that_got_into_a_page_could_not_run(browser, viewer):
    """The content security policy stops it, were all escaping to fail."""
    page = browser.new_page()
    page.goto(viewer.as_uri())
    page.wait_for_selector("[data-shown]")
    html = "<img src=x onerror='window.hacked = 1'><p id=trap onclick='window.hacked = 2'>x</p>"
    page.evaluate("html => document.querySelector('.prompt').insertAdjacentHTML('beforeend', html)", html)
    page.click("#trap")
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    page.close()


def test_nested_forks_plans_and_heads_without_a_tokenizer(open_page, policy, tmp_path, shots):
    rng, problem = random.Random(3), Problem("x", "Stray tags.\n", "1", "other")
    stray = rollout_of(policy, "<Path>a</Path> <Parallel> text </Summary>", problem, rng)
    aside = replace(stray.trace.spans[0], aside=True)
    stray = replace(stray, trace=replace(stray.trace, spans=(aside, *stray.trace.spans[1:])))
    empty = Rollout(problem, Trace((1,), ()), (), False, 0, 0)
    plain = replace(stray, trace=replace(stray.trace, sampler="sequential"))
    answers = [*(nested(policy, name) for name in SCHEMAS), stray, plain, empty]
    write_jsonl(tmp_path / "a.jsonl", answers)
    done = run("show", tmp_path / "a.jsonl", "--html", tmp_path / "a.html")
    assert done.returncode == 0, done.stderr
    page = open_page(tmp_path / "a.html")
    assert "No tokenizer was given" in page.inner_text(".note")
    page.focus(".list")
    page.keyboard.press("Home")
    page.keyboard.press("m")
    for number, rollout in enumerate(answers):
        assert shown(page) == number
        text = page.evaluate("[...document.querySelectorAll('.t')].map((node) => node.textContent).join('')")
        assert sorted(text) == sorted(rollout.text)
        if number == 0:
            assert page.locator(".path-text .path-text").count() == 2
            page.locator(".t").first.hover()
            assert "span of" in page.inner_text(".tip")
            page.screenshot(path=shots / "nested.png")
        page.keyboard.press("j")


def test_ten_thousand_answers_are_smooth(open_page, policy, tmp_path):
    answers = countdown_answers(policy, 400)
    cut = cutter(lambda ids: policy.tokenizer.decode(ids, skip_special_tokens=False))
    many = (Shown(answers[index % 400], 1 + index // 500) for index in range(10_000))
    file = tmp_path / "many.html"
    file.write_text(viewer_page("many", many, cut))
    page = open_page(file)
    ready = page.evaluate("performance.now()")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    frames, opened = page.evaluate(SCROLL), page.evaluate(OPEN)
    print(
        f"\n10,000 answers: {file.stat().st_size / 1e6:.1f} MB, first paint {paint:.0f} ms, usable {ready:.0f} ms, "
        f"frames while scrolling {frames[75]:.0f} ms median, {frames[142]:.0f} ms at 95 %, an answer opens in "
        f"{max(opened):.0f} ms at most"
    )
    assert page.locator(".row").count() < 60
    assert paint <= 2000
    assert ready <= 4000
    assert frames[75] <= 25
    assert frames[142] <= 60
    assert max(opened) <= 500


def test_a_long_answer_is_seen_whole_and_can_be_zoomed(open_page, tmp_path):
    file = tmp_path / "long.html"
    file.write_text(viewer_page("long", [Shown(long_answer())], lambda span, text: [5] * len(span.token_ids)))
    page = open_page(file)

    def width():
        return page.evaluate("document.querySelector('.timeline').clientWidth")

    assert width() <= page.evaluate("document.querySelector('.timeline-scroll').clientWidth")
    before = width()
    page.keyboard.press("+")
    page.click("[aria-label='Zoom in']")
    assert width() > 3 * before
    page.keyboard.press("-")
    page.keyboard.press("-")
    assert width() == before


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small run by the command, which ends by naming its report."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.toml").write_text(RECIPE)
    done = run("train", folder / "small.toml", "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    assert "".join(done.stdout.splitlines()[-2:]).endswith(f"the report is {folder / 'run' / 'report.html'}")
    return folder / "run" / "report.html"


def test_the_report_of_a_small_run(open_page, trained, shots):
    page = open_page(trained)
    headings = page.locator("h2").all_inner_texts()
    assert headings[:2] == ["What was trained", "Results"]
    assert "Answers" in headings
    page.click("nav.contents a >> nth=1")
    page.wait_for_timeout(500)
    assert page.evaluate("location.hash") == "#results"
    page.screenshot(path=shots / "report.png", full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_on_a_phone(open_page, trained, shots, scheme):
    page = open_page(trained, width=360, height=780, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.screenshot(path=shots / f"report-phone-{scheme}.png")
