// The list of episodes: a filter, and rows of which only those in sight exist.

let selected = null; // the key of an episode

function episodesView(main) {
  const list = el("div", { class: "list", role: "listbox", tabindex: "0", id: "list", "aria-label": "Episodes" });
  const count = el("span", { id: "count" });
  main.replaceChildren(
    el("h1", { class: "unseen", tabindex: "-1" }, "Episodes"),
    el("div", { class: "browse" },
      filterPanel(() => changedFilters(list, count)),
      el("section", { "aria-label": "Episodes" },
        el("div", { class: "bar" }, count, el("span", { class: "spring" }),
          el("span", { class: "muted small hint" }, el("kbd", {}, "j"), " ", el("kbd", {}, "k"), " move, ", el("kbd", {}, "Enter"), " opens")),
        list)));
  list.addEventListener("scroll", () => drawRows(list), { passive: true });
  list.addEventListener("keydown", (event) => listKey(list, event));
  list.addEventListener("click", (event) => clickedRow(event));
  new ResizeObserver(() => drawRows(list)).observe(list);
  showCount(count);
  showSelected(list);
  performance.mark("episodes-usable");
  return {
    refresh: () => {
      applyFilters();
      showCount(count);
      drawRows(list);
    },
    move: (by) => moveSelection(list, by),
    open: () => openSelected(),
  };
}

function showCount(node) {
  const total = store.index.file.length;
  node.textContent = shown.length === total ? plural(total, "episode") : `${shown.length.toLocaleString("en")} of ${plural(total, "episode")}`;
}

function changedFilters(list, count) {
  applyFilters();
  history.replaceState(null, "", `#/episodes${filterQuery()}`);
  showCount(count);
  list.scrollTop = 0;
  drawRows(list);
  say(count.textContent);
}

function rowHeight() {
  return matchMedia("(max-width: 40rem)").matches ? 84 : 56;
}

function drawRows(list) {
  const height = rowHeight();
  const first = Math.max(0, Math.floor(list.scrollTop / height) - 4);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / height) + 4);
  const space = el("div", { role: "presentation", style: { height: `${shown.length * height}px` } });
  const rows = shown.slice(first, last).map((i, at) => episodeRow(i, first + at, height));
  const none = shown.length ? null : el("p", { class: "empty" }, store.index.file.length ? "No episode matches these filters." : "This folder holds no episodes.");
  list.replaceChildren(...[space, ...rows, none].filter(Boolean));
  const active = byId(`row-${selected}`);
  if (active) list.setAttribute("aria-activedescendant", active.id);
  else list.removeAttribute("aria-activedescendant");
}

function episodeRow(i, at, height) {
  const key = keyOf(i);
  return el("div",
    {
      class: "row", role: "option", id: `row-${key}`, "data-key": key, style: { top: `${at * height}px` },
      "aria-selected": String(key === selected), "aria-posinset": at + 1, "aria-setsize": shown.length,
    },
    el("span", { class: "what cut muted" }, setName(i)),
    el("span", { class: "task", title: taskName(i) }, el("span", { class: "cut" }, shortTask(i)), el("span", { class: "muted" }, `#${store.index.sample[i]}`)),
    el("span", { class: "scores" }, scoresOf(i)),
    el("span", { class: "outcome" }, outcomeChip(outcomeOf(i))),
    el("span", { class: "flags" }, flagChips(i)));
}

function scoresOf(i) {
  const agents = ofActions("agent", i);
  return ofActions("score", i).map((score, at) => scoreMark(score, store.index.agents[agents[at]]));
}

function scoreMark(score, agent) {
  const said = score === null ? `${agent}: no score` : `${agent}: ${number(score, 1)}`;
  if (score === null) return el("span", { class: "score none", title: said }, "–", el("span", { class: "unseen" }, said));
  return el("span", { class: "score", title: said, style: { "--tint": tint(score) } }, number(score, 1));
}

function outcomeChip(outcome) {
  if (outcome === "none") return chip("–", "", "not graded");
  return outcome === "right" ? chip("✓ right", "good") : chip("✗ wrong", "bad");
}

const MARKS = { judge: "judge ≠", credit: "credit ≠", missing: "no verdict", tools: "tool error", failed: "ended early" };

function flagChips(i) {
  return Object.keys(MARKS).filter((name) => store.index[name][i] > 0).map((name) => chip(MARKS[name], "warn", FLAGS[name]));
}

function clickedRow(event) {
  const row = event.target.closest(".row");
  if (!row) return;
  selected = row.dataset.key;
  openSelected();
}

function listKey(list, event) {
  const page = Math.max(1, Math.floor(list.clientHeight / rowHeight()) - 1);
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -shown.length, End: shown.length };
  if (event.key in moves) {
    event.preventDefault();
    moveSelection(list, moves[event.key]);
  }
}

function moveSelection(list, by) {
  if (!shown.length) return;
  let at = shown.indexOf(selected === null ? -1 : episodeOf(selected));
  if (at < 0 && by < 0) at = shown.length;
  const next = Math.min(shown.length - 1, Math.max(0, at + by));
  selected = keyOf(shown[next]);
  showSelected(list);
  list.focus({ preventScroll: true });
}

function showSelected(list) {
  const at = selected === null ? -1 : shown.indexOf(episodeOf(selected));
  const height = rowHeight();
  if (at >= 0 && at * height < list.scrollTop) list.scrollTop = at * height;
  drawRows(list);
  if (at >= 0 && (at + 1) * height > list.scrollTop + list.clientHeight) {
    list.scrollTop = (at + 1) * height - list.clientHeight;
    drawRows(list);
  }
}

function openSelected() {
  const key = selected ?? (shown.length ? keyOf(shown[0]) : null);
  if (key !== null) location.hash = `#/e/${encodeURIComponent(key)}`;
}

// The form. Every change filters at once.
function filterPanel(changed) {
  const form = el("form", { "aria-label": "Filters", onsubmit: (event) => event.preventDefault() },
    field("task", "Task contains", { type: "search", id: "search" }),
    choice("set", "Set", unique(store.index.files.map(({ set }) => set))),
    pairOf(field("from", "Step from", { type: "number", min: 0 }), field("to", "to", { type: "number", min: 0 })),
    choice("agent", "Agent", store.index.agents),
    choice("kind", "Task type", store.index.kinds),
    pairOf(field("low", "Score from", { type: "number", min: 0, max: 10, step: "any" }), field("high", "to", { type: "number", min: 0, max: 10, step: "any" })),
    choice("outcome", "Outcome", Object.keys(OUTCOMES), OUTCOMES),
    Object.entries(FLAGS).map(([name, words]) => el("label", { class: "check" }, el("input", { type: "checkbox", name, checked: filters.has(name) }), words)),
    choice("order", "Order", Object.keys(ORDERS).slice(1), ORDERS, ORDERS[""]),
    el("button", { type: "reset" }, "Clear filters"));
  form.addEventListener("input", () => readForm(form, changed));
  form.addEventListener("reset", () => clearForm(form, changed));
  const open = !matchMedia("(max-width: 60rem)").matches;
  return el("aside", { class: "filters card" }, el("details", { open }, el("summary", {}, "Filters"), form));
}

function unique(values) {
  return [...new Set(values)];
}

function pairOf(...fields) {
  return el("div", { class: "pair-of" }, fields);
}

function field(name, words, attributes) {
  return el("label", {}, words, el("input", { name, value: filters.get(name) ?? "", ...attributes }));
}

function choice(name, words, values, names = {}, any = "any") {
  const option = (value) => el("option", { value, selected: filters.get(name) === value }, names[value] ?? value);
  return el("label", {}, words, el("select", { name }, el("option", { value: "" }, any), values.map(option)));
}

function readForm(form, changed) {
  filters = new Map([...new FormData(form)].map(([name, value]) => [name, value]).filter(([, value]) => value));
  changed();
}

function clearForm(form, changed) {
  filters = new Map();
  // The browser's own reset would bring back what the form was made with.
  setTimeout(() => {
    for (const node of form.elements) {
      if (node.type === "checkbox") node.checked = false;
      else if (node.name) node.value = "";
    }
  });
  changed();
}
