// The same task before and after training, action beside action.

function sameTask(i) {
  return [...store.index.task.keys()].filter((other) => store.index.task[other] === store.index.task[i]);
}

function stepOf(i) {
  return store.index.files[store.index.file[i]].step;
}

// The earliest and the latest episode of a task: of the same set and sample where there
// are several, else of any.
function extremes(i) {
  const all = sameTask(i);
  const set = (one) => store.index.files[store.index.file[one]].set;
  const alike = all.filter((one) => set(one) === set(i) && store.index.sample[one] === store.index.sample[i]);
  const among = alike.length > 1 ? alike : all;
  const ordered = [...among].sort((a, b) => stepOf(a) - stepOf(b) || a - b);
  return [ordered[0], ordered.at(-1)];
}

function openCompare() {
  const [before, after] = extremes(episodeOf(selected));
  location.hash = compareHash(before, after);
}

function compareHash(left, right) {
  return `#/compare/${encodeURIComponent(keyOf(left))}/${encodeURIComponent(keyOf(right))}`;
}

function compareView(main, keys, found) {
  const places = keys.map(episodeOf);
  if (places.length !== 2 || places.some((i) => i < 0)) return missingEpisode(main, keys.join(" and "));
  selected = keys[1];
  const alone = sameTask(places[0]).length === 1;
  main.replaceChildren(
    el("div", { class: "flow" },
      el("div", { class: "bar" }, el("a", { class: "button", href: `#/e/${encodeURIComponent(keys[1])}` }, "One episode ", el("kbd", {}, "Esc"))),
      el("section", { class: "card head" }, el("h1", { tabindex: "-1" }, `Compare: ${taskName(places[0])}`), taskPart(found[0]),
        alone ? el("p", { class: "chip warn" }, "This task has one episode only: there is nothing to compare it with.") : null),
      el("div", { class: "sides" }, places.map((i, side) => sideHead(places, side, found[side]))),
      pairs(places, found, keys)));
  return { tokens: () => pressAll(".colour"), expand: () => toggleDetails() };
}

function sideNames([left, right]) {
  return stepOf(left) < stepOf(right) ? ["Before", "After"] : ["Left", "Right"];
}

function sideHead(places, side, found) {
  const i = places[side];
  const name = sideNames(places)[side];
  const change = (event) => {
    const other = Number(event.target.value);
    location.hash = side ? compareHash(places[0], other) : compareHash(other, places[1]);
  };
  const option = (one) => el("option", { value: one, selected: one === i }, `${setName(one)}, sample ${store.index.sample[one]}`);
  return el("section", { class: "card head", "aria-label": name },
    el("label", {}, el("span", { class: "muted small" }, name), el("select", { onchange: change }, sameTask(i).map(option))),
    el("div", { class: "chips" }, outcomeChip(outcomeOf(i)), flagChips(i)),
    found.failure ? el("p", { class: "prose small" }, `ended early: ${found.failure}`) : null,
    found.outcome?.answer ? el("p", { class: "small prose" }, "Answer: ", found.outcome.answer) : null);
}

function pairs(places, found, keys) {
  const count = Math.max(...found.map(({ actions }) => actions.length));
  const names = sideNames(places);
  const card = (side, at) => {
    const action = found[side].actions[at];
    const body = action ? actionCard(action, at, keys[side], isEvaluation(places[side])) : el("p", { class: "card muted" }, "No such action");
    return el("div", {}, el("div", { class: "side-name" }, `${names[side]}: ${setName(places[side])}`), body);
  };
  return [...Array(count).keys()].map((at) => el("div", { class: "pair" }, card(0, at), card(1, at)));
}
