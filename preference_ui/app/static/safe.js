// Second line of defence behind the server's renderer: only known elements and attributes enter the page, whatever
// the server sent. The text is parsed in an inert document, where nothing runs or loads.

const ELEMENTS = new Set(
  ("P BR HR EM STRONG S DEL CODE PRE BLOCKQUOTE UL OL LI H4 H5 H6 A SPAN DIV TABLE THEAD TBODY TR TH TD").split(" "),
);
const CLASSES = new Set(["invisible", "code", "code-language", "image", "address", "table", "math", "as-written"]);
const LINK = /^(https?:|mailto:)/i;

function copyOf(node) {
  if (node.nodeType === Node.TEXT_NODE) return document.createTextNode(node.data);
  if (node.nodeType !== Node.ELEMENT_NODE) return null;
  if (!ELEMENTS.has(node.nodeName)) return document.createTextNode(node.outerHTML);
  const copy = document.createElement(node.nodeName);
  if (CLASSES.has(node.className)) copy.className = node.className;
  if (node.title && node.className === "invisible") copy.title = node.title;
  if (node.className === "math") copy.dataset.display = node.dataset.display === "display" ? "display" : "inline";
  if (node.nodeName === "A" && LINK.test(node.getAttribute("href") || "")) {
    copy.href = node.getAttribute("href");
    copy.target = "_blank";
    copy.rel = "noopener noreferrer nofollow";
  }
  if (node.nodeName === "OL" && /^\d{1,9}$/.test(node.getAttribute("start") || "")) copy.start = node.getAttribute("start");
  const align = /^text-align: ?(left|right|center)$/.exec(node.getAttribute("style") || "");
  if (align && /^T[HD]$/.test(node.nodeName)) copy.style.textAlign = align[1];
  if (node.hasAttribute("tabindex")) copy.tabIndex = 0;
  for (const child of node.childNodes) {
    const inner = copyOf(child);
    if (inner) copy.append(inner);
  }
  return copy;
}

export function safeFragment(markup) {
  const parsed = new DOMParser().parseFromString(markup, "text/html");
  const fragment = document.createDocumentFragment();
  for (const child of parsed.body.childNodes) {
    const copy = copyOf(child);
    if (copy) fragment.append(copy);
  }
  return fragment;
}

let katex = null;
function loadKatex() {
  katex ??= new Promise((done) => {
    const script = document.createElement("script");
    script.src = "/static/vendor/katex/katex.min.js";
    script.onload = () => done(window.katex);
    script.onerror = () => done(null);
    document.head.append(script);
  });
  return katex;
}

// Set formulas; without the library, or where TeX is wrong, the source stays.
export async function typeset(root) {
  const formulas = [...root.querySelectorAll("span.math:not(.set)")];
  if (!formulas.length) return;
  const library = await loadKatex();
  if (!library) return;
  for (const formula of formulas) {
    // While the library was loading, another call may have set it: its text is three times the source then.
    if (formula.classList.contains("set")) continue;
    const source = formula.textContent;
    formula.classList.add("set");
    try {
      library.render(source, formula, {
        displayMode: formula.dataset.display === "display",
        throwOnError: true, trust: false, maxSize: 20, maxExpand: 200, strict: "ignore", errorColor: "var(--rk-bad)",
      });
    } catch {
      formula.textContent = source;
    }
  }
}

// One text of a model or a person: rendered, or exactly as written.
export function textBlock(text, plain, lang) {
  const block = document.createElement("div");
  block.className = plain ? "untrusted as-written" : "untrusted";
  block.dir = text.dir;
  if (lang) block.lang = lang;
  block.append(safeFragment(plain ? text.plain : text.html));
  return block;
}
