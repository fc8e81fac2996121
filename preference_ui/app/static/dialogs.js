// Questions in front of the page. <dialog> keeps the focus inside and gives it back; Escape answers "no".

import { h, t } from "./dom.js";

// Resolves with what `value()` returns when confirmed, else null.
function ask({ title, content, confirm, cancel = t("dialog.cancel"), value = () => true, wide = false }) {
  return new Promise((done) => {
    let answer = null;
    const form = h("form", { method: "dialog", onsubmit: (event) => {
      event.preventDefault();
      answer = value();
      if (answer !== null) dialog.close();
    } },
    h("h2", { id: "rlhf-dialog-title" }, title), content,
    h("div", { class: "dialog-buttons" },
      h("button", { type: "button", class: "button", onclick: () => dialog.close() }, cancel),
      confirm && h("button", { type: "submit", class: "button primary" }, confirm)));
    const dialog = h("dialog", { class: wide ? "rlhf-dialog wide" : "rlhf-dialog", "aria-labelledby": "rlhf-dialog-title" }, form);
    dialog.addEventListener("close", () => { dialog.remove(); done(answer); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

export const confirmUntouched = () => ask({
  title: t("untouched.title"), content: h("p", {}, t("untouched.text")),
  confirm: t("untouched.confirm"), cancel: t("untouched.back"),
});

// Somebody else has logged in in this browser; there is one way on.
export const tellOther = (name) => ask({
  title: t("person.title", { name }), content: h("p", {}, t("person.text", { name })), cancel: t("person.reload"),
});

const REASONS = ["unknown_subject", "unclear", "language", "distressing", "broken", "other"];

export function askSkipReason() {
  const other = h("input", { type: "text", class: "text-input", maxlength: "1000", "aria-label": t("skip.other.label") });
  const rows = REASONS.map((code, index) => h("label", { class: "choice" },
    h("input", { type: "radio", name: "rlhf-skip", value: code, checked: index === 0, onchange: () => code === "other" && other.focus() }),
    t(`skip.${code}`)));
  const content = h("fieldset", { class: "choices" }, h("legend", {}, t("skip.reason")), rows, other);
  return ask({
    title: t("skip.title"), content, confirm: t("skip.confirm"),
    value: () => {
      const code = content.querySelector("input[name=rlhf-skip]:checked").value;
      const words = other.value.trim();
      return words ? `${code}: ${words}` : code;
    },
  });
}

export function showHelp({ count, shortcuts, onShortcuts }) {
  const key = (...names) => names.map((name) => h("kbd", {}, name));
  const rows = [
    [key(`1 – ${count}`), "pick"], [key("↑", "↓"), "move"], [key("="), "tie"], [key("B"), "bad"], [key("N"), "note"],
    [key("Ctrl", "Enter"), "submit"], [key("S"), "skip"], [key("U"), "undo"], [key("?"), "help"],
  ];
  const box = h("input", { type: "checkbox", checked: shortcuts, onchange: (event) => onShortcuts(event.target.checked) });
  return ask({
    title: t("help.title"), cancel: t("dialog.close"), wide: true,
    content: h("div", {}, h("p", {}, t("help.intro")), h("p", {}, t("help.saving")), h("h3", {}, t("help.keys")),
      h("dl", { class: "keys" }, rows.map(([keys, name]) => [h("dt", {}, keys), h("dd", {}, t(`help.key.${name}`))])),
      h("label", { class: "choice" }, box, t("help.shortcuts")), h("p", { class: "hint" }, t("help.shortcuts.hint"))),
  });
}
