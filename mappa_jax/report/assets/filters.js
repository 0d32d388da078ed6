// Which episodes are shown. A filter stands in the address, so that it can be linked.

const FLAGS = {
  judge: "Judge and outcome disagree",
  credit: "Credit and outcome disagree",
  missing: "Verdicts are missing",
  tools: "A program failed",
  failed: "Ended early",
};
const TEXTS = ["set", "from", "to", "agent", "kind", "low", "high", "outcome", "task", "order"];
const OUTCOMES = { right: "right", wrong: "wrong", none: "not graded" };
const ORDERS = { "": "as recorded", score: "lowest score first", advantage: "largest advantage first" };

let filters = new Map(); // by name; only those that are set
let shown = []; // the episodes that match, in order

function readFilters(query) {
  const given = new URLSearchParams(query);
  filters = new Map([...TEXTS, ...Object.keys(FLAGS)].filter((name) => given.get(name)).map((name) => [name, given.get(name)]));
  applyFilters();
}

function filterQuery() {
  const query = new URLSearchParams([...filters]).toString();
  return query ? `?${query}` : "";
}

function numeric(name, otherwise) {
  const value = Number.parseFloat(filters.get(name));
  return Number.isFinite(value) ? value : otherwise;
}

function applyFilters() {
  const tests = [fileTest(), taskTest(), outcomeTest(), actionTest(), ...flagTests()].filter(Boolean);
  shown = [];
  for (let i = 0; i < store.index.file.length; i++) if (tests.every((test) => test(i))) shown.push(i);
  sortShown();
}

function fileTest() {
  const [set, from, to] = [filters.get("set"), numeric("from", -Infinity), numeric("to", Infinity)];
  const good = store.index.files.map((file) => (!set || file.set === set) && file.step >= from && file.step <= to);
  return good.every(Boolean) ? null : (i) => good[store.index.file[i]];
}

function taskTest() {
  const [kind, text] = [filters.get("kind"), (filters.get("task") || "").toLowerCase()];
  if (!kind && !text) return null;
  const place = store.index.kinds.indexOf(kind);
  const good = store.index.tasks.map((name) => name.toLowerCase().includes(text));
  return (i) => (!kind || store.index.kind[i] === place) && good[store.index.task[i]];
}

function outcomeTest() {
  const wanted = filters.get("outcome");
  return wanted ? (i) => outcomeOf(i) === wanted : null;
}

function outcomeOf(i) {
  const outcome = store.index.outcome[i];
  if (outcome === null) return "none";
  return outcome >= 1 - 1e-6 ? "right" : "wrong";
}

// An agent, and a range of scores: of one and the same action.
function actionTest() {
  const agent = filters.has("agent") ? store.index.agents.indexOf(filters.get("agent")) : null;
  const scored = filters.has("low") || filters.has("high");
  const [low, high] = [numeric("low", -Infinity), numeric("high", Infinity)];
  if (agent === null && !scored) return null;
  return (i) => {
    for (let a = store.firsts[i]; a < store.firsts[i + 1]; a++) {
      const score = store.index.score[a];
      const fits = !scored || (score !== null && score >= low && score <= high);
      if (fits && (agent === null || store.index.agent[a] === agent)) return true;
    }
    return false;
  };
}

function flagTests() {
  return Object.keys(FLAGS).map((name) => (filters.has(name) ? (i) => store.index[name][i] > 0 : null));
}

function sortShown() {
  const measure = { score: meanScore, advantage: (i) => -largestAdvantage(i) }[filters.get("order")];
  if (!measure) return;
  const values = new Map(shown.map((i) => [i, measure(i)]));
  shown.sort((a, b) => values.get(a) - values.get(b) || a - b);
}

function ofActions(name, i) {
  return store.index[name].slice(store.firsts[i], store.firsts[i + 1]);
}

function meanScore(i) {
  const scores = ofActions("score", i).filter((score) => score !== null);
  return scores.length ? scores.reduce((a, b) => a + b) / scores.length : Infinity;
}

function largestAdvantage(i) {
  return Math.max(0, ...ofActions("advantage", i).map((value) => Math.abs(value ?? 0)));
}

// The next episode that `wanted` holds for, from the one at `i`; -1 where there is none.
function nextWhere(i, direction, wanted) {
  let at = shown.indexOf(i);
  if (at < 0) at = direction > 0 ? -1 : shown.length;
  for (at += direction; at >= 0 && at < shown.length; at += direction) if (wanted(shown[at])) return shown[at];
  return -1;
}
