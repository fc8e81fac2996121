// The ranking page: one task at a time, from the first look to the server's receipt.

import { ballotFrom, isNarrower, snippet } from "./ballot.js";
import { ActiveClock } from "./clock.js";
import { announce, h, remember, t } from "./dom.js";
import { Card, conversation, flagBoxes, scale } from "./cards.js";
import { askSkipReason, confirmUntouched, showHelp } from "./dialogs.js";
import { Drafts } from "./drafts.js";
import { GuidelineNews } from "./news.js";
import { Outbox, call } from "./net.js";
import { Rail } from "./rail.js";
import { typeset } from "./safe.js";
import { same, startOrder } from "./tiers.js";
import { listenForKeys } from "./keys.js";

const MAX_RENEW_MS = 600_000;
// What must not change while a decision is on its way: all but the status line.
const PARTS = ".reading, .side > :not(.actions), .actions > :not(.status), .nothing > :not(.status)";

export class RankingPage {
  constructor(root, boot, onProgress) {
    Object.assign(this, { root, boot, onProgress });
    this.plain = remember.get("rlhf:plain") === true;
    this.shortcuts = remember.get("rlhf:shortcuts") !== false;
    this.outbox = new Outbox(boot.me.id, (error) => (error ? this.fail(error) : this.say("pending", t("submit.saving"))));
    this.drafts = new Drafts(boot.me.id, () => this.draft(), (state, error) => this.onDraft(state, error));
    this.news = new GuidelineNews(boot);
    this.busy = false;
    this.status = h("p", { class: "status", role: "status" });
    this.clock = new ActiveClock();
    listenForKeys(this);
    window.addEventListener("beforeunload", (event) => { if (this.isUnsaved()) event.preventDefault(); });
    window.addEventListener("pagehide", () => this.drafts.saveAndLeave());
    document.addEventListener("visibilitychange", () => (document.hidden ? this.drafts.saveAndLeave() : this.renew()));
    window.addEventListener("online", () => this.drafts.save());
  }

  async start() {
    const waiting = this.outbox.list().length;
    this.root.replaceChildren(h("div", { class: "nothing" }, this.status));
    this.say("pending", t(waiting ? "state.outbox" : "app.loading", { count: waiting }));
    await this.guarded(async () => {
      const refused = await this.outbox.flush();
      await this.load("task", {});
      if (refused.length) await this.refused(refused[0].entry, refused[0].error);
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
    this.show(await call(path, body));
  }

  // ---- showing -------------------------------------------------------------------------------------------

  // `draft` stands in for what was kept of the task.
  show(answer, { revising = false, draft = null } = {}) {
    this.standing = answer.standing;
    this.onProgress(answer.progress);
    this.task = answer.task;
    this.questions = answer.questions;
    this.last = answer.last;
    this.revising = revising;
    const kept = this.drafts.begin(this.task, draft);
    clearInterval(this.renewTimer);
    this.say("", "");
    if (!this.task) {
      this.root.replaceChildren(this.nothing());
      return;
    }
    const count = this.task.responses.length;
    this.restored = kept || this.task.draft;
    this.state = ballotFrom(this.restored, count, this.questions);
    this.touched = revising || Boolean(this.restored?.touched) || (this.restored !== null && !same(this.state.tiers, startOrder(count)));
    this.clock.restart(Number.isInteger(this.restored?.active_ms) && !revising ? this.restored.active_ms : 0);
    this.render();
    if (kept) this.drafts.save({ quiet: true, unchanged: true });
    // One renewal may fail without the hold ending.
    this.renewTimer = setInterval(() => this.renew(), Math.min(MAX_RENEW_MS, (1000 * this.task.hold_seconds) / 3));
    window.scrollTo({ top: 0 });
  }

  nothing() {
    const why = this.standing === "qualified" ? "none" : "review";
    return h("div", { class: "nothing" }, this.status, h("h2", { tabindex: "-1" }, t(`task.${why}.title`)), h("p", {}, t(`task.${why}.text`)),
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
      h("div", { class: "reading" },
        this.news.notice(task),
        this.revising && h("div", { class: "notice", tabindex: "-1" }, h("p", {}, t("task.revising")),
          h("button", { type: "button", class: "text-button", onclick: () => this.leaveRevision() }, t("task.revising.cancel"))),
        isNarrower(state, this.restored) && h("div", { class: "notice narrower", tabindex: "-1" }, h("p", {}, t("task.narrower"))),
        this.talk,
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
    // A screen reader says again whatever is set again.
    if (this.said === message && this.status.dataset.kind === kind) return;
    this.said = message;
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

  // ---- drafts --------------------------------------------------------------------------------------------

  draft() {
    return { ...this.state, active_ms: this.clock.activeMs(), touched: this.touched };
  }

  changed() {
    this.drafts.changed();
  }

  // The time in use is kept too; of an earlier answer only what was changed.
  saveDraft() {
    return this.drafts.save({ unchanged: !this.revising });
  }

  onDraft(state, error) {
    if (state === "failed") this.fail(error);
    else if (state === "stale") this.say("error", t("state.draft.stale"));
    else this.say(state, t(`state.draft.${state}`));
  }

  // What waits for a login is kept in this browser: the way to the login is open.
  isUnsaved() {
    return (this.busy || this.drafts.waits) && this.status.dataset.kind !== "login";
  }

  // Somebody else is logged in now: nothing more is sent, and what this browser kept stays for its author.
  abandon() {
    this.drafts.begin(null);
    this.task = null;
    clearInterval(this.renewTimer);
  }

  async renew() {
    if (!this.task || this.revising || document.hidden || this.clock.idleMs() > 10 * 60_000) return;
    // A refusal changes nothing here: a vote after the hold ended is kept all the same.
    await call("renew", { lease: this.task.lease }).catch(() => null);
  }

  // ---- deciding ------------------------------------------------------------------------------------------

  async submit() {
    if (this.busy || !this.task || this.rail.drag || document.querySelector("dialog[open]")) return;
    this.clock.tick();
    if (!this.touched) {
      if (!(await confirmUntouched())) return;
      this.touched = true;
    }
    const { task, state } = this;
    const vote = { ...state, active_ms: this.clock.activeMs(), ui_sha256: this.boot.ui_sha256 };
    const body = { lease: task.lease, revision: task.revision, vote, next: true };
    const entry = { id: `${task.lease}:${task.revision}`, path: "submit", body, revising: this.revising };
    await this.deciding(async () => {
      let answer;
      try {
        answer = await this.outbox.send(entry);
      } catch (error) {
        if (error.code !== "data") throw error;
        await this.refused(entry, error);
        return;
      }
      this.drafts.forget();
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
      this.drafts.forget();
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

  // An answer that does not fit goes back to its author, as a draft beside the questions as they are now.
  async refused(entry, error) {
    const { path, body } = entry;
    const isFinal = path !== "submit" || error.code === "lease" || error.code === "conflict";
    const shown = isFinal || (await this.guarded(async () => {
      const answer = await call("recall", { lease: body.lease });
      const revising = entry.revising || answer.task.revision > body.revision;
      this.show(answer, { revising, draft: { ...body.vote, touched: true } });
      return true;
    }));
    if (!shown) return;
    this.outbox.drop(entry.id);
    this.fail(error);
    announce(this.status.textContent);
  }

  // The change in the making is thrown away, here and on the server.
  async leaveRevision() {
    const { lease, revision } = this.task;
    this.drafts.forget();
    await this.drafts.running;
    await this.guarded(() => call("draft", { lease, revision, draft: null }));
    await this.guarded(() => this.load("task", {}));
  }

  // One decision at a time; the page moves on only after the receipt.
  async deciding(act) {
    const focused = document.activeElement;
    this.busy = true;
    this.drafts.hold();
    this.root.setAttribute("aria-busy", "true");
    this.root.querySelectorAll(PARTS).forEach((part) => { part.inert = true; });
    try {
      await act();
    } catch (error) {
      if (error.status === undefined) throw error;
      if (["lease", "conflict", "frozen"].includes(error.code)) await this.guarded(() => this.load("task", {}));
      this.fail(error);
      announce(this.status.textContent);
    } finally {
      this.busy = false;
      this.drafts.goOn();
      this.root.removeAttribute("aria-busy");
      this.root.querySelectorAll(PARTS).forEach((part) => { part.inert = false; });
      if (document.activeElement === document.body) (focused?.isConnected ? focused : this.top)?.focus({ preventScroll: true });
    }
  }

  // Where whoever reads with the keyboard or by ear begins: what is to be known about the task, else the task.
  get top() {
    return this.root.querySelector(".notice, h2");
  }
}
