// The ranking itself: tiers of chips that move by drag (mouse, pen, touch), by buttons, and by keyboard.

import { h, letter, t } from "./dom.js";
import { joinTier, moveDown, moveUp, placeBefore, rankOf, tierOf, tiedWith, toggleTie } from "./tiers.js";

const DRAG_THRESHOLD = 5;
const EDGE = 70;

export class Rail {
  // onChange(tiers, slot): a person moved something. snippets: the first words of each response, with their direction.
  constructor({ count, tiers, ties, snippets, onChange, onPick }) {
    Object.assign(this, { count, tiers, ties, snippets, onChange, onPick });
    this.list = h("ol", { class: "tiers", "aria-label": t("rank.title") });
    this.list.addEventListener("keydown", (event) => this.onKey(event));
    this.render();
  }

  label(slot) {
    const tied = tiedWith(this.tiers, slot).map(letter).join(", ");
    const values = { letter: letter(slot), rank: rankOf(this.tiers, slot), count: this.count, others: tied };
    return t(tied ? "rank.chip.tied" : "rank.chip", values);
  }

  moved(slot) {
    const tied = tiedWith(this.tiers, slot).map(letter).join(", ");
    const values = { letter: letter(slot), rank: rankOf(this.tiers, slot), count: this.count, others: tied };
    return t(tied ? "rank.moved.tied" : "rank.moved", values);
  }

  handle(slot) {
    return this.list.querySelector(`.handle[data-slot="${slot}"]`);
  }

  focus(slot) {
    this.handle(slot)?.focus({ preventScroll: true });
  }

  set(tiers, slot = null) {
    if (tiers === this.tiers) return;
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset : null;
    const kind = focused ? document.activeElement.className : null;
    this.tiers = tiers;
    this.render();
    if (slot !== null) {
      this.onChange(tiers, slot);
    }
    // The list is rebuilt; whoever moves a chip keeps the focus on it.
    if (focused) (this.list.querySelector(`.${kind.split(" ")[0]}[data-slot="${focused.slot}"]`) ?? this.handle(focused.slot))?.focus({ preventScroll: true });
  }

  up(slot) { this.set(moveUp(this.tiers, slot), slot); }
  down(slot) { this.set(moveDown(this.tiers, slot), slot); }
  tie(slot) { if (this.ties) this.set(toggleTie(this.tiers, slot), slot); }

  onKey(event) {
    const handle = event.target.closest(".handle");
    if (!handle || event.ctrlKey || event.metaKey || event.altKey) return;
    const slot = Number(handle.dataset.slot);
    const act = { ArrowUp: () => this.up(slot), ArrowDown: () => this.down(slot), "=": () => this.tie(slot) }[event.key];
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  }

  render() {
    let above = 0;
    const rows = this.tiers.map((tier, index) => {
      const rank = above + 1;
      above += tier.length;
      return h("li", { class: tier.length > 1 ? "tier tied" : "tier", dataset: { index } },
        h("span", { class: "tier-rank", "aria-hidden": "true" }, tier.length > 1 ? `${rank}=` : String(rank)),
        h("div", { class: "tier-chips" }, tier.map((slot) => this.chip(slot))));
    });
    this.list.replaceChildren(...rows);
  }

  chip(slot) {
    const small = (kind, sign, act, off) => h("button", {
      type: "button", class: `${kind} chip-button`, dataset: { slot }, tabindex: "-1", disabled: off,
      "aria-label": t(`rank.${kind}`, { letter: letter(slot) }), title: t(`rank.${kind}`, { letter: letter(slot) }),
      onclick: act,
    }, sign);
    const at = tierOf(this.tiers, slot);
    const alone = this.tiers[at].length === 1;
    const handle = h("button", {
      type: "button", class: "handle", dataset: { slot }, title: t("rank.keys"), onclick: () => this.onPick(slot),
    }, h("span", { class: "sr-only" }, this.label(slot), ":"), h("span", { class: "grip", "aria-hidden": "true" }),
    h("b", { "aria-hidden": "true" }, letter(slot)),
    h("span", { class: "snippet", dir: this.snippets[slot].dir }, this.snippets[slot].text));
    handle.addEventListener("pointerdown", (event) => this.startDrag(event, slot, handle));
    return h("div", { class: "chip", dataset: { slot } }, handle,
      small("up", "↑", () => this.up(slot), alone && at === 0),
      small("down", "↓", () => this.down(slot), alone && at === this.tiers.length - 1),
      this.ties && small("tie", "=", () => this.tie(slot), this.count < 2));
  }

  startDrag(event, slot, handle) {
    if (event.button !== 0 || this.drag) return;
    const drag = { slot, x: event.clientX, y: event.clientY, active: false, target: null, pointer: event.pointerId };
    this.drag = drag;
    const chip = handle.closest(".chip");
    const move = (e) => { if (e.pointerId === drag.pointer) this.moveDrag(e, drag, chip); };
    const stop = (e) => {
      if (e.pointerId !== undefined && e.pointerId !== drag.pointer) return;
      handle.removeEventListener("pointermove", move);
      handle.removeEventListener("pointerup", stop);
      handle.removeEventListener("pointercancel", stop);
      document.removeEventListener("keydown", escape, true);
      cancelAnimationFrame(drag.frame);
      this.endDrag(drag, chip, e.type === "pointerup");
    };
    const escape = (e) => { if (e.key === "Escape") { e.preventDefault(); stop({ type: "cancel" }); } };
    handle.setPointerCapture(event.pointerId);
    handle.addEventListener("pointermove", move);
    handle.addEventListener("pointerup", stop);
    handle.addEventListener("pointercancel", stop);
    document.addEventListener("keydown", escape, true);
  }

  moveDrag(event, drag, chip) {
    if (!drag.active && Math.hypot(event.clientX - drag.x, event.clientY - drag.y) < DRAG_THRESHOLD) return;
    if (!drag.active) {
      drag.active = true;
      drag.scroll = window.scrollY;
      chip.classList.add("dragging");
      this.list.classList.add("has-drag");
      this.autoScroll(drag);
    }
    drag.at = event.clientY;
    const scrolled = window.scrollY - drag.scroll;
    chip.style.transform = `translate(${event.clientX - drag.x}px, ${event.clientY - drag.y + scrolled}px)`;
    this.mark((drag.target = this.targetAt(event.clientY, drag.slot)));
  }

  // Where a drop at this height goes: the middle of a tier ties, its edges and the gaps are places between.
  targetAt(y, slot) {
    const rows = [...this.list.children];
    for (const [index, row] of rows.entries()) {
      const box = row.getBoundingClientRect();
      if (y >= box.bottom) continue;
      const own = this.tiers[index].length === 1 && this.tiers[index][0] === slot;
      if (own && y >= box.top) return null;
      const part = (y - box.top) / box.height;
      if (this.ties && !own && part > 0.3 && part < 0.7) return { join: index };
      return { before: part < 0.5 ? index : index + 1 };
    }
    return { before: rows.length };
  }

  mark(target) {
    for (const [index, row] of [...this.list.children].entries()) {
      row.classList.toggle("drop-join", target?.join === index);
      row.classList.toggle("drop-before", target?.before === index);
      row.classList.toggle("drop-after", target?.before === index + 1 && index + 1 === this.tiers.length);
    }
  }

  autoScroll(drag) {
    const step = () => {
      if (drag.at < EDGE) window.scrollBy(0, -8);
      else if (drag.at > window.innerHeight - EDGE) window.scrollBy(0, 8);
      drag.frame = requestAnimationFrame(step);
    };
    drag.frame = requestAnimationFrame(step);
  }

  endDrag(drag, chip, dropped) {
    this.drag = null;
    chip.classList.remove("dragging");
    chip.style.transform = "";
    this.list.classList.remove("has-drag");
    this.mark(null);
    if (!dropped || !drag.active || !drag.target) return;
    const { join, before } = drag.target;
    const next = join === undefined ? placeBefore(this.tiers, drag.slot, before) : joinTier(this.tiers, drag.slot, join);
    this.focus(drag.slot);
    this.set(next, drag.slot);
  }
}
