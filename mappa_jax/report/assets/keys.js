// The keyboard.

const KEYS = [
  ["1 … 4", "Overview, curves, episodes, config"],
  ["j k", "Down, up: in the list an episode, in an episode an action"],
  ["Enter", "Open the episode"],
  ["[ ]", "The previous, the next episode of the filter"],
  ["n N", "The next, the previous episode where credit and outcome disagree"],
  ["c", "Compare the same task before and after"],
  ["t", "Colour tokens by log-ratio"],
  ["e", "Open or fold everything"],
  ["/", "Search"],
  ["d", "Light or dark"],
  ["Esc", "Back"],
  ["?", "These keys"],
];

const ACTIONS = {
  j: () => view.move?.(1),
  k: () => view.move?.(-1),
  "]": () => view.step?.(1),
  "[": () => view.step?.(-1),
  n: () => view.disagreement?.(1),
  N: () => view.disagreement?.(-1),
  c: () => view.compare?.(),
  t: () => view.tokens?.(),
  e: () => view.expand?.(),
  d: () => nextTheme(),
  "?": () => openHelp(),
  Escape: () => goBack(),
};

function openHelp() {
  const dialog = byId("help");
  dialog.replaceChildren(
    el("h2", { id: "help-title" }, "Keys"),
    el("table", {}, el("tbody", {}, KEYS.map(([keys, words]) => el("tr", {}, el("td", {}, keys.split(" ").map((key) => [el("kbd", {}, key), " "])), el("td", {}, words))))),
    el("form", { method: "dialog" }, el("button", {}, "Close")));
  dialog.showModal();
}

function goBack() {
  const [page, ...rest] = route().path;
  if (page === "e") location.hash = `#/episodes${filterQuery()}`;
  else if (page === "compare") location.hash = `#/e/${encodeURIComponent(rest.at(-1))}`;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const typing = event.target.matches("input, select, textarea");
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "Enter" && view.open && (event.target.id === "list" || event.target === document.body || event.target.id === "main")) view.open();
  else if (event.key === "/") focusSearch(event);
  else if (TABS[Number(event.key) - 1]) location.hash = `#/${TABS[Number(event.key) - 1][0]}`;
  else ACTIONS[event.key]?.();
}

function focusSearch(event) {
  const search = byId("search");
  if (!search) return;
  event.preventDefault();
  const folded = search.closest("details");
  if (folded) folded.open = true;
  search.focus();
}
