"""The page's second view: metrics with intervals, promote and roll back with the token, which nothing keeps."""

import pytest
from page_fakes import field, opened, settled, until
from serving_fakes import TOKEN, open_engine, serving

SAID = "#said"


# --- adapters and operators ---
def test_metrics_are_drawn_with_their_intervals(page, shown):
    page.get_by_role("link", name="Adapters").click()
    (like,) = [one for one in shown.get("/v1/adapters").json()["adapters"] if one["ref"] == "like@production"]
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


def test_promote_and_roll_back_need_the_token_and_a_yes(page, shown, candidate):
    before = candidate.aliases("like")
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
    assert candidate.aliases("like") == before and page.evaluate("document.activeElement.dataset.act") == "promote"
    promote.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    card.get_by_text("cannot be compared").or_(card.locator(".note.error")).first.wait_for()  # the candidate has no metric
    assert candidate.aliases("like") == before
    card.get_by_label("only if it is not worse").uncheck()
    promote.click()
    page.get_by_role("dialog").get_by_role("button", name="Promote").click()
    until(page, f"document.querySelector('{SAID}').textContent.includes('production is {before['candidate']} now.')")
    assert candidate.aliases("like")["production"] == before["candidate"]
    assert page.evaluate("document.activeElement.dataset.act") == "promote"
    card.get_by_text("promote production").wait_for()
    card.locator("[data-act=rollback]").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    until(page, f"document.querySelector('{SAID}').textContent.includes('production is {before['production']} now.')")
    assert candidate.aliases("like") == before
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


def test_without_a_data_set_and_a_token_there_are_neither_users_nor_operators(browser, trained, candidate):
    with (
        open_engine(trained, candidate, data=False) as engine,
        serving(engine, ["like@production"], follow_s=0) as (_, client),
        opened(browser, client) as page,
    ):
        field(page, "Add an item").wait_for()
        settled(page)
        assert page.locator(".column h2").all_text_contents() == ["like@production"] and field(page).count() == 0
        page.get_by_role("link", name="Adapters").click()
        page.locator(".card").wait_for()
        assert page.locator("#operator").inner_text() == "" and page.locator("[data-act]").count() == 0
