// What the report holds: blocks of gzipped JSON, in this page or on its server.

const store = {
  served: document.documentElement.dataset.served === "yes",
  overview: null,
  index: null,
  chunks: new Map(),
  prefix: "", // of all tasks: the data set, where there is but one
  starts: [], // of each file: the number of its first episode
  firsts: null, // of each episode: the number of its first action
};

function pause(milliseconds) {
  return new Promise((done) => setTimeout(done, milliseconds));
}

// A block may not have arrived yet: the page is usable while it is being read.
async function embedded(name) {
  const selector = `script[data-block="${CSS.escape(name)}"]`;
  for (;;) {
    const whole = document.readyState !== "loading";
    const node = document.querySelector(selector);
    if (node && (whole || node.nextSibling)) return node.textContent;
    if (whole) throw new Error(`this report has no block ${name}`);
    await pause(20);
  }
}

function fromBase64(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

async function fetched(name) {
  const path = name.split("/").map(encodeURIComponent).join("/");
  const answer = await fetch(`block/${path}`);
  if (!answer.ok) throw new Error(`the server has no block ${name}`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function unzip(bytes) {
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(plain).text();
}

async function readJson(name) {
  const bytes = store.served ? await fetched(name) : fromBase64(await embedded(name));
  return JSON.parse(await unzip(bytes));
}

async function readLibrary() {
  return JSON.parse(await unzip(fromBase64(await embedded("plotly"))));
}

async function readAll() {
  const [overview, index] = await Promise.all([readJson("overview"), readJson("index")]);
  Object.assign(store, { overview, index, chunks: new Map() });
  store.prefix = commonPrefix(index.tasks);
  let start = 0;
  store.starts = index.files.map((file) => (start += file.episodes) - file.episodes);
  store.firsts = new Uint32Array(index.file.length + 1);
  index.actions.forEach((count, i) => (store.firsts[i + 1] = store.firsts[i] + count));
}

// The name of an episode in addresses: its file and line. Stays when a run goes on.
function keyOf(i) {
  const file = store.index.file[i];
  return `${store.index.files[file].key}:${i - store.starts[file]}`;
}

function episodeOf(key) {
  const cut = key.lastIndexOf(":");
  const file = store.index.files.findIndex((one) => one.key === key.slice(0, cut));
  const line = Number(key.slice(cut + 1));
  const inside = file >= 0 && line >= 0 && line < store.index.files[file].episodes;
  return inside && Number.isInteger(line) ? store.starts[file] + line : -1;
}

async function loadEpisode(i) {
  const file = store.index.file[i];
  const line = i - store.starts[file];
  const name = `chunk/${store.index.files[file].key}/${Math.floor(line / store.index.chunk)}`;
  if (!store.chunks.has(name)) store.chunks.set(name, readJson(name));
  return (await store.chunks.get(name))[line % store.index.chunk];
}

function setName(i) {
  const { set, step } = store.index.files[store.index.file[i]];
  if (set === "training") return `iteration ${step}`;
  return set === "team" ? `evaluation, step ${step}` : `${set}, step ${step}`;
}

// Without the data set, where there is but one.
function shortTask(i) {
  return taskName(i).slice(store.prefix.length);
}

function commonPrefix(tasks) {
  const prefix = (tasks[0] ?? "").split("/")[0] + "/";
  return tasks.every((name) => name.startsWith(prefix)) ? prefix : "";
}

function taskName(i) {
  return store.index.tasks[store.index.task[i]];
}
