// Numbers, times and names as people read them.

const NUMBER = new Intl.NumberFormat("en");

export const count = (value) => NUMBER.format(value);

export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

/** A score or metric: four figures that matter, never more than the value has. */
export function figure(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 3);
}

/** A signed share of a whole. */
export function share(value) {
  const percent = Math.abs(value) * 100;
  return `${value < 0 ? "−" : "+"}${percent >= 9.95 ? percent.toFixed(0) : percent.toFixed(1)} %`;
}

/** A probability in percent, with three figures at most. */
export function percent(value) {
  const hundredths = value * 100;
  if (!Number.isFinite(value)) return "–";
  if (hundredths > 0 && hundredths < 0.01) return "< 0.01 %";
  return `${hundredths.toFixed(hundredths >= 9.95 ? 1 : 2)} %`;
}

/** What a catalogue says of an item beside its title, in one line: “1995 · Comedy, Drama”. A year that the title has is left out. */
export const facts = (about, title) =>
  Object.values(about ?? {}).map((value) => (Array.isArray(value) ? value.join(", ") : String(value)))
    .filter((value) => !(/^\d{4}$/.test(value) && title.includes(value))).join(" · ");

/** A feedback value: whole numbers without a point. */
export const feedback = (value) => (typeof value === "number" ? String(Math.round(value * 1000) / 1000) : String(value));

export const duration = (ms) => (ms >= 1000 ? `${(ms / 1000).toFixed(1)} s` : `${ms.toFixed(ms >= 10 ? 0 : 1)} ms`);

/** A UTC time stamp, in the reader's own zone. */
export function time(stamp) {
  const when = new Date(stamp);
  if (Number.isNaN(when.getTime())) return stamp;
  return new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" }).format(when);
}

/** What a task's scores are, and how long their bars: [name, low, high]; a bar without an end of its own ends at the largest score. */
export function scale(task, values) {
  if (task.kind === "next_item") return ["probability", 0, null];
  if (task.head === "binary" || (task.label && /[<>=!]/.test(task.label))) return ["probability", 0, 1];
  const numbers = (values ?? []).filter((value) => typeof value === "number");
  if (numbers.length) return [task.label ?? "value", Math.min(...numbers), Math.max(...numbers)];
  return [task.label ?? "value", null, null];
}
