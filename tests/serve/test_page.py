"""The chat page in a headless Chromium: streaming, keeping, stopping, editing, tools, and text that must stay text."""

import json
import re
import shutil

import pytest
from serve_running import running

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ATTACK = (
    "<img src=x onerror=window.hacked=1> <script>window.hacked=1</script> [a](javascript:window.hacked=1) "
    "**bold** `<b>code</b>`\n\n```js\n</code></pre><script>window.hacked=1</script>\n```\n\n"
    "- one\n- [two](https://example.com/?a=1&b=2)\n\n| a | b |\n|---|---|\n| <svg onload=window.hacked=1> | 2 |"
)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed; one of {', '.join(BROWSERS)} is needed")
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, served):
    context = browser.new_context()
    context.set_default_timeout(240_000)
    page = context.new_page()
    problems = []
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    hosts = set()
    page.on("request", lambda r: hosts.add(r.url.split("/")[2] if "//" in r.url else "data"))
    page.goto(served.url)
    page.locator("#model", has_text="tiny").wait_for()
    yield page
    assert hosts - {"data"} == {served.url.removeprefix("http://")}
    assert not problems, problems
    context.close()


def settings(page, **values):
    page.click("#settings-open")
    for name, value in values.items():
        if page.locator(f"#{name}").evaluate("e => e.tagName") == "SELECT":
            page.select_option(f"#{name}", value)
        else:
            page.fill(f"#{name}", value)
    page.click("text=Done")


def say(page, text):
    page.fill("#input", text)
    page.press("#input", "Enter")


def answered(page, count=1):
    page.locator(".assistant .stats").nth(count - 1).wait_for()
    page.wait_for_selector("#send:not([hidden])")


def answer_text(page):
    return page.locator(".turn.assistant .body").last.inner_text()


def test_a_talk_streams_is_kept_and_goes_on(page):
    settings(page, max_tokens="12", seed="3", system="Be brief.")
    say(page, "The river")
    answered(page)
    first = answer_text(page)
    assert re.search(r"12 tokens · .*tokens/s · .* 0 of \d+ prompt tokens", page.inner_text(".assistant .stats"))
    page.click("text=Regenerate")
    answered(page)
    assert answer_text(page) == first  # the same seed
    say(page, "And the sea?")
    answered(page, 2)
    page.reload()
    assert page.locator(".turn").count() == 4
    assert page.inner_text("#title") == "The river"
    page.locator(".turn.user >> text=Edit").first.click()
    page.fill(".turn textarea", "A boat")
    page.click("text=Send again")
    answered(page)
    assert page.locator(".turn").count() == 2
    page.click("text=New conversation >> nth=0")
    say(page, "Hello")
    answered(page)
    assert page.locator("#list li").count() == 2
    page.click("#list li:nth-child(2) button")
    assert page.inner_text(".turn.user .body") == "A boat"


def test_stop_keeps_what_came(page, served):
    before = served.front.engine.counters.cancelled
    with served.paused():
        say(page, "The river")
        page.wait_for_selector("#stop:not([hidden])")
        for _ in range(1500):  # a busy machine takes its time to hear the request
            if served.front.open:
                break
            page.wait_for_timeout(20)
        assert served.front.open
        page.keyboard.press("Escape")
        page.wait_for_selector("#send:not([hidden])")
    assert "stopped" in page.inner_text(".assistant .stats")
    for _ in range(500):
        if served.front.engine.counters.cancelled > before:
            break
        page.wait_for_timeout(20)
    assert served.front.engine.counters.cancelled == before + 1


def test_text_of_a_model_stays_text(page):
    chunk = {"choices": [{"delta": {"content": ATTACK, "reasoning_content": "<img src=x onerror=window.hacked=1>"}}]}
    call = {
        "choices": [{"delta": {"tool_calls": [{"id": "1", "function": {"name": "<b>f</b>", "arguments": ATTACK}}]}}]
    }
    body = "".join(f"data: {json.dumps(c)}\n\n" for c in (chunk, call)) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda r: r.fulfill(body=body, content_type="text/event-stream"))
    say(page, ATTACK)
    page.wait_for_selector(".turn.assistant pre code")
    page.wait_for_selector("#send:not([hidden])")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert page.locator(".turn img, .turn script, .turn svg, .turn b").count() == 0
    links = page.locator(".turn a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
    assert links == ["https://example.com/?a=1&b=2"]
    assert page.inner_text(".turn.assistant strong") == "bold"
    assert page.locator(".turn.assistant li").count() == 2
    assert page.locator(".turn.assistant td").first.inner_text() == "<svg onload=window.hacked=1>"
    assert "</code></pre>" in page.inner_text(".turn.assistant .body pre code")
    page.reload()
    assert page.locator(".turn").count() == 2 and page.evaluate("window.hacked") is None


def test_calls_are_shown_and_their_results_sent(page):
    tool = {"name": "clock", "parameters": {"type": "object", "properties": {}}}
    parts = [{"index": 0, "id": "c1", "function": {"name": "clock", "arguments": ""}},
             {"index": 0, "function": {"arguments": "{"}}, {"index": 0, "function": {"arguments": "}"}},
             {"index": 1, "id": "c2", "function": {"name": "clock", "arguments": '{"zone'}}]  # fmt: skip
    events = [{"choices": [{"delta": {"tool_calls": [part]}}]} for part in parts]
    lines = "".join(f"data: {json.dumps(e)}\n\n" for e in events)
    asked = []

    def reply(route):
        asked.append(json.loads(route.request.post_data))
        if len(asked) > 1:
            route.continue_()
        else:
            route.fulfill(body=f"{lines}data: [DONE]\n\n", content_type="text/event-stream")

    settings(page, tools=json.dumps([tool]), max_tokens="8")
    page.route("**/v1/chat/completions", reply)
    say(page, "What time is it?")
    page.fill(".call textarea", "12:00")
    page.click("text=Give result")
    answered(page)
    assert asked[0]["tools"] == [{"type": "function", "function": tool}]
    assert [m["role"] for m in asked[1]["messages"]] == ["user", "assistant", "tool"]
    (call,) = asked[1]["messages"][1]["tool_calls"]  # the second was cut off: it is text
    assert call["function"] == {"name": "clock", "arguments": "{}"}
    assert '{"zone' in asked[1]["messages"][1]["content"]
    assert asked[1]["messages"][2]["content"] == "12:00"


def test_reasoning_is_apart(page):
    settings(page, reasoning="on", thinking_budget="5", max_tokens="40", seed="1")
    say(page, "The river")
    answered(page)
    assert page.locator(".assistant details.reasoning .thought").text_content()
    assert "think>" not in page.inner_text(".turn.assistant")


def test_faults_are_said(page):
    settings(page, max_tokens="8")
    page.route("**/v1/chat/completions", lambda r: r.fulfill(body="data: {\"error\": {\"message\": \"it broke\"}}\n\n",
                                                             content_type="text/event-stream"))  # fmt: skip
    say(page, "Hello")
    page.wait_for_selector(".assistant .fault")
    assert page.inner_text(".assistant .fault") == "it broke"


def test_a_phone_and_a_keyboard(browser, served, tiny_model):
    context = browser.new_context(viewport={"width": 380, "height": 740}, has_touch=True, color_scheme="dark")
    context.set_default_timeout(240_000)
    page = context.new_page()
    page.goto(served.url)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
    assert not page.locator("#new").is_visible()
    page.tap("#menu")
    page.locator("#new").wait_for(state="visible")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") in ("input", "menu")
    for button in page.locator("button:visible").all():
        assert button.inner_text().strip() or button.get_attribute("aria-label")
        assert button.bounding_box()["height"] >= 24
    context.close()


def test_a_server_with_a_key_says_so(browser, tiny_model):
    with running(tiny_model, api_keys=("right",), slots=1) as server:
        page = browser.new_page()
        page.set_default_timeout(240_000)
        page.goto(server.url)
        page.locator("#model", has_text="API key").wait_for()
        settings(page, key="right", max_tokens="4")
        page.locator("#model", has_text="tiny").wait_for()
        say(page, "Hello")
        page.wait_for_selector(".assistant .stats")
        page.close()
