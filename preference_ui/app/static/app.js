// Entry: takes over the widgets that the Gradio page leaves for us, and starts them with one reading from the server.

import { tellOther } from "./dialogs.js";
import { h, remember, setTexts, t } from "./dom.js";
import { AnswerList } from "./history.js";
import { call, speakFor } from "./net.js";
import { RankingPage } from "./ranking.js";
import { textBlock, typeset } from "./safe.js";
import { TaskUpload } from "./upload.js";

const onLeadPages = location.pathname.startsWith("/lead/");
const THEMES = ["system", "light", "dark"];
const dark = matchMedia("(prefers-color-scheme: dark)");

function applyTheme() {
  const wish = remember.get("rlhf:theme") || "system";
  document.body.classList.toggle("dark", wish === "dark" || (wish === "system" && dark.matches));
}
applyTheme();
dark.addEventListener("change", applyTheme);
// Gradio sets its own idea of the theme when it starts.
new MutationObserver(() => {
  const wish = remember.get("rlhf:theme") || "system";
  const want = wish === "dark" || (wish === "system" && dark.matches);
  if (document.body.classList.contains("dark") !== want) applyTheme();
}).observe(document.body, { attributes: true, attributeFilter: ["class"] });

const picker = (label, options, value, onPick, name) => h("label", { class: `picker ${name}` },
  h("span", { class: "sr-only" }, label),
  h("select", { onchange: (event) => onPick(event.target.value), title: label },
    Object.entries(options).map(([code, text]) => {
      const option = h("option", { value: code }, text);
      option.selected = code === value;
      return option;
    })));

class Shell {
  constructor(boot) {
    this.boot = boot;
    this.line = h("span", { class: "progress-line" });
    this.bar = h("progress", { max: 1, "aria-label": t("progress.label") });
  }

  showProgress(counts) {
    this.line.textContent = t(counts.round ? "progress.round" : "progress.line", counts);
    this.line.dataset.today = counts.today;
    this.bar.max = Math.max(1, counts.total);
    this.bar.value = counts.done;
  }

  header(root) {
    const { boot } = this;
    const lead = boot.me.role !== "annotator";
    root.replaceChildren(h("header", { class: "top" },
      h("h1", {}, h("img", { src: "/static/icon.svg", alt: "", width: 26, height: 26 }), " ", boot.project),
      onLeadPages ? h("span", { class: "grow" }) : h("div", { class: "progress" }, this.line, this.bar),
      h("nav", { class: "tools", "aria-label": t("app.title") },
        onLeadPages ? h("a", { class: "button", href: `/${boot.locale}/` }, t("nav.annotate"))
          : lead && h("a", { class: "button", href: `/lead/${boot.locale}/` }, t("nav.lead")),
        picker(t("nav.language"), boot.locales, boot.locale, (locale) => this.setLocale(locale), "language"),
        picker(t("nav.theme"), Object.fromEntries(THEMES.map((name) => [name, t(`nav.theme.${name}`)])),
          remember.get("rlhf:theme") || "system", (name) => { remember.set("rlhf:theme", name); applyTheme(); }, "theme"),
        !onLeadPages && h("button", { type: "button", class: "button help", onclick: () => this.ranking?.help() }, t("nav.help")),
        h("details", { class: "account" }, h("summary", { class: "button", title: t("nav.user", { name: boot.me.handle }) }, t("nav.account")),
          h("div", { class: "account-menu" }, h("p", { class: "hint" }, t("nav.user", { name: boot.me.handle })),
            h("a", { class: "button", href: "/password" }, t("nav.password")),
            h("form", { method: "post", action: "/logout", onsubmit: () => this.ranking?.drafts.saveAndLeave() },
              h("button", { type: "submit", class: "button" }, t("nav.logout"))))))));
  }

  async setLocale(locale) {
    await this.ranking?.saveDraft();
    await call("settings", { locale });
    location.href = `${onLeadPages ? "/lead" : ""}/${locale}/`;
  }

  startRanking(root) {
    this.ranking = new RankingPage(root, this.boot, (counts) => this.showProgress(counts));
    this.ranking.start();
  }

  async guideline(root) {
    const guide = await call("guideline");
    this.ranking?.news.saw(guide.version);
    root.replaceChildren(h("section", { class: "reading-page" },
      h("div", { class: "section-head" }, h("h2", {}, t("guideline.title")),
        h("span", { class: "badge" }, t("guideline.version", { version: guide.version }))),
      guide.empty ? h("p", {}, t("guideline.empty")) : textBlock(guide, false)));
    typeset(root);
  }

  async history(root) {
    await new AnswerList(root, this.boot.lang, (lease) => this.change(lease)).load();
  }

  upload(root) {
    new TaskUpload(root, this.boot.me.role).show();
  }

  // Somebody else has logged in in this browser: whatever is done here would be stored as theirs.
  async giveWay(name) {
    if (this.gone) return;
    this.gone = true;
    this.ranking?.abandon();
    await tellOther(name);
    location.href = "/";
  }

  async change(lease) {
    await this.ranking.revise(lease);
    document.querySelector('[role="tab"]')?.click();
    requestAnimationFrame(() => this.ranking.top?.focus({ preventScroll: true }));
  }
}

// Widgets inside a tab are read again whenever their tab is opened.
function refreshWhenShown(root, load) {
  new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) load().catch(() => { if (!root.childElementCount) root.textContent = t("state.unreachable"); });
  }).observe(root);
}

async function boot() {
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await call("boot");
    } catch (error) {
      if (error.status === 401) { location.href = "/login?expired"; return new Promise(() => {}); }
      await new Promise((done) => setTimeout(done, Math.min(3_000, 500 * 2 ** attempt)));
    }
  }
}

const ready = boot().then((values) => {
  setTexts(values.texts);
  document.documentElement.lang = values.lang;
  document.documentElement.dir = "ltr";
  const shell = new Shell(values);
  speakFor(values.me.id, (name) => shell.giveWay(name));
  return shell;
});

window.rlhfMount = async (element) => {
  const root = element.querySelector?.("[data-widget]") ?? element;
  if (root.dataset.taken) return;
  root.dataset.taken = "1";
  const shell = await ready;
  const kind = root.dataset.widget;
  if (kind === "header") shell.header(root);
  else if (kind === "ranking") shell.startRanking(root);
  else if (kind === "upload") shell.upload(root);
  else refreshWhenShown(root, () => shell[kind](root));
};
// Candidates that a person asked for are there. Whoever went on ranking meanwhile gets them after the next answer.
window.rlhfNewTask = async () => {
  const { ranking } = await ready;
  if (!ranking || ranking.busy || ranking.root.offsetParent !== null) return;
  await ranking.saveDraft();
  await ranking.guarded(() => ranking.load("task", { asked: true }));
  document.querySelector('[role="tab"]')?.click();
};
// The lead's pages get their texts from Gradio, already rendered; only formulas are left to set.
if (onLeadPages) new MutationObserver(() => typeset(document.body)).observe(document.body, { childList: true, subtree: true });
for (const element of window.rlhfMounts || []) window.rlhfMount(element);
