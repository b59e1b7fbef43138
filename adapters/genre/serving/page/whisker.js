// A value and its 95 % interval: a dot on a line, on an axis that every version's value of the same metric shares.

import { h, svg } from "./dom.js";

const WIDTH = 190;
const HEIGHT = 16;
const ENDS = 32;

/** The ends of a shared axis: round numbers around every value and interval. */
export function axisOf(values) {
  const all = values.flatMap(({ value, interval }) => [value, ...(interval ?? [])]);
  const [least, most] = [Math.min(...all), Math.max(...all)];
  const room = (most - least) / 2 || Math.abs(most) / 10 || 1;
  const step = round((most - least + 2 * room) / 4);
  const low = Math.floor((least - room) / step) * step;
  const high = Math.ceil((most + room) / step) * step;
  return { low: least >= 0 ? Math.max(0, low) : low, high, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

/** The next of 1, 2, 5, 10, … below. */
function round(size) {
  const ten = 10 ** Math.floor(Math.log10(size));
  return ten * (size >= 5 * ten ? 5 : size >= 2 * ten ? 2 : 1);
}

/** The drawing; its numbers stand beside it as text. */
export function whisker({ value, interval }, { low, high, digits }) {
  const at = (number) => ENDS + ((WIDTH - 2 * ENDS) * (number - low)) / (high - low);
  const middle = HEIGHT / 2;
  const line = (from, to, kind) => svg("line", { class: kind, x1: at(from), x2: at(to), y1: middle, y2: middle });
  const end = (number) => svg("line", { class: "interval", x1: at(number), x2: at(number), y1: middle - 3, y2: middle + 3 });
  const label = (number, x, anchor) => svg("text", { x, y: middle + 3.3, "text-anchor": anchor }, number.toFixed(digits));
  return h("span", { class: "whisker", "aria-hidden": "true" },
    svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT },
      label(low, ENDS - 5, "end"), label(high, WIDTH - ENDS + 5, "start"),
      line(low, high, "axis"), interval && [line(...interval, "interval"), end(interval[0]), end(interval[1])],
      svg("circle", { cx: at(value), cy: middle, r: 3.5 })));
}
