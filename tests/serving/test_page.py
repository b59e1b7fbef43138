"""The page in headless Chromium: by keyboard, on a phone, in the dark; hostile titles; a service that is slow, full or gone."""

import contextlib
import io
import json
import re
import shutil
import time

import polars as pl
import pytest
from serving_fakes import TOKEN, add_version, copy_of, open_engine, serving

import genre
from builders import LIKE
from fakes import planted_log
from genre.engine import Engine
from genre.interactions import Interactions

sync_api = pytest.importorskip("playwright.sync_api", reason="the page is tested through the package playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)")

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
IMAGE = "<img src=x onerror='window.pwned = 1'>"
HOSTILE = {
    "i0": IMAGE,
    "i1": '"><script>window.pwned = 1</script>',
    "i2": "javascript:window.pwned=1//",
    "i3": "W" * 300,
    "i4": "{{7*7}} ${7*7} </li></ol><b>x",
    "i5": "\u202egnp.exe & &lt;b&gt;",
}
VILLAIN = "u0<b onclick=window.pwned=1>"
SAID = "#said"


def crowd():
    """10,000 users; six items have titles that a careless page would run, one user a hostile id."""
    log = planted_log(users=10_000, events=4)
    titles = dict(zip(log.catalogue.item_ids, log.catalogue.titles(), strict=True)) | HOSTILE
    items = {"item_id": list(titles), "title": list(titles.values())}
    rename = {"u7777": VILLAIN}
    frame, users = log.frame.drop("row"), log.users
    changed = [one.with_columns(one["user_id"].replace(rename)) for one in (frame, users)]
    return Interactions.from_frame(changed[0], items=pl.DataFrame(items), users=changed[1], name="crowd")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def registry(trained, tmp_path_factory):
    """The three adapters, and a candidate of `like` with other weights and no metrics."""
    folder = tmp_path_factory.mktemp("page")
    registry = copy_of(trained.registry, folder / "registry")
    version = add_version(registry, trained, genre.Base.load(str(trained.base)), folder / "like", LIKE, seed=5)
    registry.promote(version.ref, "candidate")
    return registry


@pytest.fixture(scope="module")
def shown(trained, registry):
    """A service with an admin token over the crowd."""
    engine = Engine(genre.Base.load(str(trained.base)), registry, lanes=8, data=crowd())
    refs = ["like@production", "rating@production", "next_item@production", "like@candidate"]
    with engine, serving(engine, refs, stream=io.StringIO(), token=TOKEN, follow_s=0) as (service, client):
        yield service, client


@contextlib.contextmanager
def opened(browser, client, path="/", **options):
    """A fresh page; whatever it says on its console, throws, or asks of another host fails the test."""
    base, wrong = str(client.base_url).rstrip("/"), []
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    context.set_default_timeout(30_000)
    page = context.new_page()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("console", lambda message: "Failed to load resource" in message.text or wrong.append(message.text))
    page.on("request", lambda request: request.url.startswith((base, "data:")) or wrong.append(request.url))
    try:
        page.goto(base + path)
        yield page
        assert page.evaluate("window.pwned === undefined")
    finally:
        context.close()
    assert not wrong


@pytest.fixture
def page(browser, shown):
    with opened(browser, shown[1]) as page:
        page.wait_for_selector(".choice")
        yield page


def until(page, expression, seconds=30):
    """Wait for something to become true; Playwright's own way would need eval, which the policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(20)


def field(page, name="User"):
    return page.get_by_role("combobox", name=name)


def choose(page, user):
    """Choose a user by keyboard and wait for every column."""
    field(page).fill(user)
    page.locator("[role=option] .main", has_text=user).first.wait_for()
    page.keyboard.press("Enter")
    settled(page)


def settled(page):
    page.wait_for_selector(".column")
    until(page, "document.querySelectorAll('.column[aria-busy], .skeleton').length === 0")


def column(page, name):
    return page.locator(".column", has=page.get_by_role("heading", name=name, exact=True))


def titles(page, name):
    return column(page, name).locator(".item .title").all_text_contents()


# --- what it shows ---------------------------------------------------------------------------------------------------


def test_nothing_is_inline_and_nothing_may_come_from_elsewhere(shown):
    reply = shown[1].get("/")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|https?:", reply.text)
    for file in re.findall(r'(?:src|href)="([\w.]+)"', reply.text):
        assert shown[1].get(f"/{file}").status_code == 200, file


def test_a_user_is_found_by_keyboard_and_every_adapter_recommends_as_the_service_does(page, shown):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    while page.evaluate("document.activeElement.getAttribute('role')") != "combobox":
        page.keyboard.press("Tab")
    page.keyboard.type("u12")
    page.locator("[role=option] .main").first.wait_for()
    page.keyboard.press("ArrowDown")
    chosen = page.locator("[role=option][aria-selected=true] .main").text_content()
    page.keyboard.press("Enter")
    settled(page)
    assert field(page).input_value() == chosen and page.url.endswith(f"#recommend/{chosen}")
    names = ["like@production", "like@candidate", "next_item@production"]
    assert page.locator(".column h2").all_text_contents() == names
    rows = [{"adapter": name, "user_id": chosen, "k": 10} for name in names]
    for name, answer in zip(names, shown[1].post("/v1/recommend", json={"requests": rows}).json()["responses"], strict=True):
        assert titles(page, name) == [item["title"] for item in answer["results"]]
        assert column(page, name).locator("code").text_content() == answer["digest"][:12]
        scores = [float(text.split()[-1]) for text in column(page, name).locator(".score").all_text_contents()]
        assert scores == pytest.approx([item["score"] for item in answer["results"]], abs=6e-4)
    known = shown[1].get("/v1/history", params={"user_id": chosen}).json()
    assert page.locator(".about .events .title").all_text_contents() == [event["title"] for event in known["events"]][::-1]
    assert f"age {known['columns']['age']}" in page.locator(".facts").inner_text()


def test_the_search_list_is_a_combobox(page):
    user = field(page)
    user.fill("u99")
    page.locator("[role=option] .main").first.wait_for()
    assert page.locator("[role=option]").count() == 20  # of 1,111 among 10,000
    assert user.get_attribute("aria-expanded") == "true"
    first, second = (page.locator("[role=option]").nth(place).get_attribute("id") for place in (0, 1))
    assert user.get_attribute("aria-activedescendant") == first
    page.keyboard.press("ArrowDown")
    assert user.get_attribute("aria-activedescendant") == second
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    last = page.locator("[role=option]").last
    assert user.get_attribute("aria-activedescendant") == last.get_attribute("id") and last.is_visible()
    until(page, "document.querySelector('#said').textContent === '20 matches'")
    page.keyboard.press("Escape")
    assert user.get_attribute("aria-expanded") == "false" and user.input_value() == "u99"
    assert user.get_attribute("aria-activedescendant") is None
    page.keyboard.press("Escape")
    assert user.input_value() == ""
    user.fill("nobody at all")
    page.get_by_text("Nothing matches.").first.wait_for()
    page.keyboard.press("Enter")
    assert user.input_value() == "nobody at all" and page.locator(".column").count() == 0


def test_reasons_come_on_demand_and_by_either_method(page, shown):
    choose(page, "u5")
    first = column(page, "like@production").locator(".item").first
    first.focus()
    page.keyboard.press("ArrowDown")
    item = page.evaluate("document.activeElement.dataset.item")
    page.keyboard.press("Enter")
    why = column(page, "like@production").locator(".why")
    for method, button in (("gradient", "Leave each event out"), ("leave_one_out", None)):
        row = {"adapter": "like@production", "user_id": "u5", "item": item, "method": method}
        (wanted,) = shown[1].post("/v1/explain", json={"requests": [row]}).json()["responses"]
        if button is None:
            why.get_by_role("button", name="Leave each event out").click()
            why.get_by_text("Each event was left out in turn.").wait_for()
        else:
            why.get_by_role("button", name=button).wait_for()
        order = sorted(wanted["events"][:5], key=lambda event: -event["share"])
        assert why.locator("tbody td:first-child").all_text_contents() == [event["title"] for event in order]
        percent = [float(text.replace("−", "-").replace("%", "")) for text in why.locator(".share .number").all_text_contents()]
        assert percent == pytest.approx([100 * event["share"] for event in order], abs=0.51)
        best = [event for event in order if event["share"] > 0][:2]
        said = why.locator(".because").text_content()
        assert all(f"“{event['title']}” (rating {event['feedback']:g})" in said for event in best)
    assert page.locator(".item[aria-expanded=true]").count() == 1
    page.keyboard.press("Escape")
    assert page.locator(".item[aria-expanded=true]").count() == 0
    assert page.evaluate("document.activeElement.dataset.item") == item


def test_arrows_walk_in_a_list_and_between_lists(page):
    choose(page, "u5")
    column(page, "like@production").locator(".item").first.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft"):
        page.keyboard.press(key)
    place = "[...document.activeElement.closest('.items').querySelectorAll('.item')].indexOf(document.activeElement)"
    assert page.evaluate(place) == 1
    assert page.evaluate("document.activeElement.closest('.column').querySelector('h2').textContent") == "like@production"
    page.keyboard.press("End")
    assert page.evaluate(place) == 9
    stops = "[...document.querySelectorAll('.items')].map((list) => list.querySelectorAll('.item[tabindex=\"0\"]').length)"
    assert page.evaluate(stops) == [1, 1, 1]


def test_a_history_is_put_together_by_title(page, shown):
    page.get_by_role("radio", name="Your own").check()
    settled(page)  # what a new user gets
    sent = []
    page.on("request", lambda request: "recommend" in request.url and sent.append(json.loads(request.post_data)["requests"][0]))
    add = field(page, "Add an item")
    for text in ("war 7", "love 8", "a film that nobody knows"):
        add.fill(text)
        page.locator("[role=option] .main", has_text=text).first.wait_for()
        page.keyboard.press("Enter")
        assert add.input_value() == ""
    settled(page)
    assert page.locator(".own .title").all_text_contents() == ["a film that nobody knows", "love 8", "war 7"]
    page.get_by_label("rating of love 8").select_option("1")
    until(page, "document.querySelector('.column[aria-busy]') !== null")
    settled(page)
    history = [
        {"item_id": "i7", "rating": 5},
        {"item_id": "i8", "rating": 1},
        {"item": {"title": "a film that nobody knows"}, "rating": 5},
    ]
    assert {row["adapter"] for row in sent[-3:]} == {"like@production", "like@candidate", "next_item@production"}
    assert all(row["history"] == history for row in sent[-3:])
    (answer,) = shown[1].post("/v1/recommend", json={"requests": [sent[-1]]}).json()["responses"]
    assert titles(page, sent[-1]["adapter"]) == [item["title"] for item in answer["results"]]
    page.get_by_role("button", name="Remove love 8").press("Enter")
    assert page.locator(".own .title").all_text_contents() == ["a film that nobody knows", "war 7"]
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Remove war 7"


def test_a_copy_of_a_users_history_can_be_edited(page):
    choose(page, "u5")
    before = titles(page, "like@production")
    events = page.locator(".about .events .title").all_text_contents()
    page.get_by_role("button", name="Edit a copy").click()
    settled(page)
    assert page.locator(".own .title").all_text_contents() == events and titles(page, "like@production") == before
    assert page.evaluate("document.activeElement.getAttribute('role')") == "combobox"


def test_adapters_and_the_number_of_items_are_chosen(page):
    choose(page, "u5")
    page.get_by_role("checkbox", name="like@candidate").uncheck()
    page.get_by_role("checkbox", name="rating@production").check()
    page.get_by_label("Items from each").select_option("5")
    until(page, "[...document.querySelectorAll('.items')].filter((list) => list.children.length === 5).length === 3")
    assert page.locator(".column h2").all_text_contents() == ["like@production", "next_item@production", "rating@production"]
    for name in ("like@production", "next_item@production", "rating@production"):
        page.get_by_role("checkbox", name=name).uncheck()
    page.get_by_text("Choose an adapter.").wait_for()
    assert page.locator(".column").count() == 0


def test_the_address_names_the_user(browser, shown):
    with opened(browser, shown[1], "/#recommend/u9") as page:
        settled(page)
        assert field(page).input_value() == "u9" and page.locator(".facts").inner_text() == "age 29"
    with opened(browser, shown[1], "/#recommend/%E0%A4%A") as page:  # no UTF-8
        page.get_by_text("Choose a user to see").wait_for()
    with opened(browser, shown[1], "/#recommend/ghost") as page:
        page.get_by_text("unknown user").first.wait_for()


def test_live_figures_are_those_of_the_service(page, shown):
    choose(page, "u5")
    until(page, "parseFloat(document.querySelector('#live b').textContent) > 0")
    text = " ".join(page.locator("#live").inner_text().split())
    assert "p50" in text and "p99" in text and "0 waiting 4/8 lanes" in text
    assert len(page.locator("#live polyline").get_attribute("points").split()) == 60


# --- hostile texts ---------------------------------------------------------------------------------------------------


def test_titles_and_ids_are_only_ever_text(page):
    choose(page, VILLAIN)
    assert page.url.count("<") == 0 and field(page).input_value() == VILLAIN
    page.get_by_label("Items from each").select_option("50")
    until(page, "[...document.querySelectorAll('.items')].every((list) => list.children.length > 20)")
    seen = titles(page, "next_item@production") + page.locator(".about .title").all_text_contents()
    assert set(HOSTILE.values()) <= set(seen)
    page.get_by_role("radio", name="Your own").check()
    for item in HOSTILE:
        field(page, "Add an item").fill(HOSTILE[item][:200])
        page.locator("[role=option] .main", has_text=HOSTILE[item]).first.wait_for()
        page.keyboard.press("Enter")
    settled(page)
    assert set(page.locator(".own .title").all_text_contents()) == set(HOSTILE.values())
    column(page, "like@production").locator(".item").first.click()
    page.locator(".because").wait_for()
    assert set(page.locator(".shares td:first-child").all_text_contents()) < set(HOSTILE.values())
    assert page.locator("img, main script, b[onclick], .own b, .items b").count() == 0
    wide = "() => [document.documentElement.scrollWidth, innerWidth]"
    assert page.evaluate(wide) == [1280, 1280]


# --- adapters and operators ------------------------------------------------------------------------------------------


def test_metrics_are_drawn_with_their_intervals(page, shown):
    page.get_by_role("link", name="Adapters").click()
    (like,) = [one for one in shown[1].get("/v1/adapters").json()["adapters"] if one["ref"] == "like@production"]
    card = page.locator(".card", has=page.get_by_role("heading", name="like", exact=True))
    auc = like["metrics"]["like"]["auc"]
    row = card.get_by_role("row").filter(has=page.get_by_role("rowheader", name="auc", exact=True))
    low, high = auc["interval"]
    assert f"{auc['value']:.3f}" in row.inner_text() and f"{low:.3f} – {high:.3f}" in row.inner_text()
    left, right = row.evaluate("(row) => ['x1', 'x2'].map((end) => +row.querySelector('line.interval').getAttribute(end))")
    dot = float(row.locator("circle").get_attribute("cx"))
    assert left <= dot <= right and (dot - left) / (right - left) == pytest.approx((auc["value"] - low) / (high - low), abs=0.02)
    assert card.get_by_text("like@candidate has no metric.").is_visible()
    assert page.locator(".moves li").count() >= 6 and page.title() == "Adapters · GENRE"
    assert card.get_by_text("publish production").count() == 1


def test_promote_and_roll_back_need_the_token_and_a_yes(page, shown, registry):
    before = registry.aliases("like")
    page.get_by_role("link", name="Adapters").click()
    assert page.locator("[data-act]").count() == 0
    page.get_by_label("Admin token").fill("some other token")
    page.keyboard.press("Enter")
    page.get_by_text("That is not the admin token.").wait_for()
    page.get_by_label("Admin token").fill(TOKEN)
    page.keyboard.press("Enter")
    card = page.locator(".card", has=page.get_by_role("heading", name="like", exact=True))
    promote = card.locator("[data-act=promote]")
    promote.click()
    page.get_by_text(f"production moves from {before['production']} to {before['candidate']}").wait_for()
    page.keyboard.press("Escape")
    assert registry.aliases("like") == before and page.evaluate("document.activeElement.dataset.act") == "promote"
    promote.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    card.get_by_text("cannot be compared").or_(card.locator(".note.error")).first.wait_for()  # the candidate has no metric
    assert registry.aliases("like") == before
    card.get_by_label("only if it is not worse").uncheck()
    promote.click()
    page.get_by_role("dialog").get_by_role("button", name="Promote").click()
    until(page, f"document.querySelector('{SAID}').textContent.includes('production is {before['candidate']} now.')")
    assert registry.aliases("like")["production"] == before["candidate"]
    assert page.evaluate("document.activeElement.dataset.act") == "promote"
    card.get_by_text("promote production").wait_for()
    card.locator("[data-act=rollback]").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    until(page, f"document.querySelector('{SAID}').textContent.includes('production is {before['production']} now.')")
    assert registry.aliases("like") == before
    stores = "[{...localStorage}, {...sessionStorage}, document.cookie, location.href, document.documentElement.outerHTML]"
    assert TOKEN not in page.evaluate(f"JSON.stringify({stores})")
    page.get_by_role("button", name="Forget the token").click()
    assert page.locator("[data-act]").count() == 0 and page.get_by_label("Admin token").input_value() == ""


def test_a_reload_forgets_the_token_and_keeps_the_theme(page):
    page.get_by_role("link", name="Adapters").click()
    page.get_by_label("Admin token").fill(TOKEN)
    page.get_by_role("button", name="Unlock").click()
    page.locator("[data-act]").first.wait_for()
    page.locator("#theme").click()
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    page.get_by_label("Admin token").wait_for()
    assert page.locator("[data-act]").count() == 0
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"
    assert page.evaluate("Object.keys(localStorage).join()") == "theme"


def test_without_a_data_set_and_a_token_there_are_neither_users_nor_operators(browser, trained, registry):
    with (
        open_engine(trained, registry, data=False) as engine,
        serving(engine, ["like@production"], stream=io.StringIO(), follow_s=0) as (_, client),
        opened(browser, client) as page,
    ):
        field(page, "Add an item").wait_for()
        settled(page)
        assert page.locator(".column h2").all_text_contents() == ["like@production"] and field(page).count() == 0
        page.get_by_role("link", name="Adapters").click()
        page.locator(".card").wait_for()
        assert page.locator("#operator").inner_text() == "" and page.locator("[data-act]").count() == 0


# --- when all is not well --------------------------------------------------------------------------------------------


def refuse(page, path, *answers):
    """Answer the first calls to a path with these, then let the service answer."""
    left = list(answers)

    def handle(route):
        if not left:
            route.continue_()
            return
        status, headers, body = left.pop(0)
        route.fulfill(status=status, headers=headers, body=body)

    page.route(path, handle)
    return left


def trouble(status, headers=None, error="what the server says of itself"):
    return (
        status,
        {"content-type": "application/json", **(headers or {})},
        json.dumps({"error": error, "code": "x", "request_id": "1"}),
    )


def test_a_full_service_is_waited_for(page):
    left = refuse(page, "**/v1/recommend", *[trouble(429, {"retry-after": "1"})] * 3)
    choose(page, "u5")
    assert not left and page.locator(".column .items").count() == 3 and page.locator(".column .error").count() == 0


def test_a_service_that_stays_full_is_said_and_tried_again_by_hand(page):
    for name in ("like@candidate", "next_item@production"):
        page.get_by_role("checkbox", name=name).uncheck()
    left = refuse(page, "**/v1/recommend", *[trouble(429, {"retry-after": "1"})] * 4)
    choose(page, "u5")
    page.get_by_text("The server is full. Please try again in a moment.").wait_for()
    assert not left
    page.get_by_role("button", name="Try again").click()
    page.locator(".item").first.wait_for()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (trouble(500), "The server had a problem of its own (500); its log has the reason."),
        ((502, {"content-type": "text/html"}, "<h1>Bad gateway</h1>"), "The server had a problem of its own (502)"),
        (trouble(504), "The answer took too long."),
        (trouble(404, error=f"unknown adapter {IMAGE}"), f"unknown adapter {IMAGE}"),
        ((200, {"content-type": "application/json"}, "no JSON"), "The server answered 200 without a reason."),
    ],
)
def test_a_failure_is_said_in_its_own_column_and_can_be_tried_again(page, answer, text):
    left = refuse(page, "**/v1/recommend", answer)
    choose(page, "u5")
    assert not left and page.locator(".column .items").count() == 2
    assert text in page.locator(".column .error").inner_text()
    page.locator(".column").get_by_role("button", name="Try again").click()
    page.locator(".column .items").nth(2).wait_for()
    assert page.locator(".column .error").count() == 0 and page.locator(".column .note:visible").count() == 0


def test_a_failed_reason_history_and_search_can_be_tried_again(page):
    refuse(page, "**/v1/users*", trouble(500))
    field(page).fill("u5")
    page.get_by_text("a problem of its own (500)").first.wait_for()
    refuse(page, "**/v1/history*", trouble(500))
    choose(page, "u5")
    page.locator(".about .error").get_by_role("button").click()
    page.locator(".facts").wait_for()
    refuse(page, "**/v1/explain", trouble(500))
    page.locator(".item").first.click()
    page.locator(".why .error").get_by_role("button").click()
    page.locator(".because").wait_for()


def test_a_row_that_fails_says_why(page):
    body = json.dumps({"responses": [{"id": None, "adapter": "like@production", "error": "every lane is pinned"}]})
    refuse(page, "**/v1/recommend", (200, {"content-type": "application/json"}, body))
    choose(page, "u5")
    assert page.locator(".column .error").inner_text() == "every lane is pinned"


def test_slow_answers_say_so_and_late_ones_are_dropped(browser, shown):
    with opened(browser, shown[1]) as page:
        page.wait_for_selector(".choice")
        page.clock.install()
        held = []
        page.route("**/v1/recommend", lambda route: held.append(route))
        field(page).fill("u5")
        page.clock.run_for(500)
        page.locator("[role=option] .main").first.wait_for()
        page.keyboard.press("Enter")
        page.clock.run_for(500)
        page.wait_for_selector(".skeleton")
        assert page.locator(".column[aria-busy]").count() == 3
        page.clock.run_for(5000)
        assert page.locator(".note", has_text="Still working…").count() == 3
        page.unroute("**/v1/recommend")
        field(page).fill("u6")
        page.clock.run_for(500)
        page.locator("[role=option] .main", has_text="u6").first.wait_for()
        page.keyboard.press("Enter")
        page.clock.run_for(500)
        settled(page)
        wanted = titles(page, "like@production")
        for route in held:  # the first user's answers: nobody waits for them any more
            with contextlib.suppress(sync_api.Error):
                route.continue_()
        page.clock.run_for(1000)
        assert titles(page, "like@production") == wanted and field(page).input_value() == "u6"


def test_a_service_that_goes_and_comes_back(browser, trained, registry):
    with open_engine(trained, registry) as engine, contextlib.ExitStack() as first:
        _, client = first.enter_context(serving(engine, ["like@production"], stream=io.StringIO(), follow_s=0))
        port = client.base_url.port
        with opened(browser, client) as page:
            page.wait_for_selector(".choice")
            choose(page, "u5")
            first.close()
            page.locator("#banner", has_text="The server does not answer.").wait_for()
            assert "not connected" in page.locator("#live").inner_text()
            field(page).fill("u6")
            page.get_by_text("The server does not answer.").first.wait_for()
            page.get_by_label("Items from each").select_option("5")
            page.locator(".column .error", has_text="The server does not answer.").wait_for()
            with serving(engine, ["like@production"], stream=io.StringIO(), follow_s=0, port=port):
                page.locator("#banner").wait_for(state="hidden")
                page.locator(".items > li").nth(4).wait_for()  # asked again by itself
                assert page.locator(".items > li").count() == 5 and page.locator(".column .error").count() == 0


# --- for everybody ---------------------------------------------------------------------------------------------------

CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => {
    const one = (v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * one(r) + 0.7152 * one(g) + 0.0722 * one(b);
  };
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(one).backgroundColor);
      if (a === 1 && r !== undefined) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    if (element.closest('.hidden, .skip, script')) continue;
    const style = getComputedStyle(element);
    const ink = element.closest('svg') ? style.fill : style.color;
    const [a, b] = [light(parse(ink)), light(ground(element))].sort((x, y) => y - x);
    const name = `${element.tagName} ${element.getAttribute('class') ?? ''}`;
    found.push([(a + 0.05) / (b + 0.05), name, walker.currentNode.textContent.slice(0, 30)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(browser, shown, scheme):
    with opened(browser, shown[1], color_scheme=scheme) as page:
        page.wait_for_selector(".choice")
        refuse(page, "**/v1/recommend", trouble(500))
        choose(page, "u5")
        page.locator(".item").first.click()
        page.locator(".because").wait_for()
        field(page).fill("u")
        page.locator("[role=option] .main").first.wait_for()
        found = page.evaluate(CONTRAST)
        assert len(found) > 80 and found[0][0] >= 4.5, found[:5]
        page.get_by_role("link", name="Adapters").click()
        page.get_by_label("Admin token").fill("wrong")
        page.keyboard.press("Enter")
        page.locator(".operator .error").wait_for()
        found = page.evaluate(CONTRAST)
        assert len(found) > 60 and found[0][0] >= 4.5, found[:5]


def test_every_stop_of_the_tab_key_is_seen_and_named(page):
    choose(page, "u5")
    page.locator(".skip").focus()
    look = """() => {
      const one = document.activeElement;
      if (!one || one === document.body) return null;
      const shown = one.matches('.switch input') ? one.nextElementSibling : one;
      const { outlineStyle, outlineWidth } = getComputedStyle(shown);
      const name = one.labels?.length || one.getAttribute('aria-label') || one.textContent.trim() || one.title;
      const seen = outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2;
      return [one.tagName + '.' + one.className + '#' + one.id, seen, Boolean(name)];
    }"""
    stops = []
    for _ in range(60):
        page.keyboard.press("Tab")
        stop = page.evaluate(look)
        if stop is None:
            break
        stops.append(stop)
    assert len(stops) >= 15 and all(seen and named for _, seen, named in stops), stops


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_one_way_only(browser, shown, scheme):
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    with opened(browser, shown[1], **phone) as page:
        page.wait_for_selector(".choice")
        choose(page, VILLAIN)
        page.get_by_label("Items from each").select_option("50")
        until(page, "[...document.querySelectorAll('.items')].every((list) => list.children.length > 20)")
        page.locator(".item").first.tap()
        page.locator(".because").wait_for()
        wide = "() => [document.documentElement.scrollWidth, innerWidth]"
        assert page.evaluate(wide) == [360, 360]
        page.get_by_role("link", name="Adapters").tap()
        page.get_by_label("Admin token").fill(TOKEN)
        page.get_by_role("button", name="Unlock").tap()
        page.locator("[data-act]").first.wait_for()
        for summary in page.locator(".card summary").all():
            summary.tap()
        assert page.evaluate(wide) == [360, 360]
        small = """() => [...document.querySelectorAll('button, select, input, summary, nav a')]
          .filter((one) => one.checkVisibility()).map((one) => [one.getBoundingClientRect().height, one.outerHTML.slice(0, 80)])
          .filter(([height, html]) => height < 24 && !html.includes('checkbox'))"""
        assert page.evaluate(small) == []


def test_still_pictures_for_those_who_want_less_motion(browser, shown):
    with opened(browser, shown[1], reduced_motion="reduce") as page:
        page.wait_for_selector(".choice")
        page.route("**/v1/recommend", lambda route: None)
        field(page).fill("u5")
        page.locator("[role=option] .main").first.wait_for()
        page.keyboard.press("Enter")
        page.wait_for_selector(".skeleton")
        assert page.evaluate("document.getAnimations().length") == 0
        page.unroute_all(behavior="ignoreErrors")
