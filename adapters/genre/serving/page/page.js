// The page as a whole: views by the address, the footer, what is asked first.

import { byId, h, put } from "./dom.js";
import { count } from "./format.js";
import * as adapters from "./adapters.js";
import * as live from "./live.js";
import * as recommend from "./recommend.js";
import { onServed, refresh } from "./served.js";
import { themeButton } from "./themes.js";

const VIEWS = ["recommend", "adapters"];

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

function foot({ base, data }) {
  put(byId("foot"),
    h("span", {}, `${base.name}, ${base.depth} layers${base.quantization === "none" ? "" : `, ${base.quantization}`}`),
    data && h("span", {}, `${data.name}: ${count(data.users)} users, ${count(data.items)} items, ${count(data.events)} events`),
    h("a", { href: "docs" }, "The API"), h("a", { href: "openapi.json" }, "OpenAPI"));
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

themeButton();
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
