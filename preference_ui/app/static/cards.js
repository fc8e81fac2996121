// The conversation and one card per response: text, rank, ratings, flags, correction.

import { h, letter, named, t } from "./dom.js";
import { textBlock } from "./safe.js";
import { rankOf, tiedWith } from "./tiers.js";

export function conversation(task, plain) {
  return h("section", { class: "prompt", "aria-labelledby": "rlhf-prompt-title" },
    h("h2", { id: "rlhf-prompt-title", tabindex: "-1" }, t("task.prompt")),
    task.prompt.map((turn) => h("div", { class: `turn turn-${turn.role}` },
      h("p", { class: "who" }, t(`task.role.${turn.role}`)), textBlock(turn, plain, task.lang))));
}

// Radio buttons side by side; `name` must be unique on the page. Choosing the chosen one again clears it.
export function scale({ legend, name, options, value, onPick }) {
  const inputs = options.map((option) => h("label", { class: "step", title: option.title },
    h("input", {
      type: "radio", name, value: String(option.value), checked: option.value === value, "aria-label": option.aria,
      onchange: () => onPick(option.value),
      onclick: (event) => {
        if (event.target.dataset.was === "1") { event.target.checked = false; event.target.dataset.was = ""; onPick(null); return; }
        for (const other of event.target.closest("fieldset").querySelectorAll("input")) other.dataset.was = "";
        event.target.dataset.was = "1";
      },
      dataset: { was: option.value === value ? "1" : "" },
    }), h("span", {}, option.label)));
  return h("fieldset", { class: "scale" }, h("legend", {}, legend), h("div", { class: "steps" }, inputs));
}

export function flagBoxes({ codes, chosen, onToggle }) {
  return h("div", { class: "flag-boxes" }, codes.map((code) => h("label", { class: "flag" },
    h("input", { type: "checkbox", checked: chosen.has(code), onchange: (event) => onToggle(code, event.target.checked) }),
    h("span", {}, named("flag", code)))));
}

export class Card {
  // `state` is the page's vote in the making; `onChange()` is told after each change to it.
  constructor({ slot, task, questions, state, plain, rail, onChange }) {
    Object.assign(this, { slot, task, questions, state, rail, onChange });
    const response = task.responses[slot];
    this.body = h("div", { class: "card-body" }, textBlock(response, plain, task.lang));
    this.badge = h("span", { class: "badge" });
    this.tools = h("div", { class: "card-tools" });
    this.up = this.button("up", "↑", () => rail.up(slot));
    this.down = this.button("down", "↓", () => rail.down(slot));
    this.node = h("article", { class: "card", dataset: { slot }, "aria-labelledby": `rlhf-card-${slot}` },
      h("header", {}, h("h3", { id: `rlhf-card-${slot}` }, h("span", { class: "sr-only" }, t("task.response", { letter: "" })),
        h("span", { class: "letter" }, letter(slot))),
      this.badge, h("span", { class: "grow" }), this.up, this.down),
      this.body, this.tools);
    this.renderTools();
    this.update();
  }

  button(kind, sign, act) {
    const label = t(`rank.${kind}`, { letter: letter(this.slot) });
    return h("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick: act }, sign);
  }

  update() {
    const tiers = this.rail.tiers;
    const rank = rankOf(tiers, this.slot);
    this.badge.textContent = t("rank.badge", { rank: tiedWith(tiers, this.slot).length ? `${rank}=` : rank });
    this.node.classList.toggle("is-best", rank === 1);
  }

  showText(plain) {
    this.body.replaceChildren(textBlock(this.task.responses[this.slot], plain, this.task.lang));
  }

  renderTools() {
    const { slot, questions, state } = this;
    const parts = questions.axes.map((axis) => this.rating(axis));
    if (questions.flags.length) {
      const mine = new Set(state.flags.filter(([at]) => at === slot).map(([, code]) => code));
      const count = h("span", { class: "count" }, mine.size ? String(mine.size) : "");
      parts.push(h("details", { open: mine.size > 0 },
        h("summary", {}, t("flag.title"), " ", count),
        flagBoxes({
          codes: questions.flags, chosen: mine,
          onToggle: (code, on) => {
            state.flags = state.flags.filter(([at, other]) => at !== slot || other !== code);
            if (on) state.flags.push([slot, code]);
            if (on) mine.add(code); else mine.delete(code);
            count.textContent = mine.size ? String(mine.size) : "";
            this.onChange();
          },
        })));
    }
    if (questions.edits) parts.push(this.editor());
    this.tools.replaceChildren(...parts);
    this.tools.hidden = !parts.length;
  }

  rating(axis) {
    const { slot, state } = this;
    const name = named("axis", axis.name);
    const values = Array.from({ length: axis.high - axis.low + 1 }, (_, i) => axis.low + i);
    return scale({
      legend: h("span", { title: t("axis.range", axis) }, name),
      name: `rlhf-axis-${slot}-${axis.name}`,
      value: state.ratings[slot]?.[axis.name],
      options: values.map((value) => ({ value, label: String(value), aria: t("axis.value", { axis: name, value }) })),
      onPick: (value) => {
        const own = { ...state.ratings[slot] };
        if (value === null) delete own[axis.name]; else own[axis.name] = value;
        state.ratings[slot] = own;
        if (!Object.keys(own).length) delete state.ratings[slot];
        this.onChange();
      },
    });
  }

  editor() {
    const { slot, task, state } = this;
    const original = task.responses[slot].text;
    const box = h("div", { class: "editor" });
    const closed = () => box.replaceChildren(h("button", {
      type: "button", class: "text-button edit-open", "aria-label": `${t("edit.open")}: ${t("task.response", { letter: letter(slot) })}`,
      onclick: () => { open(original); box.querySelector("textarea").focus(); },
    }, "✎ ", t("edit.open")));
    const open = (text) => {
      const area = h("textarea", { dir: task.responses[slot].dir, maxlength: "100000", spellcheck: "true", value: text,
        "aria-label": t("edit.label", { letter: letter(slot) }),
        oninput: () => {
          const changed = area.value.trim() && area.value !== original;
          if (changed) state.edits[slot] = area.value; else delete state.edits[slot];
          this.node.classList.toggle("is-edited", Boolean(changed));
          this.onChange();
        } });
      area.rows = Math.min(16, Math.max(4, text.split("\n").length + Math.ceil(text.length / 70)));
      box.replaceChildren(h("p", { class: "hint" }, t("edit.hint")), area,
        h("button", { type: "button", class: "text-button edit-discard", onclick: () => {
          delete state.edits[slot];
          this.node.classList.remove("is-edited");
          closed();
          box.querySelector("button").focus();
          this.onChange();
        } }, t("edit.discard")));
    };
    if (state.edits[slot] !== undefined) {
      open(state.edits[slot]);
      this.node.classList.add("is-edited");
    } else closed();
    return box;
  }
}
