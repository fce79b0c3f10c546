"use strict";
// What Bokeh does not do: sort the table, filter by variant everywhere at once, and keep the reader's place when a live
// page reads itself again.
(() => {
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const boxes = all("input[name=group]");
  const refresh = Number(document.body.dataset.refresh || 0);
  const key = "compare " + location.pathname;
  const roots = [];

  const isShown = (g) => boxes[g].checked;

  function filterPlot(root) {
    for (const renderer of root.renderers) {
      if (renderer.name !== "by group") continue;
      const groups = Array.from(renderer.data_source.get_column("g"));
      renderer.view.filter.booleans = groups.map(isShown);
    }
  }

  function filterAll() {
    for (const element of all("[data-g]")) element.hidden = !isShown(Number(element.dataset.g));
    const count = boxes.filter((box) => box.checked).length;
    document.getElementById("shown").textContent = `${count} of ${boxes.length} shown`;
    roots.forEach(filterPlot);
  }

  // Figures are drawn when they come near the screen, and the rest one by one when nothing else is to be done.
  const waiting = new Map(all("script[data-for]").map((script) => [script.dataset.for, script]));
  async function draw(id) {
    const script = waiting.get(id);
    if (!script) return;
    waiting.delete(id);
    const views = await Bokeh.embed.embed_item(JSON.parse(script.textContent));
    const root = views.roots ? views.roots[0].model : [...views][0].model;
    roots.push(root);
    if (boxes.some((box) => !box.checked)) filterPlot(root);
    script.remove();
    document.body.dataset.drawn = roots.length;
  }
  const near = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target.id)),
    { rootMargin: "400px" },
  );
  all(".plot").forEach((plot) => near.observe(plot));
  const idle = window.requestIdleCallback || ((then) => setTimeout(then, 50));
  const drawRest = () => idle(async () => {
    const next = waiting.keys().next();
    if (next.done) return;
    await draw(next.value);
    drawRest();
  });

  function sort(table, column, direction) {
    const body = table.tBodies[0];
    const value = (row) => row.cells[column].dataset.value;
    const sign = direction === "ascending" ? 1 : -1;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // what is unknown comes last either way
      const [m, n] = [Number(x), Number(y)];
      return sign * (Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y, "en", { numeric: true }) : m - n);
    };
    body.append(...[...body.rows].sort(compare));
    [...table.tHead.rows[0].cells].forEach((cell, i) => cell.setAttribute("aria-sort", i === column ? direction : "none"));
  }
  for (const table of all("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const button = cell.querySelector("button");
      button.addEventListener("click", () => {
        const now = cell.getAttribute("aria-sort");
        const turned = now === "ascending" ? "descending" : "ascending";
        sort(table, column, now === "none" ? button.dataset.first || "ascending" : turned);
        save();
      });
    });
  }

  const numbers = document.getElementById("numbers");
  const showNumbers = () => document.body.classList.toggle("show-r", Boolean(numbers && numbers.checked));
  const paused = document.getElementById("paused");

  function save() {
    const sorted = all(".sortable thead th").findIndex((cell) => cell.getAttribute("aria-sort") !== "none");
    const state = {
      hidden: boxes.filter((box) => !box.checked).map((box) => box.dataset.label),
      open: all("details").map((details) => details.open),
      sorted,
      direction: sorted < 0 ? "" : all(".sortable thead th")[sorted].getAttribute("aria-sort"),
      numbers: Boolean(numbers && numbers.checked),
      paused: Boolean(paused && paused.checked),
      scroll: scrollY,
    };
    try { sessionStorage.setItem(key, JSON.stringify(state)); } catch { /* storage may be switched off for files */ }
  }

  function restore() {
    let state = null;
    try { state = JSON.parse(sessionStorage.getItem(key)); } catch { /* as above */ }
    if (!state) return null;
    boxes.forEach((box) => { box.checked = !state.hidden.includes(box.dataset.label); });
    const details = all("details");
    if (details.length === state.open.length) details.forEach((one, i) => { one.open = state.open[i]; });
    const table = document.querySelector("table.sortable");
    if (state.direction && table.tHead.rows[0].cells[state.sorted]) sort(table, state.sorted, state.direction);
    if (numbers) numbers.checked = state.numbers;
    if (paused) paused.checked = state.paused;
    return state.scroll;
  }

  document.getElementById("filter").addEventListener("submit", (event) => event.preventDefault());
  boxes.forEach((box) => box.addEventListener("change", () => { filterAll(); save(); }));
  all("[data-all]").forEach((button) => button.addEventListener("click", () => {
    boxes.forEach((box) => { box.checked = button.dataset.all === "1"; });
    filterAll();
    save();
  }));
  if (numbers) numbers.addEventListener("change", () => { showNumbers(); save(); });
  if (paused) paused.addEventListener("change", save);

  if (matchMedia("(max-width: 40rem)").matches) document.querySelector("#filter details").open = false;
  const scroll = refresh ? restore() : null;
  showNumbers();
  filterAll();
  if (scroll !== null) { // once everything has the height that it had
    history.scrollRestoration = "manual";
    scrollTo({ top: scroll, behavior: "instant" });
  }
  drawRest();
  if (refresh) {
    addEventListener("pagehide", save);
    setInterval(() => { if (!paused.checked && !document.hidden) location.reload(); }, refresh * 1000);
  }
})();
