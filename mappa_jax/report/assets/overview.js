// The verdict at the top, and what it rests on.

const SIGNS = { better: "▲", worse: "▼", mixed: "◆", unclear: "≈", unknown: "?" };

function overviewView(main) {
  const { verdict, facts, notes } = store.overview;
  main.replaceChildren(
    el("div", { class: "stack" },
      el("section", { class: `card verdict ${verdict.tone}`, "aria-labelledby": "headline" },
        el("h1", { id: "headline", tabindex: "-1" },
          el("span", { class: "sign", "aria-hidden": "true" }, SIGNS[verdict.tone]), el("span", {}, verdict.headline)),
        el("ul", {}, verdict.sentences.map((text) => el("li", {}, text)))),
      verdict.comparisons.length ? comparisonTable(verdict.comparisons) : null,
      notes.map((text) => el("p", { class: "card small" }, text)),
      el("dl", { class: "facts" }, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
      el("div", { class: "figures" }, evaluationPanels().map((panel) => figure(panel, true)))));
  return { refresh: () => overviewView(main) };
}

function evaluationPanels() {
  return store.overview.panels.filter((panel) => panel.id === "avg" || panel.id === "score");
}

function comparisonTable(rows) {
  const heads = ["Data set", "Compared with", "Then", "Now", "Difference", "Problems", "Says"];
  return el("section", { class: "card", "aria-label": "Comparisons" },
    el("table", { class: "comparisons" },
      el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, rows.map(comparisonRow))));
}

function comparisonRow(row) {
  const range = row.low === null ? "" : ` [${signed(row.low)}, ${signed(row.high)}]`;
  const kind = { better: "good", worse: "bad", unclear: "warn" }[row.says];
  return el("tr", {},
    el("th", { scope: "row" }, row.source),
    el("td", { "data-label": "compared with" }, row.other),
    el("td", { "data-label": "then" }, interval(row.before)),
    el("td", { "data-label": "now" }, interval(row.after)),
    el("td", { "data-label": "difference" }, signed(row.difference) + range, el("div", { class: "muted small" }, row.paired ? "same problems, paired" : "not paired")),
    el("td", { "data-label": "problems" }, row.problems),
    el("td", { "data-label": "says" }, chip(`${SIGNS[row.says]} ${row.says}`, kind)));
}

function signed(value) {
  return (value > 0 ? "+" : "") + value.toFixed(2).replace("-", "−");
}

function interval(found) {
  return `${found.avg.toFixed(2)} [${found.low.toFixed(2)}, ${found.high.toFixed(2)}]`;
}
