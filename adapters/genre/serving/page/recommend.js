// The first view: whose history, which adapters, and what they recommend side by side.

import { aborted, call, gone, one } from "./api.js";
import { byId, h, newId, put, say, settle } from "./dom.js";
import { facts, figure, percent, plural, scale } from "./format.js";
import { person } from "./person.js";
import { onServed, readBy, served, tasksOf } from "./served.js";
import { why } from "./why.js";

const CHOSEN = 3;
const COUNTS = [5, 10, 20, 50];
const SAMPLES = 6;
const SLOW_MS = 4000;
const WIDE = "(min-width: 60rem)";

const state = { fields: null, chosen: new Set(), k: 10, samples: null };
const columns = new Map();
let who = null;
let first = null;

/** Draw the view and keep it up to date. */
export function start() {
  const soon = settle(ask, 200);
  const again = () => {  // what is shown answers the question before
    for (const { root } of columns.values()) root.setAttribute("aria-busy", "true");
    soon();
  };
  who = person((fields) => {
    state.fields = fields;
    if (fields && !byId("recommend").hidden) {
      history.replaceState(null, "", fields.history ? "#recommend" : `#recommend/${encodeURIComponent(fields.user_id)}`);
    }
    again();
  });
  const choices = h("div", { class: "choices" });
  const many = h("select", { id: newId("many"), onchange: ({ target }) => { state.k = Number(target.value); again(); } },
    COUNTS.map((number) => h("option", { value: number, selected: number === state.k }, String(number))));
  put(byId("ask"),
    h("fieldset", {}, h("legend", {}, "History"), who.root),
    h("fieldset", {}, h("legend", { class: "hidden" }, "Adapters"),
      h("details", { class: "fold", open: matchMedia(WIDE).matches }, h("summary", { id: "chosen" }, "Adapters"), choices,
        h("p", { class: "between" }, h("label", { for: many.id }, "Items from each"), many))));
  byId("ask").addEventListener("submit", (event) => event.preventDefault());
  let known = "";
  onServed((overview) => {
    const tasks = tasksOf(overview);
    const now = tasks.map(({ key }) => key).join();
    who.offer(overview);
    if (overview.data && !state.samples) sample();
    if (now !== known) {
      offer(choices, tasks, again);
      known = now;
      again();
    }
    for (const column of columns.values()) column.compare(overview);
  });
}

/** Ask for some users to begin with; without an answer the search field is the way to one. */
async function sample() {
  state.samples = [];
  try {
    state.samples = (await call(`/v1/users?sample=true&limit=${SAMPLES}`)).users;
    if (!columns.size) ask();
  } catch {
    state.samples = null;
  }
}

/** The first screen, before anybody is chosen; the same element until there are other samples, so that no tap or focus is lost. */
function welcome() {
  if (first?.samples === state.samples) return first.root;
  const card = ({ user_id, events, latest }) =>
    h("li", {}, h("button", { type: "button", class: "sample", onclick: () => who.user(user_id) },
      h("b", {}, `User ${user_id}`), h("span", { class: "muted" }, plural(events, "event")),
      h("span", { class: "latest" }, `Latest: ${latest.join("; ")}`)));
  const root = h("div", { class: "welcome" }, h("p", { class: "empty" }, "Choose a user to see what the adapters recommend."),
    state.samples?.length && h("section", { class: "samples", "aria-labelledby": "samples-title" },
      h("h2", { id: "samples-title" }, "Or begin with one of these"), h("ul", {}, state.samples.map(card))));
  first = { root, samples: state.samples };
  return root;
}

/** Show a user whom the address names. */
export const show = (id) => who.user(id);

function offer(choices, tasks, again) {
  const keys = new Set(tasks.map(({ key }) => key));
  state.chosen = new Set([...state.chosen].filter((key) => keys.has(key)));
  if (!state.chosen.size) state.chosen = new Set([...keys].slice(0, CHOSEN));
  put(choices, tasks.length
    ? tasks.map(({ key, adapter, task }) => {
        const change = ({ target }) => {
          target.checked ? state.chosen.add(key) : state.chosen.delete(key);
          again();
        };
        return h("label", { class: "choice" }, h("input", { type: "checkbox", checked: state.chosen.has(key), onchange: change }),
          h("span", {}, nameOf(adapter, task), h("small", {}, told(adapter, task))));
      })
    : h("p", { class: "muted" }, "No adapter that reads a history is served."));
}

const nameOf = (adapter, task) => (adapter.tasks.length > 1 ? `${adapter.ref} · ${task.name}` : adapter.ref);

function told(adapter, task) {
  const [unit] = scale(task, adapter.feedback.values);
  return task.kind === "next_item" ? "chance to be next" : unit === "probability" ? `probability of ${task.label}` : (task.label ?? "");
}

/** Ask every chosen adapter, each in its own column. */
function ask() {
  const overview = served();
  if (!overview) return;
  byId("intro").hidden = Boolean(state.fields && (state.fields.user_id || state.fields.history.length));
  const wanted = tasksOf(overview).filter(({ key }) => state.chosen.has(key));
  byId("chosen").textContent = `Adapters: ${wanted.length} of ${tasksOf(overview).length} chosen`;
  for (const [key, column] of columns) {
    if (!state.fields || !wanted.some((one) => one.key === key)) {
      column.stop();
      columns.delete(key);
    }
  }
  if (!state.fields || !wanted.length) {
    const text = tasksOf(overview).length ? "Choose an adapter." : "No adapter that reads a history is served.";
    const shown = wanted.length ? welcome() : h("p", { class: "empty" }, text);
    if (byId("answers").firstChild !== shown || byId("answers").children.length > 1) put(byId("answers"), shown);
    return;
  }
  for (const { key, adapter, task } of wanted) {
    if (!columns.has(key)) columns.set(key, makeColumn(adapter, task));
  }
  const roots = wanted.map(({ key }) => columns.get(key).root);
  const place = byId("answers");
  if (roots.length !== place.children.length || roots.some((root, number) => root !== place.children[number])) put(place, ...roots);
  for (const { key } of wanted) columns.get(key).load();
}

function makeColumn(adapter, task) {
  const title = h("h2", {}, nameOf(adapter, task));
  const digest = h("code", { title: "The version that answered" });
  const note = h("p", { class: "note", hidden: true });
  const body = h("div");
  const [unit, low, high] = scale(task, adapter.feedback.values);
  const root = h("article", { class: "column" },
    h("header", {}, title, h("p", { class: "muted between" }, h("span", {}, told(adapter, task)), digest)), note, body);
  let asking = null;
  let answered = null;
  let panels = [];

  const tell = (...parts) => {
    put(note, ...parts);
    note.hidden = !parts.length;
  };
  const retry = () => h("button", { type: "button", class: "link", onclick: load }, "Try again");
  const stop = () => {
    asking?.abort();
    for (const panel of panels) panel.stop();
    panels = [];
  };
  async function load() {
    stop();
    const mine = (asking = new AbortController());
    const { k } = state;
    const fields = readBy(adapter, state.fields);
    tell();
    root.setAttribute("aria-busy", "true");
    if (!body.querySelector(".items")) put(body, skeleton(Math.min(k, 10)));
    const slow = setTimeout(() => asking === mine && tell("Still working…"), SLOW_MS);
    try {
      const row = { adapter: adapter.ref, task: task.name, k, ...fields };
      const busy = (seconds) => {
        clearTimeout(slow);
        tell(`The server is full. Trying again in ${seconds} s…`);
      };
      const found = await one("/v1/recommend", row, { signal: mine.signal, busy });
      if (asking !== mine) return;
      tell();
      answered = found.digest;
      digest.textContent = found.digest.slice(0, 12);
      put(body, items(found, fields));
      say(`${nameOf(adapter, task)}: ${plural(found.results.length, "item")}`);
    } catch (error) {
      if (aborted(error) || asking !== mine) return;
      answered = null;
      put(body);
      tell(h("span", { class: "error" }, error.message), " ", retry());
      if (gone(error)) window.addEventListener("back", () => asking === mine && load(), { once: true });
    } finally {
      clearTimeout(slow);
      if (asking === mine) root.removeAttribute("aria-busy");
    }
  }
  const items = ({ results, note: why }, fields) => {
    if (!results.length) return h("p", { class: "muted" }, `Nothing is left to recommend: ${why}.`);
    const scores = results.map(valueOf);
    const from = low ?? Math.min(...scores);
    const to = high ?? Math.max(...scores);
    const list = h("ol", { class: "items", "aria-label": `Recommended by ${nameOf(adapter, task)}` },
      results.map((item, number) => entry(item, number, (valueOf(item) - from) / (to - from || 1), fields)));
    list.addEventListener("keydown", walk);
    return list;
  };
  const entry = (item, number, part, fields) => {
    const panel = h("div", { id: newId("why"), hidden: true });
    const known = facts(item.about, item.title);
    const bar = h("span", { class: "meter", "aria-hidden": "true" }, h("span"));
    bar.firstChild.style.inlineSize = `${100 * Math.min(1, Math.max(0.02, part))}%`;
    const toggle = () => {
      const open = panel.hidden;
      button.setAttribute("aria-expanded", String(open));
      panel.hidden = !open;
      if (open && !panel.hasChildNodes()) {
        const reasons = why(fields, adapter.ref, task.name, item.item_id, (found) => compared(found, task, unit));
        panels.push(reasons);
        panel.append(reasons.root);
      }
    };
    const button = h("button", {
      type: "button", class: "item", "aria-expanded": "false", "aria-controls": panel.id, tabindex: number ? -1 : 0, "data-item": item.item_id,
      onclick: toggle, onfocus: () => mark(item.item_id), onblur: () => mark(null),
      onpointerenter: () => mark(item.item_id), onpointerleave: () => mark(null),
    },
    h("span", { class: "rank" }, String(number + 1)),
    h("span", { class: "name" }, h("span", { class: "title" }, item.title), known && h("small", { class: "known" }, known)),
    h("span", { class: "score" }, h("span", { class: "hidden" }, `${unit} `), unit === "probability" ? percent(valueOf(item)) : figure(item.score), bar));
    return h("li", {}, button, panel);
  };
  return {
    root, load,
    stop: () => {
      stop();
      asking = null;
    },
    /** Say so when what is served has moved on since the answer came. */
    compare: (overview) => {
      const now = overview.adapters.find((one) => one.ref === adapter.ref);
      if (!now || !answered || now.canary || now.digest === answered || !note.hidden) return;
      tell(`${adapter.ref} is version ${now.version} now. `, h("button", { type: "button", class: "link", onclick: load }, "Ask again"));
    },
  };
}

/** What is shown of a score: a ranking's logits say nothing by themselves, their probabilities do. */
const valueOf = ({ score, probability }) => probability ?? score;

/** A score with and without the history; of a ranking, whose logits say nothing by themselves, the factor between their exponentials. */
function compared({ score, without_history: without }, task, unit) {
  if (task.kind === "next_item") return `The history as a whole multiplies its weight in the ranking by ${figure(Math.exp(score - without))}.`;
  if (unit === "probability") return `Probability ${percent(score)}, without any history ${percent(without)}.`;
  return `Score ${figure(score)}, without any history ${figure(without)}.`;
}

const skeleton = (rows) =>
  h("div", { class: "skeleton", role: "img", "aria-label": "Loading" }, Array.from({ length: rows }, () => h("span")));

/** The same item in the other columns. */
function mark(item) {
  for (const button of byId("answers").querySelectorAll(".item")) button.classList.toggle("same", item !== null && button.dataset.item === item);
}

/** Arrows up and down in a list, left and right between lists at the same place; Escape closes the reasons. */
function walk(event) {
  const button = event.target.closest(".item");
  if (!button) {
    if (event.key === "Escape") event.target.closest("li")?.querySelector(".item[aria-expanded=true]")?.click();
    if (event.key === "Escape") event.target.closest("li")?.querySelector(".item")?.focus();
    return;
  }
  const lists = [...byId("answers").querySelectorAll(".items")];
  const list = button.closest(".items");
  const own = [...list.querySelectorAll(".item")];
  const place = own.indexOf(button);
  const beside = (step) => {
    const other = lists[lists.indexOf(list) + step]?.querySelectorAll(".item");
    return other && other[Math.min(place, other.length - 1)];
  };
  const next = {
    ArrowDown: () => own[place + 1], ArrowUp: () => own[place - 1], Home: () => own[0], End: () => own.at(-1),
    ArrowLeft: () => beside(-1), ArrowRight: () => beside(1),
  }[event.key];
  if (event.key === "Escape" && button.getAttribute("aria-expanded") === "true") button.click();
  if (!next || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const other = next();
  if (!other) return;
  for (const one of other.closest(".items").querySelectorAll(".item")) one.tabIndex = one === other ? 0 : -1;
  other.focus();
}
