// The page of the API: every call of the OpenAPI document in words, with examples to change and send.

import { call } from "./api.js";
import { byId, h, newId, put, say } from "./dom.js";
import { themeButton } from "./themes.js";

const FIRST = ["/v1/recommend", "/v1/score", "/v1/explain"];
const HERE = "with what is served here";

themeButton();
begin();

async function begin() {
  try {
    const [known, found] = await Promise.all([call("openapi.json"), working().catch(() => ({}))]);
    const calls = Object.entries(known.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, about]) => ({ path, method, about })));
    const place = ({ path }) => (FIRST.includes(path) ? FIRST.indexOf(path) : FIRST.length);
    calls.sort((one, other) => place(one) - place(other));
    put(byId("calls"), calls.map((one) => card(one, known.components.schemas, found)));
  } catch (error) {
    put(byId("calls"), h("p", { class: "empty" }, error.message, " ", h("button", { type: "button", class: "link", onclick: begin }, "Try again")));
  }
}

/** Bodies that this service can answer: its first adapter, one of its users, one of its items. */
async function working() {
  const overview = await call("v1/adapters");
  const adapter = overview.adapters.find(({ tasks }) => tasks.some(({ kind }) => kind !== "text"));
  if (!adapter) return {};
  const { items } = await call("v1/items?limit=3");
  const whose = overview.data ? { user_id: (await call("v1/users?sample=true&limit=1")).users[0].user_id } : { history: [] };
  const row = { adapter: adapter.ref, task: adapter.tasks[0].name, ...whose };
  const bodies = { "/v1/recommend": { ...row, k: 5 }, "/v1/score": { ...row, candidates: items.map(({ item_id }) => item_id) }, "/v1/explain": { ...row, item: items[0].item_id } };
  return { user_id: whose.user_id, bodies: Object.fromEntries(Object.entries(bodies).map(([path, one]) => [path, { requests: [one] }])) };
}

function card({ path, method, about }, schemas, found) {
  const title = newId("call");
  const body = about.requestBody?.content["application/json"];
  const secret = Boolean(about.security);
  return h("article", { class: "card", "aria-labelledby": title },
    h("header", {}, h("h2", { id: title }, h("span", { class: "method" }, method.toUpperCase()), h("code", {}, path)),
      h("p", { class: "about" }, marked(about.description ?? about.summary)), secret && h("p", { class: "note" }, "Needs the admin token, as Authorization: Bearer TOKEN.")),
    !secret && trial({ path, method, about, body }, found),
    about.parameters?.length > 0 &&
      folded("Parameters", about.parameters.map((one) => [one.name, one.schema, one.description, one.required])),
    body && bodyFields(body, schemas),
    answerFields(about, schemas),
    h("p", { class: "muted" }, answerWords(about.responses)));
}

const resolved = (schema, schemas) => (schema?.$ref ? schemas[schema.$ref.split("/").pop()] : schema);

/** “200: Answers. 400, 408: Trouble.” */
function answerWords(responses) {
  const byName = new Map();
  for (const [status, answer] of Object.entries(responses)) {
    const name = answer.content?.["application/json"]?.schema?.$ref?.split("/").pop() ?? "text";
    byName.set(name, [...(byName.get(name) ?? []), status]);
  }
  return [...byName].map(([name, statuses]) => `${statuses.join(", ")}: ${name}.`).join(" ");
}

function bodyFields(body, schemas) {
  const whole = resolved(body.schema, schemas);
  const rows = resolved(whole.properties.requests?.items, schemas);
  const shown = rows ?? whole;
  const lines = Object.entries(shown.properties).map(([name, schema]) => [name, schema, schema.description, shown.required?.includes(name)]);
  return folded(rows ? "Fields of a row of “requests”" : "Fields of the body", lines);
}

function answerFields(about, schemas) {
  const whole = resolved(about.responses["200"]?.content?.["application/json"]?.schema, schemas);
  if (!whole?.properties) return null;
  const rows = resolved(whole.properties.responses?.items, schemas);
  const shown = rows ?? whole;
  const lines = Object.entries(shown.properties).map(([name, schema]) => [name, schema, schema.description, true]);
  return folded(rows ? "Fields of a row of “responses”" : "Fields of the answer", lines);
}

/** @param {[string, object, string | undefined, boolean | undefined][]} lines Name, schema, meaning, whether it must be there. */
function folded(title, lines) {
  const line = ([name, schema, meaning, needed]) =>
    [h("dt", {}, h("code", {}, name), h("span", { class: "muted" }, kindOf(schema), needed ? "" : ", optional")), h("dd", {}, marked(meaning ?? ""))];
  return h("details", {}, h("summary", {}, title), h("dl", { class: "fields" }, lines.map(line)));
}

/** Text with `code` in it. */
const marked = (text) => text.split("`").map((part, place) => (place % 2 ? h("code", {}, part) : part));

/** A schema's type in words. */
function kindOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return [...new Set(choices.map(kindOf).filter((kind) => kind !== "null"))].join(" or ");
  if (schema.type === "array") return `list of ${kindOf(schema.items) || "values"}`;
  return schema.type ?? "any";
}

/** A form that sends the call and shows what comes back. */
function trial({ path, method, about, body }, found) {
  const known = Object.fromEntries(Object.entries(body?.examples ?? {}).map(([name, { value }]) => [name, value]));
  const examples = { ...(found.bodies?.[path] ? { [HERE]: found.bodies[path] } : {}), ...known };
  const text = h("textarea", { id: newId("body"), class: "field", rows: 8, spellcheck: "false" });
  const show = (name) => {
    text.value = JSON.stringify(examples[name], null, 2);
  };
  const choice = h("select", { id: newId("example"), onchange: ({ target }) => show(target.value) }, Object.keys(examples).map((name) => h("option", {}, name)));
  const inputs = (about.parameters ?? []).map(({ name, schema }) => {
    const input = h("input", { id: newId(name), class: "field", name });
    input.value = name === "user_id" ? (found.user_id ?? "") : (schema.default ?? "");
    return input;
  });
  const answer = h("pre", { tabindex: 0, "aria-label": `Answer of ${path}`, hidden: true });
  const button = h("button", { type: "submit", class: "primary" }, "Send");
  const send = async (event) => {
    event.preventDefault();
    button.disabled = true;
    answer.hidden = false;
    answer.textContent = "…";
    answer.textContent = await reply(path, method, inputs, text.value).catch((error) => error.message);
    button.disabled = false;
    say(`${path} has answered`);
  };
  if (body) show(Object.keys(examples)[0]);
  return h("form", { class: "try", onsubmit: send },
    body && h("div", {}, h("label", { for: choice.id }, "Example"), choice),
    body && h("div", { class: "wide" }, h("label", { for: text.id }, "Body"), text),
    inputs.map((input) => h("div", {}, h("label", { for: input.id }, input.name), input)),
    button, answer);
}

async function reply(path, method, inputs, text) {
  if (path === "/metrics") return (await fetch("metrics", { cache: "no-store" })).text();
  const query = new URLSearchParams(inputs.filter(({ value }) => value !== "").map(({ name, value }) => [name, value])).toString();
  const where = path.slice(1) + (query ? `?${query}` : "");
  if (method === "get") return JSON.stringify(await call(where), null, 2);
  let body;
  try {
    body = JSON.parse(text);
  } catch (error) {
    return `The body is not JSON: ${error.message}`;
  }
  return JSON.stringify(await call(where, { body }), null, 2);
}
