"""The page of the server in headless Chromium, with the real server: ask, watch, stop, compare, come back.

Screenshots are written to the folder that PARALLEL_R1_SCREENSHOTS names; docs/serving/page.png is ask.png of them.
"""

import json
import re

import pytest
from server_process import QUESTION, Serving

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture(scope="module")
def serving():
    with Serving() as running:
        yield running
        assert running.process.poll() is None


@pytest.fixture
def page_of(browser, serving):
    """Opens the page. Nothing may be logged, and nothing asked of another host."""
    heard, contexts = [], []

    def open_(width=1180, height=900, server=None, quiet=True, **settings):
        address = server or serving.address
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        if quiet:
            page.on("console", lambda message: heard.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("dialog", lambda dialog: heard.append(f"dialog: {dialog.message}"))
        page.on("request", lambda one: None if one.url.startswith((address, "data:")) else heard.append(one.url))
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert heard == []


def ready(page):
    page.locator("#model").filter(has_text="tiny").wait_for()
    page.locator("#options summary").click()
    page.locator("#seed").fill("2")
    return page


def answered(page):
    page.locator(".figures").first.wait_for()
    page.locator("#stop").wait_for(state="hidden")
    assert page.locator(".running").count() == 0


def test_a_question_is_answered_in_columns(page_of, shots):
    page = ready(page_of())
    assert page.locator("#question").input_value().startswith("Use ")  # an example, so that Enter shows a fork
    page.locator("#question").press("Enter")
    answered(page)
    paths = page.locator(".path")
    assert paths.count() == 8
    boxes = [paths.nth(index).bounding_box() for index in range(4)]
    assert len({box["y"] for box in boxes}) == 1  # side by side
    assert len({box["x"] for box in boxes}) == 4
    assert re.search(r"\d=\d", paths.first.inner_text())
    figures = page.locator(".figures").inner_text()
    critical, total = (int(re.search(rf"{name}\s+(\d+)", figures)[1]) for name in ("critical path", "tokens"))
    assert critical <= 60 < total
    assert page.locator("#status").inner_text() == f"Answer complete: {total} tokens, critical path {critical}."
    page.locator(".compare").click()
    page.locator(".verdict").wait_for()
    assert "times the critical path" in page.locator(".verdict").inner_text()
    assert page.locator(".run").count() == 2
    assert page.locator(".run").nth(1).locator(".path").count() == 0
    page.locator("#options summary").click()
    page.screenshot(path=shots / "ask.png")


NESTED = [
    {"branch": [], "content": "Think. ", "tokens": 2},
    {"branch": [], "event": "fork", "fork": 0, "paths": 2, "content": ""},
    {"branch": [[0, 1]], "content": HOSTILE, "tokens": 5},
    {"branch": [[0, 0]], "content": "first", "tokens": 1},
    {"branch": [[0, 0]], "event": "fork", "fork": 1, "paths": 2, "content": ""},
    {"branch": [[0, 0], [1, 0]], "content": "inner a", "tokens": 2},
    {"branch": [[0, 0], [1, 1]], "content": "inner b", "tokens": 4},
    {"branch": [[0, 0], [1, 0]], "event": "end", "cut": False, "content": ""},
    {"branch": [[0, 0], [1, 1]], "event": "end", "cut": True, "content": ""},
    {"branch": [[0, 0]], "event": "join", "content": ""},
    {"branch": [[0, 0]], "content": "put together", "tokens": 2, "in": "summary"},
    {"branch": [[0, 0]], "event": "end", "cut": False, "content": ""},
    {"branch": [[0, 1]], "event": "end", "cut": True, "content": ""},
    {"branch": [], "event": "join", "content": ""},
    {"branch": [], "content": "in short", "tokens": 2, "in": "summary"},
    {"branch": [], "content": " The end.", "tokens": 3},
]


def faked(page, deltas, end=True):
    """Answers the next question with these deltas instead of the server's."""
    chunks = [{"choices": [{"delta": delta}]} for delta in deltas]
    usage = {"critical_path_tokens": 12, "completion_tokens": 21, "forks": 2}
    last = {"choices": [{"delta": {}}], "usage": usage, "parallel": {"seconds": 0.5}}
    text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in [*chunks, *([last] if end else [])])
    text += "data: [DONE]\n\n" if end else ""
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=text, content_type="text/event-stream"))


def test_nested_forks_cut_paths_and_hostile_text(page_of):
    page = ready(page_of())
    faked(page, NESTED)
    page.locator("#question").fill(HOSTILE)
    page.locator("#question").press("Enter")
    answered(page)
    assert page.locator(".path .path").count() == 2
    assert page.locator(".path .summary").inner_text() == "put together"
    assert page.locator(".body > .summary").inner_text() == "in short"
    assert page.locator("#answers img, #answers script").count() == 0
    assert page.locator(".answer h2").inner_text() == HOSTILE
    assert HOSTILE in page.locator(".path").nth(3).inner_text()
    assert page.locator("[title='closed by the runtime']").count() == 2


def test_the_live_figures_are_those_of_the_tree(page_of):
    """Trunk 2; path 1: 1, the longer inner path 4, summary 2, that is 7, where the other path has 5; summary 2, rest 3:
    14 in all."""
    page = page_of()
    shown = page.evaluate(
        "async (deltas) => { const {Tree} = await import('/static/tree.js');"
        "const tree = new Tree(document.createElement('div')); deltas.forEach((d) => tree.take(d));"
        "return tree.figures; }",
        NESTED,
    )
    assert shown == {"critical": 14, "total": 21}


def test_a_lost_connection_keeps_what_came(page_of):
    page = ready(page_of())
    faked(page, NESTED[:7], end=False)
    page.locator("#question").press("Enter")
    page.locator("#problem").filter(has_text="What had come is kept").wait_for()
    assert "inner a" in page.locator("#answers").inner_text()


@pytest.mark.parametrize(("status", "said"), [(429, "Ask again in a moment"), (503, "stopping"), (400, "too long")])
def test_errors_in_plain_words(page_of, status, said):
    page = ready(page_of(quiet=False))
    body = json.dumps({"error": {"message": "too long"}})
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=status, body=body))
    page.locator("#question").press("Enter")
    page.locator("#problem").filter(has_text=said).wait_for()
    assert page.locator(".answer").count() == 0


HANGING = """(text) => { window.fetch = async (url, {signal}) => new Response(new ReadableStream({ start(c) {
  c.enqueue(new TextEncoder().encode(text));
  signal.addEventListener('abort', () => c.error(new DOMException('stopped', 'AbortError')));
} })); }"""


def test_escape_stops(page_of):
    page = ready(page_of())
    chunk = {"choices": [{"delta": {"branch": [], "content": "so far", "tokens": 2}}]}
    page.evaluate(HANGING, f"data: {json.dumps(chunk)}\n\n")
    page.locator("#question").press("Enter")
    page.get_by_text("so far").wait_for()
    assert page.locator("#stop").is_visible()
    page.keyboard.press("Escape")
    answered(page)
    assert "stopped" in page.locator(".figures").inner_text()
    assert page.get_by_text("so far").count() == 1
    assert page.locator("#problem").is_hidden()


def test_earlier_questions_survive_a_reload(page_of):
    page = ready(page_of())
    page.locator("#question").press("Enter")
    answered(page)
    text = page.locator(".path").nth(2).locator(".text").inner_text()
    page.reload()
    assert page.locator("#history li").count() == 1
    page.locator("#history button").click()
    page.locator(".path").nth(7).wait_for()
    assert page.locator(".path").nth(2).locator(".text").inner_text() == text
    page.locator("#clear").click()
    assert page.locator("#past").is_hidden()
    page.reload()
    assert page.locator("#past").is_hidden()


def test_a_store_that_refuses_costs_no_answer(page_of):
    page = ready(page_of())
    page.evaluate(
        "() => { Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }; }"
    )
    page.locator("#question").press("Enter")
    answered(page)
    assert page.locator(".path").count() == 8
    assert page.locator("#problem").is_hidden()


def test_keys_alone(page_of):
    page = page_of()
    page.locator("#model").filter(has_text="tiny").wait_for()
    assert page.evaluate("document.activeElement.id") == "question"
    order = []
    for _ in range(2):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert order == ["ask", "SUMMARY"]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    answered(page)
    assert page.locator(".path").count() in (0, 8)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_no_horizontal_scroll(page_of, shots, scheme):
    page = ready(page_of(width=360, height=760, color_scheme=scheme, has_touch=True))
    page.locator("#ask").click()
    answered(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = [page.locator(".path").nth(index).bounding_box() for index in range(2)]
    assert boxes[0]["x"] == boxes[1]["x"]  # stacked
    page.screenshot(path=shots / f"ask-phone-{scheme}.png")


def test_a_server_with_a_key(page_of):
    with Serving("--api-key", "secret") as running:
        page = page_of(server=running.address, quiet=False)
        page.locator("#key").fill("secret")
        page.locator("#question").fill(QUESTION)
        page.locator("#question").press("Enter")
        answered(page)
        assert page.locator(".figures").count() == 1
        page.reload()
        page.locator("#model").filter(has_text="tiny").wait_for()  # the key is kept while the tab is open
