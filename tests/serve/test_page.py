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
    page.touchscreen.tap(360, 300)  # beside the list
    page.locator("#new").wait_for(state="hidden")
    assert page.get_attribute("#menu", "aria-expanded") == "false"
    page.tap("#menu")
    page.locator("#new").wait_for(state="visible")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "menu"
    assert page.get_attribute("#menu", "aria-expanded") == "false"
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


def stored(page):
    return page.evaluate("JSON.parse(localStorage['headwater.conversations.1'] ?? '[]')")


def events(*deltas, end="data: [DONE]\n\n"):
    """The body of an answer that is made up."""
    return "".join(f"data: {json.dumps({'choices': [{'delta': d}]})}\n\n" for d in deltas) + end


def test_settings_belong_to_their_conversation(page):
    """The dialog's close event comes when deleting has already opened another conversation."""
    settings(page, max_tokens="4", system="First.")
    say(page, "One")
    answered(page)
    page.click("#new")
    settings(page, system="Second.")
    say(page, "Two")
    answered(page)
    page.click("#settings-open")
    page.click("#delete")
    page.locator("#settings").wait_for(state="hidden")
    page.wait_for_timeout(100)
    assert page.inner_text("#title") == "One"
    assert [c["title"] for c in stored(page)] == ["One"]
    page.click("#settings-open")
    assert page.input_value("#system") == "First."


def test_tabs_do_not_write_over_each_other(page, served):
    settings(page, max_tokens="4")
    other = page.context.new_page()
    other.goto(served.url)
    other.locator("#model", has_text="tiny").wait_for()
    for tab, text in ((page, "From here"), (other, "From there")):
        say(tab, text)
        answered(tab)
    assert {c["title"] for c in stored(page)} == {"From here", "From there"}
    page.locator("#list li").nth(1).wait_for()  # it hears of the other's
    say(page, "And on")
    answered(page, 2)
    other.locator("#list button", has_text="From here").click()
    other.locator(".turn").nth(3).wait_for()
    assert {len(c["turns"]) for c in stored(page)} == {2, 4}


def test_an_edit_without_words_takes_nothing_away(page):
    settings(page, max_tokens="4")
    say(page, "The river")
    answered(page)
    page.click(".turn.user >> text=Edit")
    page.fill(".turn textarea", "  ")
    page.click("text=Send again")
    page.click("text=Leave it")
    assert page.locator(".turn").count() == 2


def test_a_result_comes_right_behind_its_call_or_not_at_all(page):
    call = {"index": 0, "id": "c1", "function": {"name": "clock", "arguments": "{}"}}
    asked = []

    def reply(route):
        asked.append(route)
        if len(asked) > 1:
            route.continue_()
        else:
            route.fulfill(body=events({"tool_calls": [call]}), content_type="text/event-stream")

    settings(page, max_tokens="4")
    page.route("**/v1/chat/completions", reply)
    say(page, "What time is it?")
    page.locator(".call textarea").wait_for()
    say(page, "Never mind.")
    answered(page)
    assert page.locator(".call").count() == 1 and page.locator(".call textarea").count() == 0


def test_unreadable_tools_leave_the_answer(page):
    settings(page, max_tokens="4")
    say(page, "The river")
    answered(page)
    settings(page, tools="[")
    page.click("text=Regenerate")
    page.locator("#log > .fault").wait_for()
    assert page.locator(".turn").count() == 2
    say(page, "And the sea?")
    page.locator("#log > .fault").wait_for()
    assert page.inner_text(".turn:last-of-type .body") == "And the sea?"


def test_what_a_model_has_not_is_not_asked_for(browser, tiny_model):
    kept = {"tools": '[{"name": "clock"}]', "reasoning": "on", "thinking_budget": "5", "max_tokens": "4"}
    with running(tiny_model, slots=1, style="chatml") as server:
        page = browser.new_page()
        page.set_default_timeout(240_000)
        page.goto(server.url)
        page.evaluate("kept => localStorage.setItem('headwater.settings.1', JSON.stringify(kept))", kept)
        page.reload()
        page.locator("#model", has_text="tiny").wait_for()
        say(page, "Hello")
        page.wait_for_selector("main .assistant .stats, main .fault")
        assert page.locator("main .fault").count() == 0
        page.close()


def test_full_and_damaged_storage_are_borne(page):
    turn = {"role": "user", "content": "hi"}
    found = [{"id": "a", "turns": [{"role": "assistant"}]}, {"id": "b", "turns": [{**turn, "calls": [None]}]},
             {"id": "c", "title": "whole", "turns": [turn]}]  # fmt: skip
    page.evaluate("c => localStorage.setItem('headwater.conversations.1', JSON.stringify(c))", found)
    page.reload()
    assert page.locator("#list li").all_inner_texts() == ["whole"]
    settings(page, max_tokens="4")
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new Error('full'); }; }")
    say(page, "Hello")
    answered(page)
    page.wait_for_timeout(100)
    assert "storage is full" in page.inner_text("#log > .fault")
    assert page.locator(".turn.assistant .body").count() == 1 and page.locator("#log > .fault .body").count() == 0


def test_an_answer_without_an_end_is_a_fault(page):
    body = events({"content": "The riv"}, end="")
    page.route("**/v1/chat/completions", lambda r: r.fulfill(body=body, content_type="text/event-stream"))
    say(page, "Hello")
    page.wait_for_selector(".assistant .fault")
    assert "connection was lost" in page.inner_text(".assistant .fault")
    assert answer_text(page) == "The riv"


def test_code_below_an_item_keeps_its_lines(page):
    text = "1. Do:\n   ```python\n   if x:\n\n       - y\n   ```\n   and on\n2. Then\n   - inner\n"
    body = events({"content": text})
    page.route("**/v1/chat/completions", lambda r: r.fulfill(body=body, content_type="text/event-stream"))
    say(page, "Hello")
    page.wait_for_selector("#send:not([hidden])")
    page.wait_for_selector(".turn.assistant pre code")
    assert page.locator(".turn.assistant li pre code").text_content() == "if x:\n\n    - y"
    assert page.locator(".turn.assistant ol > li").count() == 2
    assert page.inner_text(".turn.assistant li ul li") == "inner"
    assert page.inner_text(".turn.assistant li p") == "and on"
