// One episode, read as a conversation between agents.

function episodeView(main, key, at, [found]) {
  const i = episodeOf(key);
  if (i < 0) return missingEpisode(main, key);
  selected = key;
  const evaluated = isEvaluation(i);
  const position = el("span", { class: "muted small" });
  main.replaceChildren(
    el("div", { class: "flow" },
      episodeBar(position),
      el("section", { class: "card head" }, episodeTitle(i, found), taskPart(found)),
      found.actions.map((action, place) => [place ? el("div", { class: "arrow", "aria-hidden": "true" }, "↓") : null, actionCard(action, place, key, evaluated)]),
      endPart(found)));
  place(position);
  if (at !== null) focusAction(at);
  return {
    refresh: () => place(position),
    move: (by) => moveAction(by),
    step: (by) => stepEpisode(by, () => true),
    disagreement: (by) => stepEpisode(by, disagrees),
    compare: () => openCompare(),
    tokens: () => pressAll(".colour"),
    expand: () => toggleDetails(),
  };
}

function missingEpisode(main, key) {
  main.replaceChildren(el("div", { class: "card" }, el("h1", { tabindex: "-1" }, "No such episode"),
    el("p", {}, `This report has no episode ${key}.`), el("a", { href: "#/episodes" }, "All episodes")));
  return {};
}

function isEvaluation(i) {
  return store.index.files[store.index.file[i]].set !== "training";
}

function disagrees(i) {
  return store.index.credit[i] > 0;
}

function place(position) {
  const at = shown.indexOf(episodeOf(selected));
  position.textContent = at < 0 ? "outside the filter" : `${(at + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}`;
}

function episodeBar(position) {
  const go = (by, wanted) => () => stepEpisode(by, wanted);
  const any = () => true;
  return el("div", { class: "bar" },
    el("a", { class: "button", href: `#/episodes${filterQuery()}` }, "All ", el("kbd", {}, "Esc")),
    el("button", { type: "button", onclick: go(-1, any) }, "Previous ", el("kbd", {}, "[")),
    el("button", { type: "button", onclick: go(1, any) }, "Next ", el("kbd", {}, "]")),
    el("button", { type: "button", onclick: go(1, disagrees), id: "next-disagreement" }, "Next where credit ≠ outcome ", el("kbd", {}, "n")),
    el("button", { type: "button", onclick: openCompare }, "Compare ", el("kbd", {}, "c")),
    position);
}

function episodeTitle(i, found) {
  return [
    el("h1", { tabindex: "-1" }, taskName(i)),
    el("div", { class: "chips" },
      chip(setName(i)), chip(`sample ${found.sample}`), found.task.kind !== found.task.source ? chip(`type ${found.task.kind}`) : null,
      outcomeChip(outcomeOf(i)), flagChips(i)),
  ];
}

function taskPart(found) {
  const { prompt, answer, files } = found.task;
  return [
    box(prompt, "Task"),
    answer === null ? null : el("p", { class: "small" }, el("span", { class: "muted" }, "Reference answer: "), el("span", { class: "mono prose" }, answer)),
    files.length ? el("p", { class: "small mono" }, `Files: ${files.join(", ")}`) : null,
  ];
}

function endPart(found) {
  if (!found.outcome && !found.failure) return null;
  return el("section", { class: "card head", "aria-label": "Outcome" }, el("h2", {}, "Outcome"),
    found.failure ? el("p", { class: "prose chip bad" }, `ended early: ${found.failure}`) : null, outcomeLine(found.outcome));
}

function actionNodes() {
  return [...document.querySelectorAll(".action")];
}

function focusAction(at) {
  const node = actionNodes().find((one) => one.dataset.action === String(at));
  if (!node) return;
  for (const one of actionNodes()) one.classList.toggle("here", one === node);
  node.focus({ preventScroll: true });
  node.scrollIntoView({ block: "start", behavior: "instant" });
}

// The address follows, so that it can be copied.
function moveAction(by) {
  const nodes = actionNodes();
  if (!nodes.length) return;
  const at = nodes.findIndex((one) => one.classList.contains("here"));
  const next = at < 0 ? (by > 0 ? 0 : nodes.length - 1) : Math.min(nodes.length - 1, Math.max(0, at + by));
  history.replaceState(null, "", `#/e/${encodeURIComponent(selected)}/${next}`);
  focusAction(next);
}

function stepEpisode(by, wanted) {
  const next = nextWhere(episodeOf(selected), by, wanted);
  if (next < 0) say(wanted === disagrees ? "No further episode where credit and outcome disagree" : "No further episode");
  if (next < 0) return flash();
  location.hash = `#/e/${encodeURIComponent(keyOf(next))}`;
}

function flash() {
  const note = el("p", { class: "chip warn", id: "note" }, byId("said").textContent);
  byId("note")?.remove();
  document.querySelector(".bar")?.append(note);
  setTimeout(() => note.remove(), 4000);
}

function pressAll(selector) {
  const buttons = [...document.querySelectorAll(selector)];
  const on = buttons.some((one) => one.getAttribute("aria-pressed") === "false");
  for (const one of buttons) if ((one.getAttribute("aria-pressed") === "true") !== on) one.click();
  if (!buttons.length) say("No log-ratios are recorded for this episode");
}

function toggleDetails() {
  const all = [...document.querySelectorAll("main details")];
  const open = all.some((one) => !one.open);
  for (const one of all) one.open = open;
}
