// Sorting, filtering, the theme. Without it the page shows everything, in its own order.
"use strict";

const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const shown = root.dataset.theme || (dark.matches ? "dark" : "light");
  root.dataset.theme = shown === "dark" ? "light" : "dark";
});

// What a cell is sorted by: its value where it has one, else its text; "" means that there is none.
const sortKey = (cell) => {
  const raw = cell.dataset.v ?? cell.textContent.trim();
  if (raw === "") return null;
  const number = Number(raw);
  return Number.isNaN(number) ? raw : number;
};

const compare = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), "en", { numeric: true });

function makeSortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = [...body.rows].map((row) => [sortKey(row.cells[column]), row]);
      const present = keyed.filter(([key]) => key !== null);
      present.sort(([a], [b]) => (down ? compare(b, a) : compare(a, b)));
      const absent = keyed.filter(([key]) => key === null);
      body.replaceChildren(...[...present, ...absent].map(([, row]) => row));
    });
  });
}

function makeFilterable(form) {
  const table = document.getElementById(form.dataset.for);
  const rows = [...table.tBodies[0].rows].map((row) => [row, row.textContent.toLowerCase()]);
  const status = form.querySelector("output");
  const tags = (cell) => cell.dataset.tags?.split("\n") ?? [cell.firstChild?.textContent.trim() ?? ""];
  const apply = () => {
    const words = form.elements.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const choices = [...form.querySelectorAll("select")].filter((one) => one.value);
    const limits = [...form.querySelectorAll("input[data-limit]")].filter((one) => one.value);
    let shown = 0;
    for (const [row, text] of rows) {
      const keep = words.every((word) => text.includes(word))
        && choices.every((one) => tags(row.cells[one.dataset.column]).includes(one.value))
        && limits.every((one) => {
          const value = row.cells[one.dataset.limit].dataset.v;
          return value !== undefined && value !== "" && Number(value) <= Number(one.value);
        });
      row.hidden = !keep;
      shown += keep;
    }
    status.textContent = `${shown} of ${rows.length} cells`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
}

// A link to a row that is filtered out shows all rows again.
addEventListener("hashchange", () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const table = target?.closest("table.grid");
  if (!target?.hidden || !table) return;
  document.querySelector(`form[data-for="${table.id}"]`).reset();
  setTimeout(() => target.scrollIntoView({ block: "center" }));
});

document.querySelectorAll("table.grid").forEach(makeSortable);
document.querySelectorAll("form.filters").forEach(makeFilterable);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
