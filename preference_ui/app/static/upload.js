// Bringing tasks in. A file is looked at by the server first; this page keeps it, and sends it once more to be stored.

import { h, t } from "./dom.js";
import { call } from "./net.js";
import { textBlock } from "./safe.js";

const KINDS = ".jsonl,.ndjson,.json,.csv";
const MEBIBYTE = 1024 * 1024;
const PATIENCE_MS = 60 * 60_000;
const QUIET_MS = 2_000;

const listed = (title, { lines, more }) => lines.length > 0 && [h("h3", {}, title),
  h("ul", { class: "lines" }, lines.map((line) => h("li", { dir: "auto" }, line)), more > 0 && h("li", {}, t("upload.more", { count: more })))];

// One of the first tasks: everything exactly as it stands in the file.
const taskCard = (task, number) => h("article", { class: "prompt" },
  h("h3", {}, t("upload.task", { number })),
  task.prompt.map((turn) => h("div", { class: `turn turn-${turn.role}` },
    h("p", { class: "who" }, t(`task.role.${turn.role}`)), textBlock(turn, true))),
  h("ol", { class: "answers-given", "aria-label": t("upload.responses") }, task.responses.map((text) => h("li", {}, textBlock(text, true)))));

export class TaskUpload {
  constructor(root, role) {
    Object.assign(this, { root, role, limit: Number(root.dataset.limit), file: null, seen: null });
    this.choice = h("input", { type: "file", id: "task-file", accept: KINDS, "aria-describedby": "task-file-hint", onchange: () => this.look() });
    this.status = h("p", { class: "status", role: "status" });
    this.bar = h("progress", { max: 1, "aria-label": t("upload.storing"), hidden: true });
    this.preview = h("div", { class: "preview" });
  }

  show() {
    const parts = this.role !== "admin" ? [h("p", {}, t("upload.admin_only"))] : [
      h("label", { for: "task-file" }, t("upload.choose")), this.choice,
      h("p", { class: "hint", id: "task-file-hint" }, t("upload.hint", { size: this.limit / MEBIBYTE })),
      this.status, this.bar, this.preview];
    this.root.replaceChildren(h("section", { class: "upload" }, h("h2", {}, t("upload.title")), parts));
  }

  say(message, kind = "") {
    this.status.textContent = message;
    this.status.dataset.kind = kind;
  }

  fail(error) {
    if (error.status === 401) { location.href = "/login?expired"; return; }
    const words = { data: error.detail, changed: t("error.changed"), role: t("error.role"), server: t("upload.failed"), too_large: this.tooLarge() };
    this.say(words[error.code] || t("upload.unsent"), "error");
  }

  tooLarge() {
    return t("upload.too_large", { size: this.limit / MEBIBYTE });
  }

  // Nothing else is chosen or stored while a file is on its way.
  async sending(message, path) {
    this.choice.disabled = true;
    this.say(message, "pending");
    try {
      return await call(`data/${path}`, this.file, PATIENCE_MS);
    } catch (error) {
      this.fail(error);
      return null;
    } finally {
      this.choice.disabled = false;
    }
  }

  async look() {
    [this.file] = this.choice.files;
    this.preview.replaceChildren();
    this.say("");
    if (!this.file) return;
    if (this.file.size > this.limit) { this.say(this.tooLarge(), "error"); return; }
    this.seen = await this.sending(t("upload.reading"), `preview?name=${encodeURIComponent(this.file.name)}`);
    if (this.seen) this.tell(this.seen);
  }

  tell(seen) {
    const wrong = seen.problems.lines.length + seen.problems.more;
    const counts = t("upload.counts", seen);
    this.say(wrong ? `${t("upload.wrong", { count: wrong })} ${counts}` : counts, wrong ? "error" : "");
    this.button = h("button", { type: "button", class: "button primary", onclick: () => this.store() }, t("upload.store", { count: seen.tasks }));
    this.preview.replaceChildren(...[
      listed(t("upload.problems"), seen.problems), listed(t("upload.left_out"), seen.left_out),
      seen.rankings > 0 && h("p", { class: "hint" }, t("upload.rankings")),
      !wrong && seen.tasks > 0 && this.button,
      ...seen.first.map((task, index) => taskCard(task, index + 1)),
    ].flat().filter(Boolean));
  }

  async store() {
    this.button.disabled = true;
    const watch = setTimeout(() => this.watch(), QUIET_MS);
    this.watching = true;
    const name = encodeURIComponent(this.file.name);
    const done = await this.sending(t("upload.storing"), `store?name=${name}&sha256=${this.seen.sha256}`);
    this.watching = false;
    clearTimeout(watch);
    this.bar.hidden = true;
    this.choice.value = "";
    this.preview.replaceChildren();
    if (!done) return;
    this.say(t("upload.done", done), "saved");
    this.preview.replaceChildren(...[listed(t("upload.left_out"), done.left_out)].flat().filter(Boolean));
  }

  // How far a long import is, every other second.
  async watch() {
    while (this.watching) {
      const { done, total } = await call("data/progress").catch(() => ({}));
      if (this.watching && total) {
        Object.assign(this.bar, { hidden: false, max: total, value: done });
        this.say(t("upload.progress", { done, total }), "pending");
      }
      await new Promise((after) => setTimeout(after, QUIET_MS));
    }
  }
}
