// The vote in the making is kept twice until it is stored: in this browser at once, on the server after a short pause.

import { remember } from "./dom.js";
import { call, callAndLeave } from "./net.js";

const PAUSE_MS = 800;
const AGAIN_MS = 5_000;

export class Drafts {
  // `read()` gives the draft as it stands. `onState(state, error)` hears "pending", "saved", "stale" (the server has an
  // answer of this revision already) and "failed".
  constructor(me, read, onState) {
    Object.assign(this, { me, read, onState, task: null, waits: false, held: false, edition: 0, running: Promise.resolve() });
  }

  get key() {
    return `rlhf:draft:${this.me}:${this.task.lease}:${this.task.revision}`;
  }

  get body() {
    return { lease: this.task.lease, revision: this.task.revision, draft: this.read() };
  }

  // Drafts are of this task from now on, or of none. Returns what this browser kept of it, or what was `given` to keep.
  begin(task, given = null) {
    clearTimeout(this.timer);
    this.edition += 1;
    Object.assign(this, { task, waits: Boolean(given), held: false });
    if (!task) return null;
    if (given) remember.set(this.key, given);
    return given ?? remember.get(this.key);
  }

  changed() {
    this.edition += 1;
    this.waits = true;
    remember.set(this.key, this.read());
    this.onState("pending");
    this.later(PAUSE_MS);
  }

  later(ms) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.save(), ms);
  }

  // While a decision is on its way; a save that is under way reports nothing any more.
  hold() {
    clearTimeout(this.timer);
    this.edition += 1;
    this.held = true;
  }

  // Nothing was decided after all.
  goOn() {
    this.held = false;
    if (this.task && this.waits) this.later(PAUSE_MS);
  }

  // The vote is stored, or the draft thrown away.
  forget() {
    this.hold();
    if (this.task) remember.remove(this.key);
    this.waits = false;
  }

  // One after the other: a slow save must not arrive after a newer one. `unchanged`: also when nothing was changed.
  save({ quiet = false, unchanged = false } = {}) {
    this.running = this.running.then(() => this.send(quiet, unchanged));
    return this.running;
  }

  async send(quiet, unchanged) {
    if (!this.task || this.held || !(this.waits || unchanged)) return;
    clearTimeout(this.timer);
    const { task, edition } = this;
    let kept;
    try {
      kept = (await call("draft", this.body)).saved;
    } catch (error) {
      if (this.task !== task || this.held) return;
      this.onState("failed", error);
      if (error.isPassing) this.later(AGAIN_MS);
      return;
    }
    // Newer words are saved by their own timer; until then this browser's copy is the only one of them.
    if (this.task !== task || this.edition !== edition) return;
    if (!kept) {
      this.onState("stale");
      return;
    }
    remember.remove(this.key);
    this.waits = false;
    if (!quiet) this.onState("saved");
  }

  // The page is going away.
  saveAndLeave() {
    if (this.task && this.waits && !this.held) callAndLeave("draft", this.body);
  }
}
