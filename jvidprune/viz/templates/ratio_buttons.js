document.getElementById("ratios").addEventListener("click", event => {
  const ratio = event.target.dataset.ratio; if (!ratio) return;
  for (const button of event.currentTarget.children) { const on = button.dataset.ratio === ratio; button.classList.toggle("on", on); button.setAttribute("aria-pressed", on) }
  for (const table of document.querySelectorAll(".scroll[data-ratio]")) table.hidden = table.dataset.ratio !== ratio;
});
