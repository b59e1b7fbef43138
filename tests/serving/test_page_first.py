"""The page for somebody who sees it for the first time: sample users, the API in the browser, a phone, pictures of it all."""

import json
import sys

import pytest
from page_fakes import CONTRAST, HOSTILE, column, field, opened, settled
from serving_fakes import open_engine, serving

from standins import ROOT, movies

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def test_the_first_screen_says_what_this_is_and_offers_users(page, shown):
    assert "One language model, with a small adapter for each question" in page.locator("#intro").inner_text()
    page.wait_for_selector(".sample")
    sample = shown.get("/v1/users", params={"sample": True, "limit": 6}).json()["users"]
    cards = page.locator(".sample").all_inner_texts()
    assert len(cards) == 6
    for card, user in zip(cards, sample, strict=True):
        assert card.splitlines() == [
            f"User {user['user_id']}",
            f"{user['events']} events",
            f"Latest: {'; '.join(user['latest'])}",
        ]
    page.locator(".sample").nth(2).focus()
    page.get_by_label("Items from each").evaluate(
        "(select) => select.dispatchEvent(new Event('change'))"
    )  # asks, and shows the same
    page.wait_for_timeout(400)
    assert page.evaluate("document.activeElement.className") == "sample"
    page.keyboard.press("Enter")
    settled(page)
    assert field(page).input_value() == sample[2]["user_id"] and page.locator(".sample").count() == 0
    assert not page.locator("#intro").is_visible()


def test_sample_users_span_short_to_long_histories(asked):
    log = asked.engine.data
    users = asked.client.get("/v1/users", params={"sample": True, "limit": 4}).json()["users"]
    assert len({user["user_id"] for user in users}) == 4
    assert [user["events"] for user in users] == sorted(len(log.history(user["user_id"])) for user in users)
    named = dict(zip(log.catalogue.item_ids, log.catalogue.titles(), strict=True))
    for user in users:
        assert user["latest"] == [named[event["item_id"]] for event in log.history(user["user_id"])[:-4:-1]]
    assert asked.client.get("/v1/users", params={"sample": True, "limit": 4}).json()["users"] == users
    many = asked.client.get("/v1/users", params={"sample": True, "limit": 1000}).json()["users"]
    assert sorted(user["user_id"] for user in many) == sorted(log.user_ids)


def test_next_item_scores_are_probabilities_of_all_that_could_be_answered(asked):
    row = {"adapter": "next_item@production", "user_id": "u5", "k": 30}
    (all_of_it,) = asked.client.post("/v1/recommend", json={"requests": [row]}).json()["responses"]
    shares = [item["probability"] for item in all_of_it["results"]]
    assert sum(shares) == pytest.approx(1) and shares == sorted(shares, reverse=True)
    (best,) = asked.client.post("/v1/recommend", json={"requests": [{**row, "k": 3}]}).json()["responses"]
    assert [item["probability"] for item in best["results"]] == pytest.approx(shares[:3])
    (like,) = asked.client.post("/v1/recommend", json={"requests": [{**row, "adapter": "like@production"}]}).json()["responses"]
    assert not any("probability" in item for item in like["results"])
    (scored,) = asked.client.post("/v1/score", json={"requests": [row]}).json()["responses"]
    assert set(scored["results"][0]) == {"item_id", "score"}


@pytest.fixture(scope="module")
def cinema(trained):
    """A service over films with years and genres."""
    from genre import Base, Engine

    films = movies()
    with (
        Engine(Base.load(str(trained.base)), trained.registry, data=films) as engine,
        serving(engine, ["like@production", "next_item@production", "rating@production"], follow_s=0) as (_, client),
    ):
        yield films, client


def test_rows_show_year_and_genres(browser, cinema):
    films, client = cinema
    known = {row["item_id"]: row for row in films.catalogue.frame.to_dicts()}
    with opened(browser, client, "/#recommend/196") as page:
        settled(page)
        rows = column(page, "next_item@production").locator(".item")
        assert rows.count() == 10
        for row in rows.all():
            item = known[row.get_attribute("data-item")]
            assert row.locator(".title").text_content() == item["title"]
            assert row.locator(".known").text_content() == f"{item['year']} · {item['genres']}"
        rows.first.click()
        page.get_by_text("The history as a whole multiplies its weight in the ranking by").wait_for()


def test_on_a_phone_results_are_on_the_first_screen_and_lists_a_swipe_apart(browser, cinema):
    with opened(browser, cinema[1], **PHONE) as page:
        page.wait_for_selector(".sample")
        assert page.locator(".sample").first.bounding_box()["y"] < 844
        page.locator(".sample").first.tap()
        settled(page)
        page.locator(".past > summary").wait_for()
        second = column(page, "like@production").locator(".item").nth(1).bounding_box()
        assert second["y"] + second["height"] <= 844
        tops = [page.locator(".column").nth(place).bounding_box()["y"] for place in range(3)]
        assert len(set(tops)) == 1
        column(page, "rating@production").locator(".item").first.focus()
        page.wait_for_timeout(300)
        box = column(page, "rating@production").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
        assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]


# --- the API in the browser ---
def test_every_call_of_the_document_is_on_the_page_and_can_be_sent(browser, shown):
    known = shown.get("/openapi.json").json()["paths"]
    with opened(browser, shown, "/docs") as page:
        page.wait_for_selector(".try")
        there = page.locator(".card h2 code").all_text_contents()
        assert sorted(there) == sorted(path for path, methods in known.items() for _ in methods) and there[0] == "/v1/recommend"
        for path in ("/v1/recommend", "/v1/score", "/v1/explain", "/v1/users", "/v1/history", "/livez"):
            card = page.locator(".card", has=page.locator("h2 code").get_by_text(path, exact=True))
            card.get_by_role("button", name="Send").click()
            page.get_by_text(f"{path} has answered").wait_for(state="attached")
            answer = json.loads(card.locator("pre").text_content())
            rows = answer.get("responses", [])
            assert answer and not any("error" in row for row in rows), answer
        assert page.locator(".card", has=page.get_by_role("heading", name="/v1/admin/promote")).get_by_role("button").count() == 0


def test_a_body_that_cannot_be_used_is_said_where_it_was_sent(browser, shown):
    with opened(browser, shown, "/docs") as page:
        page.wait_for_selector(".try")
        card = page.locator(".card").first
        for body, wanted in (("{", "The body is not JSON"), ('{"requests": []}', "requests"), ("[]", "got")):
            card.locator("textarea").fill(body)
            card.get_by_role("button", name="Send").click()
            card.locator("pre", has_text=wanted).wait_for()


def test_the_api_is_reached_from_the_page_and_back(page):
    page.get_by_role("link", name="API", exact=True).click()
    page.wait_for_selector(".try")
    assert page.url.endswith("/docs") and page.title() == "API · GENRE"
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.get_by_role("link", name="Adapters").click()
    page.wait_for_selector("#cards .card")


def test_the_documents_texts_are_only_ever_text(browser, trained, candidate):
    with (
        open_engine(trained, candidate, data=False) as engine,
        serving(engine, ["like@production"], follow_s=0) as (_, client),
        opened(browser, client, "/docs") as page,
    ):
        page.wait_for_selector(".try")
        for text in HOSTILE.values():
            page.locator("textarea").first.fill(json.dumps({"requests": [{"adapter": text, "history": [], "k": 1}]}))
            page.get_by_role("button", name="Send").first.click()
            page.get_by_text("/v1/recommend has answered").wait_for(state="attached")
        assert page.locator("main img, main script, main b").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_first_screen_and_api_have_enough_contrast_and_fit_a_phone(browser, shown, scheme):
    with opened(browser, shown, color_scheme=scheme, **{**PHONE, "viewport": {"width": 360, "height": 740}}) as page:
        page.wait_for_selector(".sample")
        found = page.evaluate(CONTRAST)
        assert len(found) > 30 and found[0][0] >= 4.5, found[:5]
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.get_by_role("link", name="API", exact=True).tap()
        page.wait_for_selector(".try")
        for summary in page.locator("summary").all():
            summary.tap()
        page.get_by_role("button", name="Send").first.tap()
        page.locator("pre", has_text="digest").wait_for()
        found = page.evaluate(CONTRAST)
        assert len(found) > 200 and found[0][0] >= 4.5, found[:5]
        assert page.evaluate("document.documentElement.scrollWidth") == 360


# --- pictures ---
def test_pictures_of_every_view_on_desktop_and_phone_in_light_and_dark(browser, cinema, monkeypatch):
    """Left in build/pictures, to be looked at."""
    from PIL import Image

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import pictures

    folder = ROOT / "build" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    client = cinema[1]
    paths = list(pictures.write(pictures.take(browser, str(client.base_url), "196"), folder))
    sys.modules.pop("pictures")
    views = ("first", "recommend", "reasons", "adapters", "api")
    assert [path.stem for path in paths] == [
        f"{screen}-{scheme}-{view}" for screen in ("desktop", "phone") for scheme in ("light", "dark") for view in views
    ]
    for path in paths:
        image = Image.open(path).convert("L")
        middle = sum(value * count for value, count in enumerate(image.histogram())) / (image.width * image.height)
        assert (middle > 128) == ("-light-" in path.stem), (path.stem, middle)
        assert image.size == ((1280, 860) if "desktop" in path.stem else (780, 1688))
