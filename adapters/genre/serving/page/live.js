// The last minute in the header: answers per second as a line, their time, what waits, adapters in memory; and whether the server is there.

import { call } from "./api.js";
import { byId, h, put, svg } from "./dom.js";
import { count, duration } from "./format.js";

const EVERY_MS = 2000;
const SLOWEST_MS = 15_000;

/** Ask again and again while the page is looked at; `back` is told when the server answers again. */
export function start(back) {
  let failures = 0;
  let timer = 0;
  let asking = false;

  const tick = async () => {
    clearTimeout(timer);
    if (asking || document.hidden) return;
    asking = true;
    try {
      draw(await call("/v1/stats"));
      if (failures) {
        banner(null);
        back();
        window.dispatchEvent(new Event("back"));
      }
      failures = 0;
    } catch (error) {
      failures += 1;
      put(byId("live"), h("span", { class: "figure" }, h("i", { class: "dot off" }), "not connected"));
      if (failures > 1) banner(error.status ? error.message : "The server does not answer. The page tries again by itself.");
    } finally {
      asking = false;
      timer = setTimeout(tick, failures ? Math.min(SLOWEST_MS, 1000 * 2 ** (failures - 1)) : EVERY_MS);
    }
  };
  document.addEventListener("visibilitychange", tick);
  window.addEventListener("online", tick);
  tick();
}

function banner(text) {
  byId("banner").hidden = text === null;
  byId("banner").textContent = text ?? "";
}

function draw(stats) {
  const { p50, p99 } = stats.latency_ms;
  const full = stats.queue_rows > stats.queue_limit / 2;
  put(byId("live"),
    h("span", { class: "figure", title: "Answers per second: one for each list that an adapter gives" },
      h("i", { class: full ? "dot warn" : "dot" }), spark(stats.per_second), h("b", {}, stats.rows_per_s.toFixed(1)), " answers/s"),
    p50 !== null && h("span", { class: "figure", title: "Time to an answer: half are faster than the first figure, 99 of 100 faster than the second" },
      h("b", {}, duration(p50)), " typical", h("span", { class: "wide" }, "99 % within ", h("b", {}, duration(p99)))),
    h("span", { class: "figure wide", title: "Questions that wait for their turn" }, h("b", {}, count(stats.queue_rows)), " waiting"),
    h("span", { class: "figure wide", title: "Adapters in memory, and how many fit" }, h("b", {}, `${stats.lanes.used} of ${stats.lanes.total}`), " adapters in memory"));
}

/** Rows of each of the last sixty seconds. */
function spark(values) {
  const most = Math.max(1, ...values);
  const points = values.map((value, place) => `${place},${(15 - (14 * value) / most).toFixed(1)}`).join(" ");
  return svg("svg", { class: "spark", viewBox: `0 0 ${values.length - 1} 16`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("polyline", { points, "vector-effect": "non-scaling-stroke" }));
}
