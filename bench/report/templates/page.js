// Sorting, filtering, the theme. Without it the page shows everything, in its own order.
"use strict";

const SHOWN_AT_ONCE = 200; // a browser lays out so many rows in no time, and thousands in seconds

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

const words = new Intl.Collator("en", { numeric: true });
const compare = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b : words.compare(String(a), String(b));

const tags = (cell) => cell.dataset.tags?.split("\n") ?? [cell.firstChild?.textContent.trim() ?? ""];

class Grid {
  constructor(form) {
    this.form = form;
    this.table = document.getElementById(form.dataset.for);
    this.body = this.table.tBodies[0];
    this.box = this.table.closest(".scroll");
    this.heads = [...this.table.tHead.rows[0].cells];
    this.status = form.querySelector("output");
    this.more = form.querySelector("button.more");
    this.texts = new Map([...this.body.rows].map((row) => [row, row.textContent.toLowerCase()]));
    this.limit = SHOWN_AT_ONCE;
    this.buttons = this.heads.map((head, column) => this.addButton(head, column));
    form.addEventListener("input", () => this.showFromTop());
    form.addEventListener("reset", () => setTimeout(() => this.showFromTop()));
    form.addEventListener("submit", (event) => event.preventDefault());
    this.more.addEventListener("click", () => this.show(Infinity));
    form.hidden = false;
    this.show();
  }

  addButton(head, column) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => this.sort(column));
    return button;
  }

  // On paper a header that is repeated shows text only: a browser leaves buttons out of it.
  useButtons(wanted) {
    this.heads.forEach((head, column) => {
      const button = this.buttons[column];
      if (wanted === head.contains(button)) return;
      if (wanted) button.append(...head.childNodes);
      head.replaceChildren(...(wanted ? [button] : button.childNodes));
    });
  }

  sort(column) {
    const head = this.heads[column];
    const down = head.getAttribute("aria-sort") === "ascending";
    this.heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = [...this.body.rows].map((row) => [sortKey(row.cells[column]), row]);
    const present = keyed.filter(([key]) => key !== null);
    present.sort(([a], [b]) => (down ? compare(b, a) : compare(a, b)));
    const absent = keyed.filter(([key]) => key === null);
    this.body.replaceChildren(...[...present, ...absent].map(([, row]) => row));
    this.showFromTop();
  }

  // Other rows are first now: a place further down would mean nothing.
  showFromTop() {
    this.show();
    this.box.scrollTop = 0;
  }

  // Show the rows that are asked for, up to the limit.
  show(limit = this.limit) {
    this.limit = limit;
    const asked = this.form.elements.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const choices = [...this.form.querySelectorAll("select")].filter((one) => one.value);
    const limits = [...this.form.querySelectorAll("input[data-limit]")].filter((one) => one.value);
    const keep = (row) => asked.every((word) => this.texts.get(row).includes(word))
      && choices.every((one) => tags(row.cells[one.dataset.column]).includes(one.value))
      && limits.every((one) => {
        const value = row.cells[one.dataset.limit].dataset.v;
        return value !== undefined && value !== "" && Number(value) <= Number(one.value);
      });
    let kept = 0;
    for (const row of this.body.rows) {
      const wanted = keep(row);
      kept += wanted;
      row.hidden = !wanted || kept > limit;
    }
    const beyond = Math.max(0, kept - limit);
    this.more.hidden = beyond === 0;
    this.more.textContent = `Show the other ${beyond}`;
    const first = beyond ? `, the first ${limit} shown` : "";
    this.status.textContent = `${kept} of ${this.texts.size} cells${first}`;
  }

  // Show all rows, whatever is asked for.
  reveal() {
    this.form.reset();
    this.show(Infinity);
  }
}

const grids = new Map([...document.querySelectorAll("form.filters")].map((form) => [form.dataset.for, new Grid(form)]));

// A link to a row that is not shown reveals it.
const follow = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const grid = grids.get(target?.closest("table.grid")?.id);
  if (!grid) return;
  if (target.hidden) grid.reveal();
  // A form that is reset shows its rows from the top a moment later.
  setTimeout(() => target.scrollIntoView({ block: "center" }));
};
addEventListener("hashchange", follow);
follow();

// A table or figure that goes on to the right says so.
const mark = (box) => box.classList.toggle("beyond", box.scrollWidth - box.clientWidth - box.scrollLeft > 2);
const sizes = new ResizeObserver((entries) => entries.forEach((entry) => mark(entry.target)));
document.querySelectorAll(".scroll").forEach((box) => {
  box.addEventListener("scroll", () => mark(box), { passive: true });
  sizes.observe(box);
});

addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
  grids.forEach((grid) => {
    grid.show(Infinity);
    grid.useButtons(false);
  });
});
addEventListener("afterprint", () => grids.forEach((grid) => grid.useButtons(true)));
