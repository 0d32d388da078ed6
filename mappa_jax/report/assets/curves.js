// The curves, drawn by Plotly when they come into sight; each has its table of numbers.

const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "star"];
const drawn = new Map(); // plot element -> panel
let plotly = null; // a promise
const sight = new IntersectionObserver(inSight, { rootMargin: "300px" });

function curvesView(main) {
  const groups = [...new Set(store.overview.panels.map((panel) => panel.group))];
  main.replaceChildren(
    el("div", { class: "stack" },
      el("h1", { tabindex: "-1" }, "Curves"),
      groups.length ? null : el("p", { class: "card" }, "There are no numbers to draw yet."),
      groups.map((group) => [
        el("h2", { class: "group-title" }, group),
        el("div", { class: "figures" }, store.overview.panels.filter((panel) => panel.group === group).map((panel) => figure(panel))),
      ])));
  return { refresh: () => refreshCurves(main) };
}

// Redraws in place where the panels are the same ones.
function refreshCurves(main) {
  const figures = [...main.querySelectorAll(".figure")];
  const same = figures.length === store.overview.panels.length;
  if (!same) return curvesView(main);
  figures.forEach((node) => updateFigure(node, store.overview.panels.find((one) => one.id === node.dataset.panel)));
}

function updateFigure(node, panel) {
  if (!panel) return;
  const plot = node.querySelector(".plot");
  plot.panel = panel;
  fillNumbers(node.querySelector("details"), plot);
  plot.setAttribute("aria-label", inWords(panel));
  if (drawn.has(plot)) draw(plot, panel);
}

// The table is made when it is opened: a long run has many rows.
function fillNumbers(details, plot) {
  if (details.open) details.querySelector(".scrolls").replaceChildren(numbersTable(plot.panel));
}

function figure(panel, wide = false) {
  const plot = el("div", { class: "plot", role: "img", "aria-label": inWords(panel) });
  plot.panel = panel;
  sight.observe(plot);
  return el("figure", { class: `card figure ${wide ? "wide" : ""}`, "data-panel": panel.id },
    el("figcaption", {}, el("h3", {}, panel.title), el("span", { class: "muted small" }, [panel.unit, panel.note].filter(Boolean).join(". "))),
    plot,
    el("details", { ontoggle: (event) => fillNumbers(event.target, plot) }, el("summary", {}, "Numbers", el("span", { class: "unseen" }, ` of ${panel.title}`)),
      el("div", { class: "scrolls", tabindex: "0", role: "group", "aria-label": `Numbers of ${panel.title}` })));
}

function inWords(panel) {
  const said = panel.series.map(({ name, y }) => {
    const told = y.filter((value) => value !== null);
    return `${name} from ${number(told[0])} to ${number(told.at(-1))}`;
  });
  return `${panel.title}: ${said.join("; ")}`;
}

function numbersTable(panel) {
  const steps = [...new Set(panel.series.flatMap(({ x }) => x))].sort((a, b) => a - b);
  const cell = (one, step) => {
    const at = one.x.indexOf(step);
    const range = one.low && at >= 0 ? ` [${number(one.low[at])}, ${number(one.high[at])}]` : "";
    return el("td", { class: "number" }, at < 0 ? "–" : number(one.y[at], 4) + range);
  };
  return el("table", {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Iteration"), panel.series.map(({ name }) => el("th", { scope: "col", class: "number" }, name)))),
    el("tbody", {}, steps.map((step) => el("tr", {}, el("th", { scope: "row" }, step), panel.series.map((one) => cell(one, step))))));
}

async function inSight(entries) {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting || drawn.has(target)) continue;
    sight.unobserve(target);
    await library();
    if (target.isConnected) draw(target, target.panel);
  }
}

// Plotly's text becomes a script here; the page's policy knows its hash.
function library() {
  plotly ??= readLibrary().then((text) => {
    const script = document.createElement("script");
    script.textContent = text;
    document.head.append(script);
    if (!window.Plotly) throw new Error("Plotly did not start");
  });
  return plotly;
}

function draw(plot, panel) {
  drawn.set(plot, panel);
  plot.panel = panel;
  window.Plotly.react(plot, panel.series.map((one, i) => trace(panel, one, i)), layout(panel), {
    displayModeBar: false,
    responsive: true,
    scrollZoom: false,
  });
}

function redrawAll() {
  for (const [plot, panel] of drawn) if (plot.isConnected) draw(plot, panel);
    else drawn.delete(plot);
}

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function trace(panel, one, i) {
  const agent = store.overview.agents.indexOf(one.name);
  const color = css(`--c${(agent < 0 ? i : agent) % 8}`);
  const bars = one.low && {
    type: "data",
    symmetric: false,
    array: one.y.map((y, k) => one.high[k] - y),
    arrayminus: one.y.map((y, k) => y - one.low[k]),
    color,
    thickness: 1.5,
  };
  const few = one.x.length < 60;
  return {
    x: one.x,
    y: one.y,
    name: one.name,
    mode: few || one.low ? "lines+markers" : "lines",
    line: { color, width: 2, dash: DASHES[i % DASHES.length] },
    marker: { color, size: 6, symbol: SYMBOLS[i % SYMBOLS.length] },
    ...(bars ? { error_y: bars } : {}),
  };
}

// From the first to the last iteration, with room for markers and intervals.
function steps(panel) {
  const all = panel.series.flatMap(({ x }) => x);
  const [first, last] = [Math.min(...all), Math.max(...all)];
  const room = Math.max(0.5, (last - first) * 0.04);
  return [first - room, last + room];
}

// Zero throughout: Plotly would draw an axis to −1.
function flat(panel) {
  return panel.series.every(({ y }) => y.every((value) => !value));
}

function layout(panel) {
  const line = { gridcolor: css("--border"), zerolinecolor: css("--border"), linecolor: css("--strong") };
  const fixedrange = !matchMedia("(pointer: fine)").matches; // a finger scrolls
  const share = panel.group === "Evaluation" || panel.id === "success";
  return {
    margin: { l: 48, r: 12, t: 8, b: 36 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: css("--text"), size: 12, family: getComputedStyle(document.body).fontFamily },
    xaxis: { ...line, title: { text: "iteration", standoff: 6 }, fixedrange, range: steps(panel), tickformat: ",d" },
    yaxis: { ...line, fixedrange, automargin: true, ...(flat(panel) ? { range: [-0.05, 1] } : {}), ...(share ? { range: [-0.03, 1.03] } : {}), ...(panel.id === "score" ? { range: [-0.3, 10.3] } : {}) },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    showlegend: true,
    hovermode: "x unified",
    hoverlabel: { bgcolor: css("--surface"), font: { color: css("--text") } },
  };
}
