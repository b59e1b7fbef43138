// What needs the admin token. It is kept in this module's memory only: it is gone with the page, and no storage ever sees it.

import { call } from "./api.js";
import { byId, h, newId, put, say } from "./dom.js";
import { refresh, served } from "./served.js";

let token = null;
let told = () => {};

/** Whether the operator has shown a token that the server takes. */
export const unlocked = () => token !== null;

/** Draw the panel; `changed` is told when the token comes or goes. */
export function start(changed) {
  told = changed;
  draw();
}

/** Draw it anew: it is there only where the service has an admin token. */
export function draw(problem = "") {
  const place = byId("operator");
  if (!served()?.admin) {
    put(place);
    return;
  }
  if (token !== null) {
    put(place, h("p", { class: "operator" }, h("span", {}, "You can promote and roll back."),
      h("button", { type: "button", onclick: () => forget("") }, "Forget the token")));
    return;
  }
  const field = h("input", { id: newId("token"), class: "field", type: "password", autocomplete: "off", spellcheck: "false" });
  const enter = async (event) => {
    event.preventDefault();
    if (field.value) await unlock(field.value);
  };
  put(place, h("form", { class: "operator", autocomplete: "off", onsubmit: enter },
    h("label", { for: field.id }, "Admin token"), field, h("button", { type: "submit" }, "Unlock"),
    h("span", { class: "muted" }, "To promote and roll back. It is forgotten with the page."),
    problem && h("span", { class: "error", role: "alert" }, problem)));
}

/** A call without a body's fields is refused for its token first, which tells whether the token is right. */
async function unlock(given) {
  try {
    await call("/v1/admin/load", { body: {}, token: given });
  } catch (error) {
    if (error.status !== 422) {
      draw(error.message);
      byId("operator").querySelector("input")?.focus();
      return;
    }
  }
  token = given;
  draw();
  say("Unlocked");
  told();
  byId("operator").querySelector("button")?.focus();
}

function forget(problem) {
  token = null;
  draw(problem);
  told();
}

/**
 * Ask whether it is meant, then do it.
 *
 * @returns {Promise<string>} What came of it, in a line; empty if it was not meant.
 */
export async function act(question, name, body) {
  if (!(await meant(question))) return "";
  try {
    const { move } = await call(`/v1/admin/${name}`, { body, token });
    await refresh();
    return `${move.alias} is ${move.version} now.`;
  } catch (error) {
    if (error.status === 401) forget(error.message);
    throw error;
  }
}

function meant(question) {
  const dialog = byId("confirm");
  put(dialog, h("form", { method: "dialog" }, h("h2", { id: "confirm-title" }, question.title), h("p", {}, question.text),
    h("p", { class: "buttons" }, h("button", { value: "no" }, "Cancel"), h("button", { value: "yes", class: "primary" }, question.button))));
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
