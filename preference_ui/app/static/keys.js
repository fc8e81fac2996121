// Keyboard shortcuts. Single keys can be switched off (WCAG 2.1.4); Ctrl+Enter needs a modifier and stays.

export function listenForKeys(page) {
  document.addEventListener("keydown", (event) => {
    if (!page.root.isConnected || page.root.offsetParent === null || document.querySelector("dialog[open]")) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      page.submit();
      return;
    }
    // What is on its way to the server must not change.
    if (page.busy || !page.shortcuts || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat) return;
    if (event.target.closest?.("input:not([type=checkbox]):not([type=radio]), textarea, select, [contenteditable=true]")) return;
    if (/^[1-9]$/.test(event.key)) {
      event.preventDefault();
      page.pick(Number(event.key) - 1);
      return;
    }
    const act = {
      b: () => page.task && page.setBad(!page.state.all_bad),
      n: () => page.note?.isConnected && page.note.focus(),
      s: () => page.skip(),
      u: () => page.undo(),
      "?": () => page.help(),
    }[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
  });
}
