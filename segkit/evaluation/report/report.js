// Last of the three scripts: what they share, the tables, and the start.

const data = JSON.parse(document.getElementById("data").textContent);
const all = (root, query) => [...root.querySelectorAll(query)];
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const rgb = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
const mix = (a, b, share) => a.map((value, i) => value + (b[i] - value) * share);
const luminance = values => values.reduce((sum, value, i) => sum + [0.21, 0.72, 0.07][i] * (value / 255) ** 2.2, 0);
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// Tables: a heading's button sorts by its column; what has no value stays last.

function sortTable(table, heading) {
  const column = heading.cellIndex, descending = heading.ariaSort === "ascending";
  const value = row => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
  const rows = all(table, "tbody tr"), numeric = rows.some(row => "v" in row.cells[column].dataset);
  rows.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (!x || !y) return !x - !y;
    const order = numeric ? x - y : x.localeCompare(y);
    return descending ? -order : order;
  });
  all(table, "th[aria-sort]").forEach(th => { th.ariaSort = "none"; });
  heading.ariaSort = descending ? "descending" : "ascending";
  table.tBodies[0].append(...rows);
}
for (const heading of all(document, ".sortable th[aria-sort]")) {
  heading.firstElementChild.addEventListener("click", () => sortTable(heading.closest("table"), heading));
}

// The start.

const matrices = [];
all(document, ".subject").forEach((section, i) => {
  const subject = data.subjects[i], figure = section.querySelector(".matrix"), gallery = section.querySelector(".gallery");
  if (figure) matrices.push(new Matrix(figure, subject));
  if (gallery) new Gallery(gallery, subject);
});
for (const box of all(document, ".check")) {
  const inputs = all(box, "input"), list = box.querySelector("textarea");
  const copy = () => { list.value = inputs.filter(input => input.checked).map(input => input.value).join("\n"); };
  box.addEventListener("change", copy);
  copy();
}
for (const figure of all(document, ".class-curves")) {
  const select = figure.querySelector("select");
  select.addEventListener("input", () => all(figure, ".line[data-name]").forEach(line => {
    line.classList.toggle("chosen", line.dataset.name === select.value);
    line.classList.toggle("faded", Boolean(select.value) && line.dataset.name !== select.value);
  }));
}
const redraw = () => matrices.forEach(matrix => matrix.draw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
matchMedia("print").addEventListener("change", redraw);
