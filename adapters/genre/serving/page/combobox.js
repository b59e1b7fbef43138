// A text field with a list of what it may mean: ARIA's combobox with a listbox.
// Arrows move in the list, Enter takes, Escape closes and then clears, Tab leaves.

import { aborted } from "./api.js";
import { h, newId, put, say, settle } from "./dom.js";
import { plural } from "./format.js";

const LONGEST = 200; // characters that the service searches for

/**
 * @param {object} options
 * @param {string} options.label
 * @param {string} options.placeholder
 * @param {(text: string, signal: AbortSignal) => Promise<{main: string, side?: string, value: unknown}[]>} options.search
 * @param {(value: unknown) => string} options.take Told what was chosen; returns what the field then shows.
 * @param {boolean} [options.early] Search as soon as the field has the focus, without a text.
 */
export function combobox({ label, placeholder, search, take, early = true }) {
  const list = h("ul", { role: "listbox", id: newId("list"), class: "options", "aria-label": label, hidden: true });
  const input = h("input", {
    type: "text", id: newId("field"), role: "combobox", class: "field", placeholder, autocomplete: "off", spellcheck: "false", maxlength: LONGEST,
    autocapitalize: "off", "aria-autocomplete": "list", "aria-expanded": "false", "aria-controls": list.id,
  });
  const root = h("div", { class: "combobox" }, h("label", { for: input.id }, label), input, list);
  let options = [];
  let active = -1;
  let waiting = null;
  let stale = false; // the text has changed since it was looked for
  let eager = false; // Enter came before the matches did: the first of them is taken

  const open = (yes) => {
    list.hidden = !yes;
    input.setAttribute("aria-expanded", String(yes));
    if (!yes) move(-1);
  };
  const move = (place) => {
    active = place;
    input.removeAttribute("aria-activedescendant");
    [...list.children].forEach((item, number) => {
      const here = number === place;
      item.setAttribute("aria-selected", String(here));
      if (here) {
        input.setAttribute("aria-activedescendant", item.id);
        item.scrollIntoView({ block: "nearest" });
      }
    });
  };
  const choose = (place) => {
    const option = options[place];
    if (!option) return;
    close();
    input.value = take(option.value);
  };
  const close = () => {
    waiting?.abort();
    waiting = null;
    stale = false;
    eager = false;
    open(false);
  };
  const note = (text) => {
    options = [];
    put(list, h("li", { class: "remark", role: "option", "aria-disabled": "true", id: newId("option") }, text));
    open(true);
  };
  const show = (found) => {
    if (!found.length) {
      note("Nothing matches.");
      say("Nothing matches.");
      return;
    }
    options = found;
    put(list, found.map((option, place) =>
      h("li", {
        role: "option", id: newId("option"), "aria-selected": "false",
        onpointerdown: (event) => event.preventDefault(), onclick: () => choose(place),
      }, h("span", { class: "main" }, option.main), option.side && h("span", { class: "side" }, option.side))));
    open(true);
    move(0);
    if (eager) choose(0);
    else say(plural(found.length, "match", "matches"));
  };
  const look = async () => {
    waiting?.abort();
    stale = false;
    const mine = (waiting = new AbortController());
    const slow = setTimeout(() => waiting === mine && list.hidden && note("Searching…"), 300);
    try {
      const found = await search(input.value.trim(), mine.signal);
      if (waiting === mine) show(found);
    } catch (error) {
      if (waiting === mine && !aborted(error)) {
        note(error.message);
        say(error.message);
      }
    } finally {
      clearTimeout(slow);
      if (waiting === mine) waiting = null;
    }
  };
  const soon = settle(() => stale && document.activeElement === input && look(), 120);
  const change = () => {
    stale = true;
    options = [];
    eager = false;
    soon();
  };

  input.addEventListener("input", change);
  input.addEventListener("focus", () => {
    input.select();
    if (early) change();
  });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    const last = options.length - 1;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) look();
      else if (options.length) move(event.key === "ArrowDown" ? (active >= last ? 0 : active + 1) : active <= 0 ? last : active - 1);
    } else if (event.key === "Enter") {
      event.preventDefault();
      eager = input.value.trim() !== "";
      if (options.length && !list.hidden) choose(active);
      else if (stale || !waiting) look();
    } else if (event.key === "Escape") {
      if (!list.hidden) close();
      else input.value = "";
      event.preventDefault();
    }
  });
  return { root, input };
}
