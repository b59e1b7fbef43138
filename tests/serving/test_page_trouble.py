"""The page beside a service that is slow, full, broken or gone."""

import contextlib
import json

import pytest
from page_fakes import IMAGE, choose, field, opened, refuse, settled, titles, trouble
from serving_fakes import open_engine, serving


# --- when all is not well ---
def test_a_full_service_is_waited_for(page):
    left = refuse(page, "**/v1/recommend", *[trouble(429, {"retry-after": "1"})] * 3)
    field(page).fill("u5")
    page.keyboard.press("Enter")  # before there are matches: the first one is taken
    page.get_by_text("The server is full. Trying again in 1 s…").first.wait_for()
    settled(page)
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
    assert page.locator(".why .error").count() == page.locator(".about .error").count() == 0


def test_a_row_that_fails_says_why(page):
    body = json.dumps({"responses": [{"id": None, "adapter": "like@production", "error": "every lane is pinned"}]})
    refuse(page, "**/v1/recommend", (200, {"content-type": "application/json"}, body))
    choose(page, "u5")
    assert page.locator(".column .error").inner_text() == "every lane is pinned"


def test_slow_answers_say_so_and_late_ones_are_dropped(browser, shown):
    with opened(browser, shown) as page:
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
            with contextlib.suppress(Exception):
                route.continue_()
        page.clock.run_for(1000)
        assert titles(page, "like@production") == wanted and field(page).input_value() == "u6"


def test_a_service_that_goes_and_comes_back(browser, trained, candidate):
    with open_engine(trained, candidate) as engine, contextlib.ExitStack() as first:
        _, client = first.enter_context(serving(engine, ["like@production"], follow_s=0))
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
            with serving(engine, ["like@production"], follow_s=0, port=port):
                page.locator("#banner").wait_for(state="hidden")
                page.locator(".items > li").nth(4).wait_for()  # asked again by itself
                assert page.locator(".items > li").count() == 5 and page.locator(".column .error").count() == 0
