// Whose history: a user of the mounted data set, or one that is put together here.

import { aborted, call } from "./api.js";
import { combobox } from "./combobox.js";
import { h, newId, put, say } from "./dom.js";
import { count, feedback, plural } from "./format.js";
import { feedbackOf, served } from "./served.js";

const SHOWN = 8;
const FOUND = 20;

/**
 * @param {(fields: object | null) => void} changed Told of the fields that say whose history it is in a request; null for nobody.
 */
export function person(changed) {
  const kinds = h("div", { class: "switch", role: "radiogroup", "aria-label": "Whose history" });
  const place = h("div");
  const root = h("div", { class: "person" }, kinds, place);
  const own = ownHistory(changed);
  const user = knownUser(changed, (columns, events) => {
    own.copy(columns, events);
    choose("own");
    own.focus();
  });
  const parts = { user, own };
  let kind = null;

  const choose = (name) => {
    kind = name;
    for (const input of kinds.querySelectorAll("input")) input.checked = input.value === name;
    put(place, parts[name].root);
    changed(parts[name].fields());
  };
  return {
    root,
    user: (id) => served()?.data && user.load(id),
    /** Which kinds there are depends on whether a data set is mounted. */
    offer: (overview) => {
      const names = overview.data ? { user: `A user of ${overview.data.name}`, own: "Your own" } : { own: "Your own" };
      if (kinds.dataset.names === Object.keys(names).join()) return;
      kinds.dataset.names = Object.keys(names).join();
      const group = newId("who");
      put(kinds, Object.entries(names).map(([name, label]) =>
        h("label", {}, h("input", { type: "radio", name: group, value: name, onchange: () => choose(name) }), h("span", { title: label }, label))));
      kinds.hidden = !overview.data;
      if (!names[kind]) choose(overview.data ? "user" : "own");
      else choose(kind);
    },
  };
}

function knownUser(changed, copy) {
  const about = h("div", { class: "about" });
  let chosen = null;
  let loading = null;

  const load = async (id) => {
    loading?.abort();
    const mine = (loading = new AbortController());
    const other = chosen !== id;
    chosen = id;
    field.input.value = id;
    put(about, h("p", { class: "muted" }, "Reading the history…"));
    if (other) changed({ user_id: id });
    try {
      const found = await call(`/v1/history?user_id=${encodeURIComponent(id)}&limit=100`, { signal: mine.signal });
      if (loading === mine) put(about, ...story(found));
    } catch (error) {
      if (aborted(error) || loading !== mine) return;
      const again = h("button", { type: "button", class: "link", onclick: () => load(id) }, "Try again");
      put(about, h("p", { class: "error" }, error.message, " ", again));
    }
  };
  const story = ({ columns, total, events }) => {
    const facts = Object.entries(columns).filter(([, value]) => value !== null && !Array.isArray(value)).slice(0, 6);
    return [
      facts.length && h("p", { class: "facts" }, facts.map(([name, value]) => h("span", {}, `${name} `, h("b", {}, String(value))))),
      h("details", { class: "past", open: matchMedia("(min-width: 60rem)").matches }, h("summary", {}, plural(total, "event")),
        eventList([...events].reverse())),
      h("button", { type: "button", class: "link", onclick: () => copy(columns, events) }, "Edit a copy"),
    ];
  };
  const field = combobox({
    label: "User",
    placeholder: "Search by id",
    search: async (text, signal) => {
      const { users } = await call(`/v1/users?q=${encodeURIComponent(text)}&limit=${FOUND}`, { signal });
      return users.map((user) => ({ main: user.user_id, side: plural(user.events, "event"), value: user.user_id }));
    },
    take: (id) => {
      load(id);
      return id;
    },
  });
  return { root: h("div", {}, field.root, about), fields: () => (chosen === null ? null : { user_id: chosen }), load };
}

/** Events, newest first, with what was said of them. */
function eventList(events) {
  const columns = [...feedbackOf(served()).keys()];
  const row = (event) => {
    const said = columns.filter((name) => event[name] !== null && event[name] !== undefined);
    return h("li", {}, h("span", { class: "title" }, event.title), said.map((name) => h("span", { class: "said", title: name }, feedback(event[name]))));
  };
  const first = events.slice(0, SHOWN);
  const rest = events.slice(SHOWN);
  return [
    h("ol", { class: "events" }, first.map(row)),
    rest.length && h("details", {}, h("summary", {}, `${count(rest.length)} earlier`), h("ol", { class: "events" }, rest.map(row))),
  ];
}

function ownHistory(changed) {
  const list = h("ol", { class: "events own" });
  const empty = h("p", { class: "muted" }, "No event yet. Without any, you see what a new user gets.");
  let events = [];
  let columns = {};

  const field = combobox({
    label: "Add an item",
    placeholder: "Search by title",
    search: async (text, signal) => {
      const { items } = await call(`/v1/items?q=${encodeURIComponent(text)}&limit=${FOUND}`, { signal });
      const known = items.map((item) => ({ main: item.title, side: item.item_id === item.title ? "" : item.item_id, value: item }));
      const exact = items.some((item) => item.title.toLowerCase() === text.toLowerCase());
      return text && !exact ? [...known, { main: `“${text}”`, side: "as a new item", value: { title: text } }] : known;
    },
    take: (item) => {
      add(item);
      return "";
    },
  });
  const add = (item) => {
    const values = {};
    for (const [name, known] of feedbackOf(served())) values[name] = best(known);
    events.push({ item_id: item.item_id, title: item.title, values });
    draw();
    say(`${item.title} added`);
  };
  const remove = (place) => {
    events.splice(place, 1);
    draw();
    const buttons = list.querySelectorAll("button");
    (buttons[Math.max(0, list.children.length - place)] ?? field.input).focus();
  };
  const draw = () => {
    put(list, events.map((event, place) => line(event, place)).reverse());
    empty.hidden = events.length > 0;
    changed(fields());
  };
  const line = (event, place) =>
    h("li", {}, h("span", { class: "title" }, event.title),
      [...feedbackOf(served())].map(([name, known]) => values(event, name, known)),
      h("button", { type: "button", class: "quiet", "aria-label": `Remove ${event.title}`, onclick: () => remove(place) }, "×"));
  const values = (event, name, known) => {
    const change = ({ target }) => {
      event.values[name] = target.value === "" ? null : known[Number(target.value)];
      changed(fields());
    };
    const options = known.map((value, number) => h("option", { value: number, selected: value === event.values[name] }, feedback(value)));
    return h("select", { "aria-label": `${name} of ${event.title}`, title: name, onchange: change },
      options, h("option", { value: "", selected: event.values[name] === null }, "–"));
  };
  const fields = () => ({
    history: events.map((event) => ({ ...(event.item_id ? { item_id: event.item_id } : { item: { title: event.title } }), ...event.values })),
    ...(Object.keys(columns).length ? { user: columns } : {}),
  });
  return {
    root: h("div", {}, field.root, empty, list),
    fields,
    focus: () => field.input.focus(),
    copy: (known, from) => {
      const names = [...feedbackOf(served()).keys()];
      columns = Object.fromEntries(Object.entries(known).filter(([, value]) => value !== null && !Array.isArray(value)));
      events = from.map((event) => ({
        item_id: event.item_id, title: event.title, values: Object.fromEntries(names.map((name) => [name, event[name] ?? null])),
      }));
      draw();
    },
  };
}

/** The value that a newly added event starts with: the highest number, else the first. */
function best(known) {
  const numbers = known.filter((value) => typeof value === "number");
  return numbers.length ? Math.max(...numbers) : (known[0] ?? null);
}
