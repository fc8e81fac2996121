// The ranking page: one task at a time, from the first look to the server's receipt.

import { ballotFrom, snippet } from "./ballot.js";
import { ActiveClock } from "./clock.js";
import { announce, h, remember, t } from "./dom.js";
import { Card, conversation, flagBoxes, scale } from "./cards.js";
import { askSkipReason, confirmUntouched, showHelp } from "./dialogs.js";
import { Outbox, call } from "./net.js";
import { Rail } from "./rail.js";
import { typeset } from "./safe.js";
import { same, startOrder } from "./tiers.js";
import { listenForKeys } from "./keys.js";

const DRAFT_PAUSE_MS = 800;
const RENEW_MS = 120_000;

export class RankingPage {
  constructor(root, boot, onProgress) {
    Object.assign(this, { root, boot, onProgress });
    this.questions = boot.questions;
    this.plain = remember.get("rlhf:plain") === true;
    this.shortcuts = remember.get("rlhf:shortcuts") !== false;
    this.outbox = new Outbox(boot.me.id, (state) => this.onOutbox(state));
    this.busy = false;
    this.status = h("p", { class: "status", role: "status" });
    this.clock = new ActiveClock();
    listenForKeys(this);
    setInterval(() => this.renew(), RENEW_MS);
    window.addEventListener("beforeunload", (event) => { if (this.busy || this.draftWaits) event.preventDefault(); });
    window.addEventListener("pagehide", () => this.saveDraftNow());
    document.addEventListener("visibilitychange", () => document.hidden && this.saveDraftNow());
    window.addEventListener("online", () => this.draftWaits && this.saveDraft());
  }

  async start() {
    const waiting = this.outbox.list().length;
    if (waiting) this.say("pending", t("state.outbox", { count: waiting }));
    await this.guarded(async () => {
      const refused = await this.outbox.flush();
      await this.load("task", {});
      if (refused.length) this.fail(refused[0].error);
      else if (waiting) this.say("saved", t("state.vote.saved"));
    });
  }

  // Try again while the server cannot be reached; tell the person about everything else.
  async guarded(act) {
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await act();
      } catch (error) {
        if (!error.status && error.status !== 0) throw error;
        this.fail(error);
        if (!error.isPassing) return null;
        await new Promise((done) => setTimeout(done, Math.min(10_000, 500 * 2 ** attempt)));
      }
    }
  }

  async load(path, body) {
    const answer = await call(path, body);
    this.show(answer);
    return answer;
  }

  // ---- showing -------------------------------------------------------------------------------------------

  show(answer, { revising = false } = {}) {
    this.onProgress(answer.progress);
    this.task = answer.task;
    this.last = answer.last;
    this.revising = revising;
    this.draftWaits = false;
    clearTimeout(this.draftTimer);
    if (!this.task) {
      this.root.replaceChildren(this.nothing());
      return;
    }
    const kept = remember.get(this.draftKey());
    this.restored = kept || this.task.draft;
    this.state = ballotFrom(this.restored, this.task.responses.length, this.questions);
    this.touched = revising || Boolean(this.restored?.touched) || (this.restored !== null && !same(this.state.tiers, startOrder(this.task.responses.length)));
    this.clock.restart(Number.isInteger(this.restored?.active_ms) && !revising ? this.restored.active_ms : 0);
    this.render();
    if (kept) this.saveDraft({ quiet: true });
    window.scrollTo({ top: 0 });
  }

  nothing() {
    return h("div", { class: "nothing" }, this.status, h("h2", {}, t("task.none.title")), h("p", {}, t("task.none.text")),
      h("div", { class: "row" },
        h("button", { type: "button", class: "button primary", onclick: () => this.guarded(() => this.load("task", {})) }, t("task.none.again")),
        h("button", { type: "button", class: "button", onclick: () => this.undo() }, t("undo.button"))));
  }

  render() {
    const { task, questions, state } = this;
    const count = task.responses.length;
    this.rail = new Rail({
      count, tiers: state.tiers, ties: questions.ties,
      snippets: task.responses.map((r) => ({ text: snippet(r), dir: r.dir })),
      onPick: (slot) => this.showCard(slot),
      onChange: (tiers, slot) => {
        state.tiers = tiers;
        this.touched = true;
        this.cards.forEach((card) => card.update());
        this.renderStrength();
        announce(this.rail.moved(slot));
        this.changed();
      },
    });
    this.cards = task.responses.map((_, slot) => new Card({
      slot, task, questions, state, plain: this.plain, rail: this.rail, onChange: () => this.changed(),
    }));
    const plain = h("label", { class: "choice", title: t("task.plain.hint") },
      h("input", { type: "checkbox", checked: this.plain, onchange: (event) => this.setPlain(event.target.checked) }), t("task.plain"));
    this.talk = conversation(task, this.plain);
    this.root.replaceChildren(h("div", { class: "ranking", dataset: { lease: task.lease } },
      this.revising && h("div", { class: "notice" }, h("p", {}, t("task.revising")),
        h("button", { type: "button", class: "text-button", onclick: () => this.leaveRevision() }, t("task.revising.cancel"))),
      h("div", { class: "reading" }, this.talk,
        h("section", { "aria-labelledby": "rlhf-responses-title" },
          h("div", { class: "section-head" }, h("h2", { id: "rlhf-responses-title" }, t("task.responses")), plain),
          h("div", { class: `cards cards-${count}` }, this.cards.map((card) => card.node)))),
      this.side()));
    typeset(this.root);
  }

  side() {
    const { questions, state } = this;
    const count = this.task.responses.length;
    this.strengthBox = h("div", { class: "strength" });
    this.renderStrength();
    this.badBox = h("input", { type: "checkbox", checked: state.all_bad, onchange: (event) => this.setBad(event.target.checked) });
    this.note = h("textarea", { rows: 2, maxlength: "100000", value: state.rationale, placeholder: t("note.placeholder"),
      oninput: () => { state.rationale = this.note.value; this.changed(); } });
    const itemFlags = new Set(state.flags.filter(([slot]) => slot === null).map(([, code]) => code));
    this.submitButton = h("button", { type: "button", class: "button primary submit", onclick: () => this.submit() },
      this.revising ? t("submit.revise") : t("submit.button"));
    return h("aside", { class: "side", "aria-labelledby": "rlhf-side-title" },
      h("h2", { id: "rlhf-side-title" }, t("rank.title")), h("p", { class: "hint" }, t("rank.hint", { count })),
      this.rail.list,
      h("label", { class: "choice bad" }, this.badBox, t("bad.label")),
      this.strengthBox,
      questions.rationale && h("label", { class: "note" }, h("span", {}, t("note.label")), this.note),
      questions.flags.length > 0 && h("details", { open: itemFlags.size > 0 }, h("summary", {}, t("flag.item")), flagBoxes({
        codes: questions.flags, chosen: itemFlags,
        onToggle: (code, on) => {
          state.flags = state.flags.filter(([slot, other]) => slot !== null || other !== code);
          if (on) state.flags.push([null, code]);
          this.changed();
        },
      })),
      h("div", { class: "actions" }, this.status, this.submitButton,
        h("div", { class: "row" },
          h("button", { type: "button", class: "button skip", onclick: () => this.skip(), disabled: this.revising }, t("skip.button")),
          h("button", { type: "button", class: "button undo", onclick: () => this.undo() }, t("undo.button")))));
  }

  renderStrength() {
    const levels = this.questions.strengths;
    if (levels < 2) return;
    const tied = this.rail.tiers[0].length > 1 || this.rail.tiers.length < 2;
    if (tied) {
      this.state.strength = null;
      this.strengthBox.replaceChildren(h("p", { class: "hint" }, t("strength.tied")));
      return;
    }
    const label = (level) => (levels === 4 ? t(`strength.${level}`) : String(level + 1));
    const name = (level) => (levels === 4 ? t(`strength.${level}`) : t("strength.level", { level: level + 1 }));
    if (this.strengthBox.querySelector("fieldset")) return;
    this.strengthBox.replaceChildren(scale({
      legend: t("strength.title"), name: "rlhf-strength", value: this.state.strength,
      options: Array.from({ length: levels }, (_, level) => ({ value: level, label: label(level), aria: name(level) })),
      onPick: (level) => { this.state.strength = level; this.changed(); },
    }));
  }

  showCard(slot) {
    this.cards.forEach((card) => card.node.classList.toggle("is-picked", card.slot === slot));
    this.cards[slot].node.scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  }

  pick(slot) {
    if (!this.task || slot >= this.task.responses.length) return;
    this.rail.focus(slot);
    this.showCard(slot);
  }

  setPlain(on) {
    this.plain = on;
    remember.set("rlhf:plain", on);
    this.cards.forEach((card) => card.showText(on));
    const talk = conversation(this.task, on);
    this.talk.replaceWith(talk);
    this.talk = talk;
    typeset(this.root);
  }

  setBad(on) {
    this.badBox.checked = on;
    this.state.all_bad = on;
    announce(t(on ? "bad.on" : "bad.off"));
    this.changed();
  }

  help() {
    showHelp({ count: this.task ? this.task.responses.length : 9, shortcuts: this.shortcuts, onShortcuts: (on) => {
      this.shortcuts = on;
      remember.set("rlhf:shortcuts", on);
    } });
  }

  say(kind, message) {
    if (this.status.textContent === message && this.status.dataset.kind === kind) return;
    this.status.dataset.kind = kind;
    this.status.replaceChildren(message);
    if (kind === "login") this.status.append(" ", h("a", { href: "/login" }, t("state.login.link")));
  }

  fail(error) {
    if (error.status === 401) this.say("login", t("state.login"));
    else if (error.status === 0) this.say("error", t("state.offline"));
    else if (error.isPassing) this.say("error", t(error.code === "rate" ? "error.rate" : "error.server"));
    else this.say("error", `${t(`error.${error.code}`)} ${error.code === "data" ? t("error.details", { text: error.detail }) : ""}`);
  }

  onOutbox(state) {
    if (state === "pending") this.say("pending", t("submit.saving"));
    else if (state === "offline") this.say("error", t("state.offline"));
    else this.say("login", t("state.login"));
  }

  // ---- drafts --------------------------------------------------------------------------------------------

  draftKey() {
    return `rlhf:draft:${this.boot.me.id}:${this.task.lease}:${this.task.revision}`;
  }

  draftBody() {
    const { lease, revision } = this.task;
    return { lease, revision, draft: { ...this.state, active_ms: this.clock.activeMs(), touched: this.touched } };
  }

  changed() {
    this.draftWaits = true;
    remember.set(this.draftKey(), this.draftBody().draft);
    this.say("pending", t("state.draft.pending"));
    clearTimeout(this.draftTimer);
    this.draftTimer = setTimeout(() => this.saveDraft(), DRAFT_PAUSE_MS);
  }

  async saveDraft({ quiet = false } = {}) {
    if (!this.task || this.busy || (this.revising && !this.draftWaits)) return;
    const body = this.draftBody();
    const key = this.draftKey();
    try {
      await call("draft", body);
    } catch (error) {
      if (this.busy || this.task?.lease !== body.lease) return;
      this.fail(error);
      if (error.isPassing) {
        clearTimeout(this.draftTimer);
        this.draftTimer = setTimeout(() => this.saveDraft(), 5000);
      }
      return;
    }
    if (this.task?.lease !== body.lease || this.busy || !same(body.draft.tiers, this.state.tiers)) return;
    remember.remove(key);
    this.draftWaits = false;
    if (!quiet) this.say("saved", t("state.draft.saved"));
  }

  // The page is going away: a beacon outlives it.
  saveDraftNow() {
    if (!this.draftWaits || this.busy || !this.task) return;
    navigator.sendBeacon("/api/draft", new Blob([JSON.stringify(this.draftBody())], { type: "application/json" }));
  }

  async renew() {
    if (!this.task || this.revising || document.hidden || this.clock.idleMs() > 10 * 60_000) return;
    // A refusal changes nothing here: a vote after the hold ended is kept all the same.
    await call("renew", { lease: this.task.lease }).catch(() => null);
  }

  // ---- deciding ------------------------------------------------------------------------------------------

  async submit() {
    if (this.busy || !this.task || document.querySelector("dialog[open]")) return;
    this.clock.tick();
    if (!this.touched) {
      if (!(await confirmUntouched())) return;
      this.touched = true;
    }
    const { task, state } = this;
    const vote = { ...state, active_ms: this.clock.activeMs(), ui_sha256: this.boot.ui_sha256 };
    const body = { lease: task.lease, revision: task.revision, vote, next: true };
    await this.deciding(async () => {
      const answer = await this.outbox.send({ id: `${task.lease}:${task.revision}`, path: "submit", body });
      remember.remove(this.draftKey());
      this.busy = false;
      this.show(answer);
      const message = t(answer.saved.counted ? "state.vote.saved" : "state.late");
      this.say("saved", message);
      announce(message);
    });
  }

  async skip() {
    if (this.busy || !this.task || this.revising || document.querySelector("dialog[open]")) return;
    const reason = await askSkipReason();
    if (reason === null) return;
    const { lease } = this.task;
    await this.deciding(async () => {
      const answer = await this.outbox.send({ id: `${lease}:skip`, path: "skip", body: { lease, reason } });
      remember.remove(this.draftKey());
      this.busy = false;
      this.show(answer);
      this.say("saved", t("state.skip.saved"));
      announce(t("state.skip.saved"));
    });
  }

  async undo() {
    if (this.busy || document.querySelector("dialog[open]")) return;
    if (!this.last) {
      this.say("error", t("undo.nothing"));
      return;
    }
    await this.deciding(async () => {
      // Named, so that pressing again after a lost answer takes back no second one.
      const answer = await call("undo", { lease: this.last });
      this.busy = false;
      this.show(answer);
      this.touched = true;
      this.say("saved", t("undo.done"));
      announce(t("undo.done"));
    });
  }

  async revise(lease) {
    if (this.busy) return;
    await this.saveDraft();
    await this.guarded(async () => this.show(await call("recall", { lease }), { revising: true }));
  }

  // The change in the making is thrown away, here and on the server.
  async leaveRevision() {
    clearTimeout(this.draftTimer);
    this.draftWaits = false;
    remember.remove(this.draftKey());
    const { lease, revision } = this.task;
    await this.guarded(() => call("draft", { lease, revision, draft: null }));
    await this.guarded(() => this.load("task", {}));
  }

  // One decision at a time; the page moves on only after the receipt.
  async deciding(act) {
    clearTimeout(this.draftTimer);
    this.busy = true;
    this.root.setAttribute("aria-busy", "true");
    if (this.submitButton) this.submitButton.disabled = true;
    try {
      await act();
    } catch (error) {
      if (error.status === undefined) throw error;
      this.fail(error);
      announce(this.status.textContent);
      if (["lease", "conflict", "frozen"].includes(error.code)) {
        this.busy = false;
        await this.guarded(() => this.load("task", {}));
        this.fail(error);
      }
    } finally {
      this.busy = false;
      this.root.removeAttribute("aria-busy");
      if (this.submitButton) this.submitButton.disabled = false;
    }
  }
}
