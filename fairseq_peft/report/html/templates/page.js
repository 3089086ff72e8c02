"use strict";
// Without this script the page shows the same; it only sorts, filters, switches colours and shows
// the values of points.

const root = document.documentElement;
const theme = document.getElementById("theme");

function remembered(value) {
  try { // some browsers keep nothing for a page of a folder
    if (value) localStorage.setItem("theme", value);
    return localStorage.getItem("theme");
  } catch { return null; }
}

function isDark() {
  return (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
}

function nameTheme() { theme.textContent = isDark() ? "Light colours" : "Dark colours"; }

if (["light", "dark"].includes(remembered())) root.dataset.theme = remembered();
theme.hidden = false;
theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  remembered(root.dataset.theme);
  nameTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
nameTheme();

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll(".conclusions")) details.open = true;
});

// ---- tables ----------------------------------------------------------------------------------

const order = new Intl.Collator("en", { numeric: true });

function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === ""); // what is missing comes last, either way
  const [x, y] = [Number(a), Number(b)];
  return sign * (Number.isNaN(x) || Number.isNaN(y) ? order.compare(a, b) : x - y);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    // numbers: the largest first
    const first = head.classList.contains("words") ? "ascending" : "descending";
    const second = first === "ascending" ? "descending" : "ascending";
    const now = head.getAttribute("aria-sort") === first ? second : first;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", now);
    const sign = now === "ascending" ? 1 : -1;
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => compare(a.cells[column].dataset.value, b.cells[column].dataset.value, sign));
    table.tBodies[0].append(...rows);
  }));
}

for (const input of document.querySelectorAll("input[data-table]")) {
  input.closest(".filter").hidden = false;
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of document.getElementById(input.dataset.table).tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}

// ---- values of points ------------------------------------------------------------------------

const tip = document.getElementById("tip");
const REACH = 22; // pixels from the pointer
let chosen = null;

function show(mark) {
  if (mark === chosen) return;
  if (chosen) chosen.classList.remove("chosen");
  chosen = mark;
  tip.hidden = !mark;
  if (!mark) return;
  mark.classList.add("chosen");
  tip.textContent = mark.getAttribute("aria-label");
  place();
}

function place() {
  if (!chosen) return;
  const box = chosen.getBoundingClientRect();
  const [width, height] = [tip.offsetWidth, tip.offsetHeight];
  const left = Math.min(Math.max(4, box.left + box.width / 2 - width / 2), innerWidth - width - 4);
  const top = box.top - height - 8 < 4 ? box.bottom + 8 : box.top - height - 8;
  tip.style.transform = `translate(${left}px, ${top}px)`;
}

function nearest(marks, event) {
  let best = null, least = REACH;
  for (const mark of marks) {
    const box = mark.getBoundingClientRect();
    const dx = Math.max(box.left - event.clientX, 0, event.clientX - box.right);
    const dy = Math.max(box.top - event.clientY, 0, event.clientY - box.bottom);
    const away = Math.hypot(dx, dy) + 0.01 * Math.hypot(box.left - event.clientX, box.top - event.clientY);
    if (away < least) [best, least] = [mark, away];
  }
  return best;
}

for (const plot of document.querySelectorAll(".plot")) {
  const marks = [...plot.querySelectorAll("[role='graphics-symbol'][aria-label]:not([aria-roledescription='axis'])")];
  plot.addEventListener("pointermove", (event) => show(nearest(marks, event)));
  plot.addEventListener("pointerdown", (event) => show(nearest(marks, event)));
  plot.addEventListener("pointerleave", () => show(null));
  plot.addEventListener("blur", () => show(null));
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") show(null);
    if (!step || !marks.length) return;
    event.preventDefault();
    const at = marks.indexOf(chosen);
    show(marks[at < 0 ? (step > 0 ? 0 : marks.length - 1) : (at + step + marks.length) % marks.length]);
  });
}
addEventListener("scroll", place, { passive: true });
