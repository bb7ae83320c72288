"use strict";
// Tables: a click on a heading sorts by it, a second one the other way round; cells without a value stay last.
const valueOf = (cell) => {
  const text = cell.textContent.trim().replaceAll(",", "");
  if (text === "–" || text === "") return null;
  if (!cell.classList.contains("number")) return Number.isNaN(Number(text)) ? text : Number(text);
  const [number, whole] = text.split("/").map(Number.parseFloat);  // "3/4" is a share, "0.87 ± 0.01" a mean
  return whole ? number / whole : number;
};
const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.addEventListener("click", (event) => {
    const heading = event.target.closest(".sort")?.closest("th");
    if (!heading) return;
    const descending = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const rows = Array.from(table.tBodies[0].rows, (row) => [valueOf(row.cells[heading.cellIndex]), row]);
    rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : (descending ? -1 : 1) * compare(a, b));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  });
}
// A table that does not fit becomes cards, so that nothing of it is out of sight.
const fit = () => {
  for (const table of document.querySelectorAll("table.fits")) {
    table.classList.remove("cards");
    table.classList.toggle("cards", table.offsetWidth > table.parentNode.clientWidth);
  }
};
addEventListener("resize", fit);
fit();
// On paper, everything is open.
addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
