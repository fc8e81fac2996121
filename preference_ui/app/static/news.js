// Tells a person once that the guidelines have changed since they last saw them, and leads there.

import { h, remember, t } from "./dom.js";

function openGuideline() {
  [...document.querySelectorAll('[role="tab"]')].find((tab) => tab.textContent.trim() === t("nav.guideline"))?.click();
}

export class GuidelineNews {
  // Whoever is new to this browser starts with the version in force.
  constructor(boot) {
    this.key = `rlhf:guideline:${boot.me.id}:${boot.project}`;
    this.known = remember.get(this.key) ?? boot.guideline_version;
    remember.set(this.key, this.known);
  }

  saw(version) {
    if (version > this.known) {
      this.known = version;
      remember.set(this.key, version);
    }
    document.querySelector(".guideline-news")?.remove();
  }

  notice({ guideline_version: version }) {
    return version > this.known && h("div", { class: "notice guideline-news", tabindex: "-1" }, h("p", {}, t("guideline.new", { version })),
      h("button", { type: "button", class: "text-button", onclick: openGuideline }, t("guideline.open")),
      h("button", { type: "button", class: "text-button", onclick: () => this.saw(version) }, t("dialog.close")));
  }
}
