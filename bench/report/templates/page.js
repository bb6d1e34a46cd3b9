// Sorting, filtering, CSV, what figures tell a pointer, the theme. Without it the page shows everything, in its own order.
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
    this.more = form.querySelector("button.more-rows");
    this.texts = new Map([...this.body.rows].map((row) => [row, row.textContent.toLowerCase()]));
    this.limit = SHOWN_AT_ONCE;
    this.buttons = this.heads.map((head, column) => this.addButton(head, column));
    form.addEventListener("input", () => this.showFromTop());
    form.addEventListener("reset", () => setTimeout(() => this.showFromTop()));
    form.querySelector("button.csv").addEventListener("click", () => this.save());
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

  // Save what is asked for, all columns of it: numbers as they are sorted, texts as they are shown.
  save() {
    const quoted = (text) => `"${text.trim().replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"`;
    const value = (cell) => {
      const raw = cell.dataset.v ?? "";
      return raw !== "" && !Number.isNaN(Number(raw)) ? raw : quoted(cell.firstChild?.textContent ?? "");
    };
    const rows = [...this.body.rows].filter((row) => this.asked(row));
    const lines = [this.heads.map((head) => quoted(head.textContent)), ...rows.map((row) => [...row.cells].map(value))];
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([`${lines.join("\r\n")}\r\n`], { type: "text/csv" }));
    link.download = `${this.table.id}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  // Whether a row has all that is asked for.
  asked(row) {
    const words = this.form.elements.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const choices = [...this.form.querySelectorAll("select")].filter((one) => one.value);
    const limits = [...this.form.querySelectorAll("input[data-limit]")].filter((one) => one.value);
    return words.every((word) => this.texts.get(row).includes(word))
      && choices.every((one) => tags(row.cells[one.dataset.column]).includes(one.value))
      && limits.every((one) => {
        const value = row.cells[one.dataset.limit].dataset.v;
        return value !== undefined && value !== "" && Number(value) <= Number(one.value);
      });
  }

  // Show the rows that are asked for, up to the limit.
  show(limit = this.limit) {
    this.limit = limit;
    this.table.classList.toggle("brief", !this.form.elements.whole?.checked);
    let kept = 0;
    for (const row of this.body.rows) {
      const wanted = this.asked(row);
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

// The search page: sections that hold every word.
const find = document.getElementById("find");
const sections = [...document.querySelectorAll("#found > li")];
const search = () => {
  const wanted = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const one of sections) {
    const text = `${one.textContent} ${one.dataset.text}`.toLowerCase();
    one.hidden = !wanted.every((word) => text.includes(word));
  }
  document.querySelector("output").textContent = `${sections.filter((one) => !one.hidden).length} sections`;
};
find?.addEventListener("input", search);

// A link to a row that is not shown reveals it.
const follow = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const folded = target?.closest("details");
  if (folded) folded.open = true;
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

// What a mark of a figure stands for, at the pointer.
const tip = document.getElementById("tip");
const told = (event) => event.target.closest("figure [aria-roledescription]:not([aria-roledescription='axis'], [aria-roledescription='legend']), .flame svg svg");
document.addEventListener("pointerover", (event) => {
  tip.textContent = told(event)?.getAttribute("aria-label") ?? "";
  tip.hidden = tip.textContent === "";
});
document.addEventListener("pointermove", (event) => {
  tip.style.left = `${Math.max(0, Math.min(event.pageX + 12, root.clientWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${event.pageY + 16}px`;
});

// A box of a flame that is pressed becomes as wide as all, with what it holds and what holds it.
document.querySelectorAll(".flame > svg").forEach((flame) => flame.addEventListener("click", (event) => {
  const place = (box) => [Number(box.dataset.left), Number(box.dataset.width)];
  const pressed = event.target.closest(".flame svg svg");
  const [left, width] = pressed ? place(pressed) : [0, 100];
  for (const box of flame.querySelectorAll("svg")) {
    const [first, own] = place(box);
    const from = Math.max(first, left);
    const to = Math.min(first + own, left + width);
    box.setAttribute("x", `${(100 * (from - left)) / width}%`);
    box.setAttribute("width", `${(100 * Math.max(0, to - from)) / width}%`);
  }
}));

// Boxes whose name holds a word are marked, and the share of the peak that they hold together is told.
document.querySelectorAll("form.finder").forEach((form) => {
  const [field, told] = [form.querySelector("input"), form.querySelector("output")];
  const flames = [...form.closest("section").querySelectorAll(".flame > svg")];
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  field.addEventListener("input", () => {
    const word = field.value.trim().toLowerCase();
    const shares = flames.map((flame) => {
      let [share, end] = [0, 0];
      for (const box of flame.querySelectorAll("svg")) {
        const found = word !== "" && box.querySelector("text").firstChild.textContent.toLowerCase().includes(word);
        box.classList.toggle("found", found);
        const [left, width] = [Number(box.dataset.left), Number(box.dataset.width)];
        if (!found || left + width <= end) continue; // within one that was counted
        [share, end] = [share + width, left + width];
      }
      return `${share.toFixed(1)} %`;
    });
    told.textContent = word === "" ? "" : `${shares.join("; ")} of the peak`;
  });
});

addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
  grids.forEach((grid) => {
    grid.show(Infinity);
    grid.useButtons(false);
  });
});
addEventListener("afterprint", () => grids.forEach((grid) => grid.useButtons(true)));
