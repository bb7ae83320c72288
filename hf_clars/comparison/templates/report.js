"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const digits = (value) => value === null ? "–" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(4));

// Tables: a click on a heading sorts by it, a second one the other way round; cells without a value stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.tHead.addEventListener("click", (event) => {
    const heading = event.target.closest(".sort")?.closest("th");
    if (!heading) return;
    const descending = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = (row) => {
      const cell = row.cells[heading.cellIndex];
      const text = cell.dataset.value ?? cell.textContent.trim();
      const value = Number(text);
      return text === "" || text === "–" ? null : Number.isNaN(value) ? text : value;
    };
    const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    const rows = Array.from(body.rows, (row) => [key(row), row]);
    rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : (descending ? -1 : 1) * compare(a, b));
    body.append(...rows.map(([, row]) => row));
  });
}

// Curves: the legend shows and hides groups; pointing at a place (or arrow keys) says the values there.
const hidden = new Set();
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const style = Number(button.dataset.style);
    const show = hidden.delete(style);
    if (!show) hidden.add(style);
    button.setAttribute("aria-pressed", String(show));
    for (const part of document.querySelectorAll(`.plot .s-${style}`)) part.classList.toggle("hidden", !show);
  });
}
const swatches = new Map(Array.from(document.querySelectorAll(".legend button"), (b) => [Number(b.dataset.style), b.querySelector("svg")]));
for (const figure of document.querySelectorAll(".chart")) {
  const chart = data.charts[figure.dataset.axis];
  const plot = figure.querySelector(".plot"), cursor = figure.querySelector(".cursor"), values = figure.querySelector(".values");
  let share = 0;
  const say = () => {
    let x = chart.left + share * (chart.right - chart.left);
    const measured = chart.series.find((s) => !hidden.has(s.style))?.x ?? [];
    x = measured.reduce((best, other) => Math.abs(other - x) < Math.abs(best - x) ? other : best, measured[0] ?? x);
    cursor.hidden = false;
    cursor.style.left = `${100 * (x - chart.left) / (chart.right - chart.left)}%`;
    const found = chart.series.filter((s) => !hidden.has(s.style) && x >= s.x[0] && x <= s.x[s.x.length - 1]).map((s) => {
      let i = s.x.findIndex((other) => other >= x);
      if (i > 0 && x - s.x[i - 1] < s.x[i] - x) i -= 1;
      return [s, s.mean[i], s.std?.[i]];
    });
    found.sort((a, b) => b[1] - a[1]);
    const heading = document.createElement("b");
    heading.textContent = `${digits(x)} ${chart.unit}`;
    values.replaceChildren(heading, ...found.slice(0, 8).map(([s, mean, std]) => {
      const span = document.createElement("span");
      if (swatches.has(s.style)) span.append(swatches.get(s.style).cloneNode(true));
      span.append(`${s.name} ${digits(mean)}${std ? ` ± ${+std.toPrecision(2)}` : ""}`);
      return span;
    }));
  };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    say();
  });
  plot.addEventListener("pointerleave", () => { cursor.hidden = true; });
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
    if (!step) return;
    event.preventDefault();
    share = Math.min(1, Math.max(0, share + step));
    say();
  });
}

// Heat maps: pointing at a cell says what is in it.
document.querySelectorAll(".heat").forEach((figure) => {
  const map = data.heat[Number(figure.dataset.heat)];
  const image = figure.querySelector("img"), value = figure.querySelector(".heat-value");
  image.addEventListener("pointermove", (event) => {
    const box = image.getBoundingClientRect();
    const within = (part, size, count) => Math.min(count - 1, Math.max(0, Math.floor(part / size * count)));
    const row = within(event.clientY - box.top, box.height, map.layers.length);
    const column = within(event.clientX - box.left, box.width, map.steps.length);
    value.textContent = `${map.layers[row]}, step ${map.steps[column].toLocaleString("en")}: ${map.symbol} = ${map.values[row][column] ?? "not measured"}`;
  });
  image.addEventListener("pointerleave", () => { value.textContent = "optimizer step"; });
});

// On paper, everything is open.
addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
