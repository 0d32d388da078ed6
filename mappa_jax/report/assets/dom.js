// Elements are made here and nowhere else. Text goes in as text: nothing in this page
// ever parses markup, and no text of a run becomes an attribute that a browser acts on.

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) put(node, name, value);
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false).map(asNode));
  return node;
}

function put(node, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
  else if (name === "style") for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
  else node.setAttribute(name, value === true ? "" : value);
}

function asNode(child) {
  return child instanceof Node ? child : document.createTextNode(String(child));
}

function byId(id) {
  return document.getElementById(id);
}

// A number for a person: short, with a true minus sign where it is signed.
function number(value, digits = 2, signed = false) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  const large = Math.abs(value) >= 1000;
  const tiny = value !== 0 && Math.abs(value) < 10 ** -digits;
  const text = tiny ? value.toPrecision(2) : value.toLocaleString("en", { maximumFractionDigits: large ? 0 : digits });
  return (signed && value > 0 ? "+" : "") + text.replace("-", "−");
}

function plural(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}

// Tells a screen reader.
function say(text) {
  byId("said").textContent = text;
}

function chip(text, kind = "", title = null) {
  return el("span", { class: `chip ${kind}`, title }, text);
}

// Red at 0, amber at 5, green at 10, as an rgb triple for --tint.
function tint(score) {
  const share = Math.min(1, Math.max(0, score / 10));
  const [from, to, at] = share < 0.5 ? [[208, 52, 40], [214, 150, 20], share * 2] : [[214, 150, 20], [30, 150, 70], share * 2 - 1];
  return from.map((one, i) => Math.round(one + (to[i] - one) * at)).join(" ");
}

function agentColor(name) {
  const place = store.overview.agents.indexOf(name);
  return `var(--c${(place < 0 ? 5 : place) % 8})`;
}
