// One action of one agent: prompt, output, tool receipt, verdict, credit, tokens.

const RATIOS = { policy_reference: "policy / reference", trainer_behaviour: "trainer / sampler" };
const FULL = 0.5; // nats at which a token's colour is strongest

function actionCard(action, at, key, evaluated) {
  const card = el("article",
    { class: "card action", id: `action-${key}-${at}`, "data-action": at, tabindex: "-1", style: { "--agent": agentColor(action.agent) }, "aria-label": `Action ${at + 1}, ${action.agent}` },
    el("header", {},
      el("h3", { class: "who" }, `${action.agent}`, action.turn ? ` (turn ${action.turn + 1})` : ""),
      actionChips(action, evaluated),
      el("a", { class: "anchor", href: `#/e/${encodeURIComponent(key)}/${at}`, "aria-label": `Link to action ${at + 1}` }, "link")),
    action.fault && el("p", { class: "chip warn" }, `masked: ${action.fault}`),
    promptPart(action),
    outputPart(action),
    toolPart(action),
    outcomeLine(action.outcome),
    verdictPart(action, evaluated));
  return card;
}

function actionChips(action, evaluated) {
  return el("span", { class: "chips" },
    verdictChip(action.verdict, evaluated),
    creditChips(action.credit, evaluated),
    chip(plural(action.tokens, "token")),
    action.finish === "length" ? chip("cut at the limit", "warn") : null);
}

function verdictChip(verdict, evaluated) {
  if (!verdict) return evaluated ? null : chip("not judged", "warn");
  if (verdict.missing) return chip(`no verdict: ${verdict.missing}`, "warn");
  return el("span", { class: "score", style: { "--tint": tint(verdict.score) } }, `score ${number(verdict.score, 1)}`);
}

function creditChips(credit, evaluated) {
  if (!credit) return evaluated ? null : chip("credit not recorded");
  if (credit.masked) return chip(`masked: ${credit.masked}`, "warn");
  return [chip(`reward ${number(credit.reward, 3)}`), advantageChip(credit.advantage)];
}

function advantageChip(value) {
  const sign = typeof value === "number" ? Math.sign(value) : 0;
  const kind = sign > 0 ? "good" : sign < 0 ? "bad" : "";
  const mark = sign > 0 ? "▲ " : sign < 0 ? "▼ " : "";
  return chip(`${mark}advantage ${number(value, 3, true)}`, `${kind} advantage`, "Mean over the action's tokens");
}

function promptPart(action) {
  const messages = action.messages.map(({ role, text }) => el("div", { class: "message" }, el("h4", {}, role), box(text, `Message from ${role}`)));
  return el("details", { class: "prompt" }, el("summary", {}, `Prompt (${plural(messages.length, "message")})`), messages);
}

// A long text that scrolls inside must be reachable by keyboard.
function box(text, label, tag = "pre") {
  return el(tag, { class: "said boxed", tabindex: "0", role: "group", "aria-label": label }, text);
}

function outputPart(action) {
  const said = el("pre", { class: "said output" }, action.said || "(nothing)");
  const part = el("div", { class: "part" },
    action.thinking ? el("details", { class: "thinking" }, el("summary", {}, `Thinking (${plural(action.thinking.length, "character")})`), box(action.thinking, "Thinking")) : null,
    said);
  const kinds = Object.keys(RATIOS).filter((name) => action.credit?.[name]);
  if (kinds.length) part.append(tokenSwitch(action.credit, kinds, said));
  return part;
}

function tokenSwitch(credit, kinds, said) {
  const slot = el("div", { class: "part", hidden: true });
  const button = el("button", { type: "button", class: "colour", "aria-pressed": "false", onclick: toggle }, "Colour tokens by log-ratio");
  function toggle() {
    const on = slot.hidden;
    slot.hidden = !on;
    said.hidden = on;
    button.setAttribute("aria-pressed", String(on));
    if (on && !slot.childElementCount) slot.append(...colouredTokens(credit, kinds));
  }
  return el("div", { class: "part" }, slot, el("div", {}, button));
}

function colouredTokens(credit, kinds) {
  const holder = el("div");
  const pick = el("select", { "aria-label": "Which ratio", onchange: () => paint() }, kinds.map((name) => el("option", { value: name }, RATIOS[name])));
  const paint = () => holder.replaceChildren(tokenText(credit, pick.value));
  paint();
  return [
    el("div", { class: "legend" }, pick, el("span", {}, `less likely −${FULL}`), el("i", { "aria-hidden": "true" }), el("span", {}, `+${FULL} more likely (log-ratio, nats)`)),
    holder,
  ];
}

function tokenText(credit, kind) {
  return el("pre", { class: "said tokens" }, credit.ids.map((id, at) => {
    const ratio = credit[kind][at];
    const known = typeof ratio === "number";
    const text = credit.pieces?.[id];
    const much = known ? Math.min(1, Math.abs(ratio) / FULL) * 0.5 : 0;
    return el("span",
      { class: text ? null : "id", title: `${known ? number(ratio, 4, true) : ratio}, token ${id}`, style: { "--push": ratio < 0 ? "var(--down)" : "var(--up)", "--much": much } },
      text || `⟨${id}⟩`);
  }));
}

function toolPart(action) {
  const seen = action.observation;
  if (!action.code && !seen) return null;
  return el("div", { class: "part tool" },
    action.code ? el("details", { open: true }, el("summary", {}, "Program"), box(action.code, "Program")) : null,
    seen ? receipt(seen) : el("p", { class: "muted small" }, "The program was not run."));
}

function receipt(seen) {
  const state = seen.ok ? chip("✓ ended well", "good") : chip(`✗ exit status ${seen.exit_status}`, "bad");
  return el("div", { class: "part" },
    el("div", { class: "chips" }, state, seen.limit ? chip(`limit: ${seen.limit}`, "bad") : null, chip(`${number(seen.seconds)} s`)),
    stream("Standard output", seen.stdout),
    stream("Standard error", seen.stderr),
    fileList(seen));
}

function stream(words, text) {
  return text ? el("div", {}, el("h4", {}, words), box(text, words)) : null;
}

function fileList(seen) {
  if (!seen.files.length) return null;
  const mark = (name) => [
    !seen.files_before.includes(name) ? "new" : seen.changed.includes(name) ? "changed" : null,
    seen.empty.includes(name) ? "empty" : null,
  ].filter(Boolean).join(", ");
  return el("div", {}, el("h4", {}, "Files afterwards"),
    el("ul", { class: "files mono" }, seen.files.map((name) => el("li", {}, name, mark(name) ? el("span", { class: "muted" }, ` (${mark(name)})`) : null))));
}

function outcomeLine(outcome) {
  if (!outcome) return null;
  return el("div", { class: "part" },
    el("div", { class: "chips" }, outcome.right ? chip("✓ right", "good") : chip("✗ wrong", "bad"), chip(`outcome ${number(outcome.score)}`),
      Object.entries(outcome.quality).map(([name, value]) => chip(`${name} ${number(value, 3)}`))),
    outcome.answer ? el("p", { class: "prose small" }, "Answer: ", outcome.answer) : null,
    outcome.report ? el("p", { class: "prose small" }, outcome.report) : null);
}

function verdictPart(action, evaluated) {
  const verdict = action.verdict;
  if (!verdict) return evaluated ? null : el("p", { class: "muted small" }, "This action was not judged.");
  const { call } = verdict;
  const source = [call.judge, call.model, call.cached ? "cached" : `$${number(call.cost, 4)}`, `${number(call.latency_s)} s`].filter(Boolean).join(", ");
  return el("div", { class: "part rationale" },
    el("h4", {}, verdict.missing ? "No verdict" : `Verdict: ${number(verdict.score, 1)} of 10`),
    el("p", { class: "prose" }, verdict.missing ? `${verdict.missing}: ${verdict.detail}` : verdict.rationale || "(no rationale)"),
    el("p", { class: "muted small" }, source, opinions(verdict)));
}

function opinions(verdict) {
  const said = [];
  if (typeof verdict.correct === "boolean") said.push(`calls the answer ${verdict.correct ? "right" : "wrong"}`);
  if (typeof verdict.disagreement === "number") said.push(`judges ${number(verdict.disagreement)} apart`);
  if (typeof verdict.again === "number") said.push(`asked again: ${number(verdict.again, 1)}`);
  return said.length ? `; ${said.join("; ")}` : "";
}
