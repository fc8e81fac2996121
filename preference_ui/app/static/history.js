// A person's own answers, newest first, a page at a time.

import { h, t } from "./dom.js";
import { call } from "./net.js";

export class AnswerList {
  // `onChange(lease)`: the person wants to change that answer.
  constructor(root, lang, onChange) {
    Object.assign(this, { root, onChange, seen: 0, leases: new Set() });
    this.when = new Intl.DateTimeFormat(lang, { dateStyle: "medium", timeStyle: "short" });
    this.list = h("ul", { class: "answers" });
    this.note = h("p", { class: "hint", role: "status" });
    this.older = h("button", { type: "button", class: "button older", onclick: () => this.press() }, t("history.older"));
  }

  async load() {
    await this.more();
    this.root.replaceChildren(h("section", { class: "reading-page" }, h("h2", {}, t("history.title")),
      this.leases.size ? [this.list, this.older, this.note] : h("p", {}, t("history.empty"))));
  }

  async press() {
    this.note.textContent = "";
    await this.more().catch(() => { this.note.textContent = t("state.unreachable"); });
  }

  async more() {
    const { answers, more } = await call(`history?skip=${this.seen}`);
    this.seen += answers.length;
    // An answer given meanwhile moves all others one place on.
    const fresh = answers.filter(({ lease }) => !this.leases.has(lease));
    fresh.forEach(({ lease }) => this.leases.add(lease));
    const rows = fresh.map((answer) => this.row(answer));
    this.list.append(...rows);
    const pressed = document.activeElement === this.older;
    this.older.hidden = !more;
    if (pressed) rows[0]?.querySelector("button")?.focus();
  }

  row(answer) {
    return h("li", {},
      h("div", {}, h("p", { class: "opening", dir: "auto" }, answer.opening),
        h("p", { class: "hint" }, this.when.format(new Date(answer.voted)),
          answer.revision > 1 && ` · ${t("history.revision", { revision: answer.revision })}`)),
      answer.frozen ? h("span", { class: "badge" }, t("history.frozen"))
        : h("button", { type: "button", class: "button", onclick: () => this.onChange(answer.lease) }, t("history.change")));
  }
}
