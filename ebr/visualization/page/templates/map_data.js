// What the page knows, decoded once, and what the reader has chosen. The other parts read `state` and call `changed`.

const raw = JSON.parse(document.getElementById("data").textContent);
const N = raw.n;
const PLAIN = "#0072B2";
const MISSING = "#9A9A9A";
const STEPS = 64;
// Viridis at nine even places: as bright as the number is large, and told apart by colour-blind eyes.
const SCALE = ["440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725"];
const TYPES = { f4: Float32Array, f8: Float64Array, i4: Int32Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };

function decoded(base64, type) {
  const binary = atob(base64);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return new TYPES[type](bytes.buffer);
}

function say(key, values = {}) {
  return raw.words[key].replace(/\{(\w+)\}/g, (_, name) => {
    const value = values[name];
    return typeof value === "number" ? value.toLocaleString("en-US") : String(value);
  });
}

/** An element with text; never with markup, because the text may come from data. */
function element(tag, { text, className, title, parent } = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  if (title !== undefined) made.title = title;
  if (parent) parent.append(made);
  return made;
}

function steps(scale) {
  const channels = scale.map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return Array.from({ length: STEPS }, (_, i) => {
    const place = (i / (STEPS - 1)) * (scale.length - 1);
    const low = Math.min(Math.floor(place), scale.length - 2);
    const mixed = channels[low].map((c, j) => Math.round(c + (channels[low + 1][j] - c) * (place - low)));
    return `rgb(${mixed.join(",")})`;
  });
}

function numberColumn(spec) {
  const numbers = decoded(spec.numbers, "f8");
  let low = Infinity;
  let high = -Infinity;
  for (const value of numbers) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const codes = new Uint16Array(N);
  const width = high > low ? high - low : 1;
  for (let row = 0; row < N; row++) {
    codes[row] = Number.isFinite(numbers[row]) ? Math.round(((numbers[row] - low) / width) * (STEPS - 1)) : STEPS;
  }
  // As written: 00123 and 19 digits would not survive as numbers.
  const text = (row) => (Number.isFinite(numbers[row]) ? spec.written[row] : "");
  return { name: spec.name, isNumbers: true, low, high, codes, colours: [...steps(SCALE), MISSING], groups: [], greyFrom: STEPS, text };
}

function categoryColumn(spec) {
  const codes = decoded(spec.group_of.data, spec.group_of.type);
  const valueOf = decoded(spec.value_of.data, spec.value_of.type);
  const names = { missing: say("missing"), other: say("other") };
  const groups = spec.groups.map((group) => ({ ...group, text: names[group.kind] ?? group.text }));
  const colours = groups.length ? groups.map((group) => group.colour) : [PLAIN];
  const greyAt = groups.findIndex((group) => group.kind !== "label");
  const greyFrom = greyAt < 0 ? Infinity : greyAt;
  return { name: spec.name, isNumbers: false, codes, colours, groups, greyFrom, values: spec.values, valueOf,
    text: (row) => spec.values[valueOf[row]] };
}

const columns = raw.columns.map((spec) => (spec.numbers === undefined ? categoryColumn(spec) : numberColumn(spec)));
const plainColumn = { name: "", isNumbers: false, codes: new Uint8Array(N), colours: [PLAIN], groups: [], greyFrom: Infinity, text: () => "" };

const neighbours = raw.neighbours ? decoded(raw.neighbours, "i4") : null;
const similarities = raw.neighbours ? decoded(raw.similarities, "u2") : null;

/** Rows and cosines, nearest first. */
function nearest(row) {
  const found = [];
  for (let i = row * raw.k; neighbours && i < (row + 1) * raw.k; i++) {
    if (neighbours[i] >= 0 && neighbours[i] < N) found.push({ row: neighbours[i], cosine: similarities[i] / 32767 - 1 });
  }
  return found;
}

const state = {
  column: columns[raw.start] ?? plainColumn,
  hidden: new Set(), // codes of the column
  found: null, // rows, or null when nothing is searched
  selected: new Set(),
  peek: -1, // the code whose legend entry the pointer is on
  hovered: -1,
  pinned: -1,
  tool: "pan",
  names: true,
};

/** Every row once, mixed in a fixed way, so that no label hides the one drawn before it. */
const mixed = (() => {
  const order = Uint32Array.from({ length: N }, (_, row) => row);
  let seed = 42;
  const random = () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return seed / 2 ** 32;
  };
  for (let i = N - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
})();

/** The rows that are not hidden, in the order to draw them: grey ones lowest. */
function shownRows() {
  const { codes, greyFrom } = state.column;
  const grey = [];
  const coloured = [];
  for (const row of mixed) {
    if (!state.hidden.has(codes[row])) (codes[row] >= greyFrom ? grey : coloured).push(row);
  }
  return grey.concat(coloured);
}

const isShown = (row) => !state.hidden.has(state.column.codes[row]);

/** The colours of the column's codes, for the theme: a scale's dark end, or black, would vanish on a dark ground. */
function coloursNow() {
  const isDark = document.documentElement.dataset.theme === "dark";
  if (state.column.isNumbers) return [...steps(isDark ? SCALE.slice(2) : SCALE), MISSING];
  const swap = raw.swaps[isDark ? "dark" : "light"];
  return state.column.colours.map((colour) => swap[colour.toUpperCase()] ?? colour);
}

const cssColour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function shortened(text, most) {
  const line = text.replace(/\s+/g, " ").trim();
  const characters = Array.from(line);
  return characters.length <= most ? line : characters.slice(0, most - 1).join("") + "…";
}
