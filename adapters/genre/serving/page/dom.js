// Elements without HTML: every text goes in as a text node, so that a title can never become markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element; `on…` values are listeners, true and false set or leave out an attribute, the rest are attributes. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for drawings. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Replace what an element holds; if the focus was in it, it stays there and is not lost to the page. */
export function put(element, ...children) {
  const focused = element.contains(document.activeElement) && element !== document.activeElement;
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  if (focused && !element.contains(document.activeElement)) {
    element.tabIndex = -1;
    element.focus({ preventScroll: true });
  }
  return element;
}

export const byId = (id) => document.getElementById(id);

let numbers = 0;

/** An id that nothing else on the page has. */
export const newId = (stem) => `${stem}-${(numbers += 1)}`;

/** Tell a screen reader, once. */
export function say(text) {
  const place = byId("said");
  place.textContent = "";
  requestAnimationFrame(() => {
    place.textContent = text;
  });
}

/** A function that waits until calls have ceased for some milliseconds. */
export function settle(work, ms) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), ms);
  };
}
