// Before anything is drawn: the theme that was chosen, if any. Loaded in the head, so that nothing flashes.
(() => {
  try {
    const chosen = localStorage.getItem("theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // Storage may be switched off; then the system's theme holds.
  }
})();
