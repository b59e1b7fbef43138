"""The page for everybody: contrast, focus, phones, less motion."""

import pytest
from page_fakes import CONTRAST, VILLAIN, choose, field, opened, refuse, trouble, until
from serving_fakes import TOKEN


# --- for everybody ---
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(browser, shown, scheme):
    with opened(browser, shown, color_scheme=scheme) as page:
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
    with opened(browser, shown, **phone) as page:
        page.wait_for_selector(".sample")
        choose(page, VILLAIN)
        page.locator("#chosen").tap()
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
    with opened(browser, shown, reduced_motion="reduce") as page:
        page.wait_for_selector(".choice")
        page.route("**/v1/recommend", lambda route: None)
        field(page).fill("u5")
        page.locator("[role=option] .main").first.wait_for()
        page.keyboard.press("Enter")
        page.wait_for_selector(".skeleton")
        assert page.evaluate("document.getAnimations().length") == 0
        page.unroute_all(behavior="ignoreErrors")
