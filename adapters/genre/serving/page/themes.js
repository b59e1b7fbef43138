// The button that changes the theme: the system's, light, dark. Only this choice is stored.

import { byId, h, put, svg } from "./dom.js";

const THEMES = { auto: "system", light: "light", dark: "dark" };

/** Draw the button and let it work. */
export function themeButton() {
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
