// Small helpers for building elements. Strings given as children become text, never markup.

export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "class") node.className = value;
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (name === "value" || name === "checked" || name === "disabled") node[name] = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const letter = (slot) => "ABCDEFGHI"[slot];

let texts = {};
export function setTexts(catalogue) {
  texts = catalogue;
}

// The text of a key in the reader's language; a missing key shows itself, so that it is noticed.
export function t(key, values = {}) {
  return (texts[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

// A project's own code has no translation: "off_topic" reads as "off topic".
export const named = (prefix, code) => texts[`${prefix}.${code}`] ?? code.replaceAll("_", " ");

let liveRegion = null;
// Tell a screen reader. The short pause makes it speak again when the same words come twice.
export function announce(message) {
  if (!liveRegion || !liveRegion.isConnected) {
    liveRegion = h("div", { class: "sr-only rlhf-live", "aria-live": "polite", role: "status" });
    document.body.append(liveRegion);
  }
  liveRegion.textContent = "";
  setTimeout(() => { liveRegion.textContent = message; }, 60);
}

export const remember = {
  get(key) {
    try { return JSON.parse(localStorage.getItem(key)); } catch { return null; }
  },
  // False when the browser keeps nothing (private mode, full): then only the server's copy counts.
  set(key, value) {
    try { localStorage.setItem(key, JSON.stringify(value)); return true; } catch { return false; }
  },
  remove(key) {
    try { localStorage.removeItem(key); } catch { /* nothing was kept */ }
  },
};
