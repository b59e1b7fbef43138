// The second view: what is served, how good it is, where its aliases have been; promote and roll back.

import { byId, h, newId, put, say } from "./dom.js";
import { count, figure, plural, time } from "./format.js";
import * as operator from "./operator.js";
import { onServed, refresh, served } from "./served.js";
import { axisOf, whisker } from "./whisker.js";

const EVERY_MS = 5000;
const METRICS = 4;
const MOVES = 6;
const FIRST = ["auc", "gauc", "ndcg@10", "hr@10", "mrr@10", "rmse", "mae", "accuracy", "macro_f1", "log_loss"];
const LOWER = new Set(["rmse", "mae", "log_loss"]);

const cards = new Map();
let watching = false;
let timer = 0;

/** Draw the view and keep it up to date. */
export function start() {
  operator.start(() => served() && draw(served(), true));
  onServed((overview) => {
    if (Boolean(byId("operator").firstChild) !== overview.admin) operator.draw();
    draw(overview, false);
  });
}

/** Ask again while the view is looked at. */
export function watch(yes) {
  watching = yes;
  clearTimeout(timer);
  const tick = async () => {
    if (!watching) return;
    if (!document.hidden) await refresh().catch(() => {}); // the header says that the server is away
    timer = setTimeout(tick, EVERY_MS);
  };
  if (yes) tick();
}

function draw(overview, all) {
  const names = [...new Set(overview.adapters.map((adapter) => adapter.name))];
  for (const name of cards.keys()) if (!names.includes(name)) cards.delete(name);
  for (const name of names) {
    const own = overview.adapters.filter((adapter) => adapter.name === name);
    const form = JSON.stringify(own.map(({ versions, canary, ...rest }) => rest));
    const before = cards.get(name);
    if (before && before.form === form && !all) {
      before.traffic(own);
      continue;
    }
    cards.set(name, { ...card(name, own, overview), form });
  }
  const roots = names.map((name) => cards.get(name).root);
  const place = byId("cards");
  if (!names.length) put(place, h("p", { class: "empty" }, "No adapter is served."));
  else if (roots.length !== place.children.length || roots.some((root, at) => root !== place.children[at])) put(place, ...roots);
}

function card(name, own, overview) {
  const traffic = h("div");
  const drawTraffic = (now) => put(traffic, trafficOf(now));
  drawTraffic(own);
  const [first] = own;
  return {
    traffic: drawTraffic,
    root: h("article", { class: "card" },
      h("header", {}, h("h2", {}, name), h("p", { class: "muted" }, own[0].tasks.map(({ kind, label }) => (kind === "next_item" ? "what comes next" : label)).join(", "))),
      h("div", { class: "parts" },
        h("section", {}, h("h3", {}, "Metrics, with 95 % intervals"), own.map((adapter) => metrics(adapter, own.length > 1, overview)),
          h("h3", {}, "Answers, by version"), traffic),
        h("section", {}, h("h3", {}, "Aliases"), aliases(first), operator.unlocked() && controls(first),
          h("h3", {}, "History"), moves(first.history)))),
  };
}

function metrics(adapter, named, overview) {
  const parts = Object.entries(adapter.metrics);
  if (!parts.length) return h("p", { class: "muted" }, `${adapter.ref} has no metric.`);
  return parts.map(([task, found]) => {
    const names = Object.keys(found).sort((a, b) => order(a) - order(b) || a.localeCompare(b));
    const row = (metric) => {
      const same = overview.adapters.map((other) => other.metrics[task]?.[metric]).filter(Boolean);
      const { value, interval, n } = found[metric];
      const against = Object.entries(adapter.baselines[task] ?? {}).filter(([, figures]) => figures[metric])
        .map(([name, figures]) => `${name.replaceAll("_", " ")} ${figure(figures[metric].value)}`).join(", ");
      return h("tr", {}, h("th", { scope: "row" }, metric, LOWER.has(metric) && h("small", {}, "lower is better")),
        h("td", { class: "number" }, figure(value)),
        h("td", {}, h("span", { class: "drawn" }, whisker(found[metric], axisOf(same)),
          h("span", { class: "muted number" }, interval ? `${figure(interval[0])} – ${figure(interval[1])}` : "no interval")),
          against && h("small", { class: "muted" }, `beside ${against}`)),
        h("td", { class: "muted number" }, n === null ? "" : `n ${count(n)}`));
    };
    const table = (some, caption) => h("table", { class: "metrics" }, caption && h("caption", {}, caption),
      h("thead", { class: "hidden" }, h("tr", {}, ["Metric", "Value", "95 % interval", "Number"].map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, some.map(row)));
    const caption = [named && adapter.ref, parts.length > 1 && task].filter(Boolean).join(" · ");
    const measured = [adapter.data && `Measured on ${adapter.data}`, adapter.protocol[task]].filter(Boolean).join(": ");
    return [table(names.slice(0, METRICS), caption), measured && h("p", { class: "muted" }, h("small", {}, `${measured}.`)),
      names.length > METRICS && h("details", {}, h("summary", {}, `${plural(names.length - METRICS, "more metric")}`), table(names.slice(METRICS), ""))];
  });
}

const order = (metric) => (FIRST.includes(metric) ? FIRST.indexOf(metric) : FIRST.length);

function aliases({ aliases: held }) {
  const rows = Object.entries(held).sort(([a], [b]) => (b === "production") - (a === "production") || a.localeCompare(b));
  return h("table", { class: "plain" }, h("tbody", {}, rows.map(([alias, version]) =>
    h("tr", {}, h("th", { scope: "row" }, alias), h("td", {}, h("code", {}, version))))));
}

function trafficOf(own) {
  const rows = own[0].versions;
  const canary = own.find((adapter) => adapter.canary)?.canary;
  return [
    rows.length
      ? h("table", { class: "plain" }, h("tbody", {}, rows.map(({ version, rows: number }) =>
          h("tr", {}, h("th", { scope: "row" }, h("code", {}, version)), h("td", { class: "number" }, count(number))))))
      : h("p", { class: "muted" }, "None yet."),
    canary && h("p", { class: canary.state === "halted" ? "error" : "muted" },
      `Canary ${canary.state}: ${(100 * canary.share).toFixed(0)} % of the traffic, ${plural(canary.rows, "answer")}, ${plural(canary.failures, "failure")}.`,
      canary.reason && ` ${canary.reason}`),
  ];
}

function moves(history) {
  const latest = [...history].reverse();
  const line = (move) =>
    h("li", {}, h("time", { datetime: move.created }, time(move.created)),
      h("span", {}, `${move.action} ${move.alias}: `, move.previous && [h("code", {}, move.previous), " → "], h("code", {}, move.version),
        move.checks.length > 0 && h("small", {}, move.checks.join("; "))));
  return [
    h("ol", { class: "moves" }, latest.slice(0, MOVES).map(line)),
    latest.length > MOVES && h("details", {}, h("summary", {}, `${count(latest.length - MOVES)} earlier`),
      h("ol", { class: "moves" }, latest.slice(MOVES).map(line))),
  ];
}

function controls(adapter) {
  const { name, aliases: held, history } = adapter;
  const versions = [...new Set([...Object.values(held), ...history.map((move) => move.version).reverse()])];
  const names = [...new Set(["production", ...Object.keys(held).filter((alias) => alias !== "latest")])];
  const said = (version) => Object.keys(held).filter((alias) => held[alias] === version).join(", ");
  const alias = h("select", { id: newId("alias") }, names.map((one) => h("option", {}, one)));
  const start = versions.find((version) => version !== held.production) ?? versions[0];
  const version = h("select", { id: newId("version") },
    versions.map((one) => h("option", { value: one, selected: one === start }, said(one) ? `${one} (${said(one)})` : one)));
  const careful = h("input", { type: "checkbox", id: newId("careful"), checked: true });
  const note = h("p", { class: "note", role: "status", hidden: true });
  const run = async (question, act, body) => {
    try {
      const done = await operator.act(question, act, body);
      if (!done) return;
      cards.get(name)?.root.querySelector(`[data-act="${act}"]`)?.focus(); // the card was drawn anew
      say(`${name}: ${done}`);
    } catch (error) {
      note.textContent = error.message;
      note.classList.add("error");
      note.hidden = false;
    }
  };
  const promote = () =>
    run({ title: `Promote ${name}`, button: "Promote",
      text: `${alias.value} moves from ${held[alias.value] ?? "nothing"} to ${version.value}. Requests follow at once.` },
    "promote", { ref: `${name}:${version.value}`, alias: alias.value, not_worse: careful.checked });
  const rollback = () =>
    run({ title: `Roll back ${name}`, button: "Roll back",
      text: `${alias.value} goes back from ${held[alias.value] ?? "nothing"} to what it named before. Requests follow at once.` },
    "rollback", { name, alias: alias.value });
  return h("div", { class: "controls" },
    h("p", {}, h("label", { for: alias.id }, "Alias"), alias), h("p", {}, h("label", { for: version.id }, "Version"), version),
    h("p", { class: "check" }, careful, h("label", { for: careful.id }, "only if it is not worse than what the alias names now")),
    h("p", { class: "buttons" }, h("button", { type: "button", class: "primary", "data-act": "promote", onclick: promote }, "Promote…"),
      h("button", { type: "button", "data-act": "rollback", onclick: rollback }, "Roll back…")), note);
}
