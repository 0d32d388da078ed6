// The config of the run, and with what it was made.

function configView(main) {
  const { config, starts } = store.overview;
  const body = el("tbody");
  const fill = (text) => body.replaceChildren(...config.filter(([key, value]) => `${key} ${value}`.toLowerCase().includes(text)).map(configRow));
  fill("");
  main.replaceChildren(
    el("div", { class: "stack" },
      el("h1", { tabindex: "-1" }, "Config and versions"),
      el("section", { class: "card" }, el("h2", {}, "Versions"), starts.length ? starts.map(startPart) : el("p", { class: "muted" }, "Not recorded by this run.")),
      el("section", { class: "card" },
        el("h2", {}, "Config"),
        config.length ? null : el("p", { class: "muted" }, "config.json is not in this folder."),
        el("label", { class: "small muted" }, "Keys or values that contain", el("input", { type: "search", id: "search", oninput: (event) => fill(event.target.value.toLowerCase()) })),
        el("div", { class: "scrolls" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Key"), el("th", { scope: "col" }, "Value"))), body)))));
  return { refresh: () => {} };
}

function configRow([key, value]) {
  return el("tr", {}, el("th", { scope: "row", class: "mono" }, key), el("td", { class: "mono" }, value));
}

function startPart(start) {
  const packages = Object.entries(start.packages).map(([name, version]) => `${name} ${version}`);
  const where = [start.device && `${plural(start.devices, "device")} of kind ${start.device}`, start.hosts > 1 ? `${start.hosts} hosts` : null, start.system].filter(Boolean);
  return el("p", {}, `Started after iteration ${start.step}: `, where.join(", "), el("br"), el("span", { class: "mono small" }, packages.join(", ")));
}
