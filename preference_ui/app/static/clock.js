// Time in use: pauses of more than a minute, and times out of sight, do not count.

const IDLE_MS = 60_000;
const SIGNS = ["pointermove", "pointerdown", "keydown", "scroll", "wheel", "touchstart"];

export class ActiveClock {
  constructor() {
    this.active = 0;
    this.last = Date.now();
    for (const kind of SIGNS) window.addEventListener(kind, () => this.tick(), { passive: true, capture: true });
  }
  tick() {
    const now = Date.now();
    if (now - this.last < IDLE_MS && !document.hidden) this.active += now - this.last;
    this.last = now;
  }
  restart(from = 0) {
    this.active = from;
    this.last = Date.now();
  }
  idleMs() {
    return Date.now() - this.last;
  }
  activeMs() {
    return Math.max(0, Math.round(this.active));
  }
}
