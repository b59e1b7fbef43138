// The page as a whole: views by the address, the theme, the footer, what is asked first.

import { byId, h, put, svg } from "./dom.js";
import { count } from "./format.js";
import * as adapters from "./adapters.js";
import * as live from "./live.js";
import * as recommend from "./recommend.js";
import { onServed, refresh } from "./served.js";

const VIEWS = ["recommend", "adapters"];
const THEMES = { auto: "system", light: "light", dark: "dark" };

function view() {
  const [wanted, ...rest] = location.hash.slice(1).split("/");
  const name = VIEWS.includes(wanted) ? wanted : VIEWS[0];
  for (const one of VIEWS) byId(one).hidden = one !== name;
  for (const link of document.querySelectorAll("[data-view]")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${byId(`${name}-title`).textContent} · GENRE`;
  adapters.watch(name === "adapters");
  return name === "recommend" && rest.length ? decoded(rest.join("/")) : null;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return null;
  }
}

function theme() {
  const button = byId("theme");
  const names = Object.keys(THEMES);
  const show = () => {
    const half = svg("svg", { viewBox: "0 0 16 16", width: 14, height: 14, "aria-hidden": "true" },
      svg("circle", { cx: 8, cy: 8, r: 6.5, fill: "none", stroke: "currentColor", "stroke-width": 1.5 }),
      svg("path", { d: "M8 1.5a6.5 6.5 0 0 1 0 13z", fill: "currentColor" }));
    put(button, half, h("span", { class: "hidden" }, "Theme: "), THEMES[document.documentElement.dataset.theme ?? "auto"]);
  };
  button.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "auto";
    const next = names[(names.indexOf(now) + 1) % names.length];
    if (next === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem("theme", next);
    } catch {
      // Then the choice lasts as long as the page.
    }
    show();
  });
  show();
}

function foot({ base, data }) {
  put(byId("foot"),
    h("span", {}, `${base.name}, ${base.depth} layers${base.quantization === "none" ? "" : `, ${base.quantization}`}`),
    data && h("span", {}, `${data.name}: ${count(data.users)} users, ${count(data.items)} items, ${count(data.events)} events`),
    h("a", { href: "openapi.json" }, "OpenAPI"));
}

async function begin() {
  try {
    await refresh();
  } catch (error) {
    const again = h("button", { type: "button", class: "link", onclick: begin }, "Try again");
    const note = () => h("p", { class: "empty" }, error.message, " ", again);
    put(byId("answers"), note());
    put(byId("cards"), h("p", { class: "empty" }, error.message));
  }
}

theme();
recommend.start();
adapters.start();
onServed(foot);
const first = view();
window.addEventListener("hashchange", () => {
  const user = view();
  if (user !== null) recommend.show(user);
});
begin().then(() => first !== null && recommend.show(first));
live.start(begin);
