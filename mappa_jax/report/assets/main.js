// Start, addresses, theme, and the refreshing of a page that is served.

const TABS = [["overview", "Overview"], ["curves", "Curves"], ["episodes", "Episodes"], ["config", "Config"]];
const POLL = 3000; // milliseconds
const THEMES = ["auto", "light", "dark"];
let view = {};
let turn = 0; // of showing: a slower earlier one must not come last

function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { path: path.split("/").map(decoded), query };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a damaged address names no episode
  }
}

async function show() {
  const mine = ++turn;
  const { path, query } = route();
  const page = path[0] in VIEWS ? path[0] : "overview";
  const data = await VIEWS[page].read?.(path);
  if (mine !== turn) return; // another address has been gone to meanwhile
  view = VIEWS[page].draw(byId("main"), path, query, data);
  markTab(page);
}

// By page: what it has to read first, and how it fills the main element.
const VIEWS = {
  overview: { draw: (main) => shownTop(overviewView(main)) },
  curves: { draw: (main) => shownTop(curvesView(main)) },
  config: { draw: (main) => shownTop(configView(main)) },
  episodes: {
    draw: (main, path, query) => {
      readFilters(query);
      return shownTop(episodesView(main));
    },
  },
  e: {
    read: (path) => readEpisodes(path.slice(1, 2)),
    draw: (main, [, key = "", at = ""], query, data) => {
      const action = /^\d+$/.test(at) ? Number(at) : null;
      const made = episodeView(main, key, action, data);
      return action === null ? shownTop(made) : made;
    },
  },
  compare: {
    read: (path) => readEpisodes(path.slice(1)),
    draw: (main, path, query, data) => shownTop(compareView(main, path.slice(1), data)),
  },
};

// The episodes of these names; none where one of them is unknown.
function readEpisodes(keys) {
  const places = keys.map(episodeOf);
  return places.includes(-1) ? [] : Promise.all(places.map(loadEpisode));
}

function shownTop(made) {
  scrollTo({ top: 0, behavior: "instant" });
  if (route().path[0] !== "episodes") byId("main").querySelector("h1")?.focus({ preventScroll: true });
  return made;
}

function markTab(page) {
  const current = page === "e" || page === "compare" ? "episodes" : page;
  const tabs = TABS.map(([name, words]) => el("a", { href: `#/${name}${name === "episodes" ? filterQuery() : ""}`, "aria-current": name === current ? "page" : null }, words));
  byId("tabs").replaceChildren(...tabs);
}

function showProgress() {
  const { name, done, steps } = store.overview;
  byId("name").textContent = name;
  byId("progress").textContent = steps ? `iteration ${done} of ${steps}` : done ? `iteration ${done}` : "";
}

function currentTheme() {
  const kept = remembered("theme");
  return THEMES.includes(kept) ? kept : "auto";
}

function remembered(name, value) {
  try {
    if (value !== undefined) localStorage.setItem(name, value);
    return localStorage.getItem(name);
  } catch {
    return value ?? null; // storage may be refused to a file
  }
}

function applyTheme(theme) {
  const dark = theme === "dark" || (theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  byId("theme").textContent = `Theme: ${theme}`;
  redrawAll();
}

let theme = currentTheme();

function nextTheme() {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  remembered("theme", theme);
  applyTheme(theme);
}

function complain(text) {
  byId("banner").textContent = text;
  byId("banner").hidden = !text;
}

// Asks for the version; what the reader has open stays open.
async function poll(known) {
  for (;;) {
    await pause(POLL);
    try {
      const { version, error } = await (await fetch("version")).json();
      complain(error);
      if (version === known) continue;
      if (known !== null) await refresh();
      known = version;
      byId("live").textContent = `● live, read at ${new Date().toLocaleTimeString()}`;
    } catch {
      byId("live").textContent = "○ the server is gone";
    }
  }
}

async function refresh() {
  await readAll();
  applyFilters();
  showProgress();
  view.refresh?.();
}

async function start() {
  applyTheme(theme);
  byId("theme").addEventListener("click", nextTheme);
  byId("help-open").addEventListener("click", openHelp);
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address is the view's
    byId("main").focus();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => applyTheme(theme));
  document.addEventListener("keydown", onKey);
  const version = store.served ? (await (await fetch("version")).json()).version : null;
  await readAll();
  showProgress();
  readFilters("");
  addEventListener("hashchange", show);
  await show();
  performance.mark("report-usable");
  if (store.served) {
    byId("live").hidden = false;
    byId("live").textContent = "● live";
    poll(version);
  }
}

addEventListener("unhandledrejection", (event) => complain(`This report cannot be read: ${event.reason?.message ?? event.reason}`));
start();
