// What is served: the answer of /v1/adapters, fetched in one place and told to whoever draws it.

import { call } from "./api.js";

const listeners = new Set();
let current = null;
let asking = null;

/** The latest answer, or null. */
export const served = () => current;

/** Be told of every new answer. */
export function onServed(listener) {
  listeners.add(listener);
  if (current) listener(current);
}

/** Fetch it again; calls that come meanwhile share the one that is under way. */
export function refresh() {
  asking ??= call("/v1/adapters")
    .then((answer) => {
      const main = ({ ref }) => !ref.endsWith("@production");
      answer.adapters.sort((one, other) => one.name.localeCompare(other.name) || main(one) - main(other));
      current = answer;
      for (const listener of listeners) listener(answer);
      return answer;
    })
    .finally(() => {
      asking = null;
    });
  return asking;
}

/** Every task that reads a history, of everything that is served, in order. */
export function tasksOf(overview) {
  return overview.adapters.flatMap((adapter) =>
    adapter.tasks.filter(({ kind }) => kind !== "text").map((task) => ({ key: `${adapter.ref}|${task.name}`, adapter, task })));
}

/** What an adapter is asked with: events carry the feedback that it reads, null where nothing was said, and none of other adapters. */
export function readBy({ feedback: { column } }, fields) {
  if (!fields.history) return fields;
  const history = fields.history.map(({ item_id, item, ...said }) => ({
    ...(item_id === undefined ? { item } : { item_id }), ...(column ? { [column]: said[column] ?? null } : {}),
  }));
  return { ...fields, history };
}

/** The feedback columns that histories may carry, and the values that each can have. */
export function feedbackOf(overview) {
  const columns = new Map();
  for (const { feedback } of overview.adapters) {
    if (feedback.column && !columns.has(feedback.column)) columns.set(feedback.column, feedback.values ?? []);
  }
  return columns;
}
