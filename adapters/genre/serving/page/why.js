// "The history raises this score, because of …": each event's share in a score, drawn to the left (takes away) or right (adds).

import { aborted, one } from "./api.js";
import { h, put, say } from "./dom.js";
import { feedback, plural, share } from "./format.js";

const SHOWN = 5;
const KEPT = 200;
const known = new Map();

/**
 * A panel that explains one item's score; it begins with the fast estimate and offers the exact method.
 *
 * @param {(found: object) => string} compared The score with and without the history, in words.
 */
export function why(fields, ref, task, item, compared) {
  const root = h("div", { class: "why" });
  let asking = null;

  const load = async (method) => {
    const row = { adapter: ref, task, item, method, ...fields };
    const key = JSON.stringify(row);
    asking?.abort();
    const mine = (asking = new AbortController());
    if (!known.has(key)) {
      const text = method === "gradient" ? "Looking for reasons…" : "Leaving out one event after the other…";
      put(root, h("p", { class: "muted" }, text));
    }
    try {
      const found = known.get(key) ?? (await one("/v1/explain", row, { signal: mine.signal }));
      if (asking !== mine) return;
      if (known.size >= KEPT) known.delete(known.keys().next().value);
      known.set(key, found);
      put(root, ...reasons(found, load, compared(found)));
      say(found.sentence);
    } catch (error) {
      if (aborted(error) || asking !== mine) return;
      put(root, h("p", { class: "error" }, error.message, " ", h("button", { type: "button", class: "link", onclick: () => load(method) }, "Try again")));
    }
  };
  load("gradient");
  return { root, stop: () => asking?.abort() };
}

function reasons(found, load, compared) {
  const most = Math.max(...found.events.map((event) => Math.abs(event.share)), Number.MIN_VALUE);
  const largest = found.events.slice(0, SHOWN).sort((one, other) => other.share - one.share);
  const rest = found.events.length - SHOWN;
  const exact = found.method === "leave_one_out";
  return [
    h("p", { class: "because" }, found.sentence),
    found.events.length && h("table", { class: "shares" },
      h("thead", { class: "hidden" }, h("tr", {}, ["Event", found.column ?? "", "Share"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, largest.map((event) => line(event, most)))),
    rest > 0 && h("p", { class: "muted" }, `and ${plural(rest, "event")} with smaller shares`),
    found.older > 0 && h("p", { class: "muted" }, `${plural(found.older, "older event")} not read`),
    h("p", { class: "muted" }, `${compared} `,
      exact
        ? "Each event was left out in turn."
        : ["A fast estimate. ", h("button", { type: "button", class: "link", onclick: () => load("leave_one_out") }, "Leave each event out")]),
  ];
}

function line(event, most) {
  const bar = h("span", { class: event.share < 0 ? "bar less" : "bar more" });
  bar.style.inlineSize = `${(50 * Math.abs(event.share)) / most}%`;
  return h("tr", {},
    h("td", {}, event.title),
    h("td", { class: "said" }, event.feedback === null ? "–" : feedback(event.feedback)),
    h("td", {}, h("span", { class: "share" }, h("span", { class: "axis", "aria-hidden": "true" }, bar), h("span", { class: "number" }, share(event.share)))));
}
