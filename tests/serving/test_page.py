"""The page: what it shows is what the service says, by keyboard; titles and ids are only ever text."""

import json
import re

import pytest
from page_fakes import HOSTILE, VILLAIN, choose, column, field, opened, settled, titles, until


# --- what it shows ---
def test_nothing_is_inline_and_nothing_may_come_from_elsewhere(shown):
    reply = shown.get("/")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|https?:", reply.text)
    for file in re.findall(r'(?:src|href)="([\w.]+)"', reply.text + shown.get("/docs").text):
        assert shown.get(f"/{file}").status_code == 200, file


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
    for name, answer in zip(names, shown.post("/v1/recommend", json={"requests": rows}).json()["responses"], strict=True):
        assert titles(page, name) == [item["title"] for item in answer["results"]]
        assert column(page, name).locator("code").text_content() == answer["digest"][:12]
        percent = [float(text.split()[-2]) for text in column(page, name).locator(".score").all_text_contents()]
        wanted = [item.get("probability", item["score"]) for item in answer["results"]]
        assert [each / 100 for each in percent] == pytest.approx(wanted, abs=6e-4)
    known = shown.get("/v1/history", params={"user_id": chosen}).json()
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
    page.keyboard.press("Enter")  # shows all, takes none
    page.locator("[role=option] .main").first.wait_for()
    assert user.input_value() == "" and user.get_attribute("aria-expanded") == "true"
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
        (wanted,) = shown.post("/v1/explain", json={"requests": [row]}).json()["responses"]
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
        assert said == wanted["sentence"] and all(f"“{event['title']}”" in said for event in best)
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
    assert page.url.endswith("#recommend")
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
    (answer,) = shown.post("/v1/recommend", json={"requests": [sent[-1]]}).json()["responses"]
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
    with opened(browser, shown, "/#recommend/u9") as page:
        settled(page)
        assert field(page).input_value() == "u9" and page.locator(".facts").inner_text() == "age 29"
    with opened(browser, shown, "/#recommend/%E0%A4%A") as page:  # no UTF-8
        page.get_by_text("Choose a user to see").wait_for()
    with opened(browser, shown, "/#recommend/ghost") as page:
        page.get_by_text("unknown user").first.wait_for()


def test_live_figures_are_those_of_the_service(page, shown):
    choose(page, "u5")
    until(page, "parseFloat(document.querySelector('#live b').textContent) > 0")
    text = " ".join(page.locator("#live").inner_text().split())
    assert re.search(r"[\d.]+ answers/s [\d.]+ m?s typical 99 % within [\d.]+ m?s 0 waiting 4 of 8 adapters in memory", text), (
        text
    )
    assert len(page.locator("#live polyline").get_attribute("points").split()) == 60


# --- hostile texts ---
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
