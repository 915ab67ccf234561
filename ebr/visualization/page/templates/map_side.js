// The side: what to colour by, the legend, the search, the selection.

const byId = (id) => document.getElementById(id);
const DOUBLE_CLICK_MS = 230;

/** The rows to stand out, or null when all are equal: a legend entry pointed at, else what was found or selected. */
function emphasisedRows() {
  if (state.peek >= 0) return panels[0].rows.filter((row) => state.column.codes[row] === state.peek);
  if (state.found) return state.found;
  return state.selected.size ? [...state.selected].filter(isShown) : null;
}

function redraw() {
  for (const panel of panels) panel.queue();
}

async function repaint() {
  showLegendState();
  search();
  await Promise.all(panels.map((panel) => panel.repaint()));
}

function fillColourBy() {
  const select = byId("colour-by");
  columns.forEach((column, i) => {
    element("option", { text: shortened(column.name, 60), parent: select }).value = String(i);
  });
  element("option", { text: say("one_colour"), parent: select }).value = "-1";
  select.value = String(columns.indexOf(state.column));
  select.addEventListener("change", () => {
    state.column = columns[Number(select.value)] ?? plainColumn;
    state.hidden = new Set();
    fillLegend();
    repaint();
    showPoint();
  });
  byId("colour-part").hidden = !columns.length;
}

function fillLegend() {
  const { groups, isNumbers } = state.column;
  const legend = byId("legend");
  legend.replaceChildren(...groups.map(legendEntry));
  legend.hidden = !groups.length;
  byId("legend-head").hidden = !groups.length;
  byId("legend-count").textContent = legendCount(groups);
  byId("colour-bar").hidden = !isNumbers;
  if (isNumbers) fillColourBar();
  showLegendState();
}

function legendEntry(group, code) {
  const entry = element("li");
  const button = element("button", { parent: entry, title: group.kind === "label" ? group.text : "" });
  button.type = "button";
  element("i", { parent: button });
  element("span", { text: shortened(group.text, 200), className: "name", parent: button });
  element("span", { text: group.count.toLocaleString("en-US"), className: "quiet", parent: button });
  let timer = 0;
  button.addEventListener("click", (event) => {
    clearTimeout(timer);
    if (event.detail > 1) isolate(code);
    else timer = setTimeout(() => toggle(code), event.detail ? DOUBLE_CLICK_MS : 0); // the keyboard's click has detail 0
  });
  button.addEventListener("pointerenter", () => setPeek(state.hidden.has(code) ? -1 : code));
  button.addEventListener("pointerleave", () => setPeek(-1));
  return entry;
}

function setPeek(code) {
  state.peek = code;
  redraw();
}

function toggle(code) {
  if (!state.hidden.delete(code)) state.hidden.add(code);
  state.peek = -1;
  repaint();
}

/** Show one entry alone; again, and all are back. */
function isolate(code) {
  const codes = state.column.groups.map((_, i) => i);
  const isAlone = !state.hidden.has(code) && state.hidden.size === codes.length - 1;
  state.hidden = new Set(isAlone ? [] : codes.filter((other) => other !== code));
  state.peek = -1;
  repaint();
}

function showLegendState() {
  const colours = coloursNow();
  [...byId("legend").children].forEach((entry, code) => {
    entry.firstChild.setAttribute("aria-pressed", String(!state.hidden.has(code)));
    entry.firstChild.firstChild.style.background = colours[code];
  });
}

function fillColourBar() {
  const { low, high } = state.column;
  const [strip, ticks] = byId("colour-bar").children;
  strip.style.background = `linear-gradient(to right, ${coloursNow().slice(0, STEPS).join(",")})`;
  const values = Number.isFinite(low) ? [low, (low + high) / 2, high] : ["", say("missing_number"), ""];
  // Two decimals of the span, not of the number: 10001 to 10009 are three different ticks.
  const decimals = Math.min(20, Math.max(0, 2 - Math.floor(Math.log10(high - low || Math.abs(low) || 1))));
  [0, 2, 4].forEach((at, i) => {
    ticks.children[at].textContent = typeof values[i] === "number" ? String(Number(values[i].toFixed(decimals))) : values[i];
  });
}

let lowered = null; // the texts in small letters, made at the first search
let searched = "";

function search() {
  const text = byId("search").value.trim().toLowerCase();
  byId("found").hidden = text === "";
  if (text === "") {
    [state.found, searched] = [null, ""];
    return redraw();
  }
  lowered ??= raw.texts.map((entry) => entry.toLowerCase());
  const matches = columns.filter((column) => !column.isNumbers)
    .map((column) => ({ valueOf: column.valueOf, hits: column.values.map((value) => value.toLowerCase().includes(text)) }));
  const all = [];
  for (let row = 0; row < N; row++) {
    const isHit = lowered[row].includes(text) || raw.ids[row].toLowerCase() === text;
    if (isHit || matches.some(({ valueOf, hits }) => hits[valueOf[row]])) all.push(row);
  }
  [state.found, searched] = [all.filter(isShown), text];
  const hidden = all.length - state.found.length;
  const key = hidden ? "found_hidden" : all.length ? "found" : "found_none";
  const hint = state.found.length ? ` · ${say("zoom_hint")} · ` : "";
  byId("found-count").textContent = say(key, { n: state.found.length, hidden }) + hint;
  byId("select-found").hidden = !state.found.length;
  return redraw();
}

function watchSearch() {
  let timer = 0;
  const box = byId("search");
  box.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(search, N > 20000 ? 160 : 40);
  });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    clearTimeout(timer);
    search();
    if (state.found?.length) for (const panel of panels) panel.goTo(panel.rangesRound(state.found));
  });
  byId("select-found").addEventListener("click", () => select(state.found ?? [], false));
}

/** How many labels there are; where some share the grey of "other", how many have a name. */
function legendCount(groups) {
  const n = groups.filter((group) => group.kind === "label").length;
  return say(groups.some((group) => group.kind === "other") ? "labels_named" : "labels", { n });
}

function select(rows, isAdded) {
  state.selected = new Set(isAdded ? [...state.selected, ...rows] : rows);
  byId("selection").hidden = !state.selected.size;
  byId("selected-count").textContent = say("selected", { n: state.selected.size });
  byId("copy").textContent = say("copy");
  redraw();
}

/** One id a line, in the order of the rows; as JSON strings where an id would break a line. */
function selectedIds() {
  const ids = [...state.selected].sort((a, b) => a - b).map((row) => raw.ids[row]);
  const breaks = ids.some((id) => /[\r\n]/.test(id));
  return ids.map((id) => (breaks ? JSON.stringify(id) : id)).join("\n") + "\n";
}

function watchSelection() {
  byId("download").addEventListener("click", () => {
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([selectedIds()], { type: "text/plain;charset=utf-8" }));
    link.download = "selected_ids.txt";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  byId("copy").addEventListener("click", async () => {
    await copied(selectedIds());
    byId("copy").textContent = say("copied");
  });
  byId("clear").addEventListener("click", () => select([], false));
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // A page opened from a file may not reach the clipboard; the old way still may.
    const area = element("textarea", { parent: document.body });
    area.value = text;
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

/** Choose a tool; with lasso and box, the canvas takes the pointer. */
function chooseTool(tool) {
  state.tool = tool;
  document.body.dataset.tool = tool;
  for (const button of document.querySelectorAll("[data-tool]")) {
    if (button !== document.body) button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
  }
}

function watchLasso(panel) {
  const { canvas } = panel;
  const at = (event) => [event.offsetX, event.offsetY];
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    panel.lasso = [at(event)];
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!panel.lasso) return;
    const [[x0, y0], [x, y]] = [panel.lasso[0], at(event)];
    const [lastX, lastY] = panel.lasso[panel.lasso.length - 1];
    if (state.tool === "box") panel.lasso = [[x0, y0], [x, y0], [x, y], [x0, y]];
    else if (Math.hypot(x - lastX, y - lastY) > 3) panel.lasso.push([x, y]);
    panel.queue();
  });
  canvas.addEventListener("pointercancel", () => {
    panel.lasso = null;
    panel.queue();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!panel.lasso) return;
    const polygon = panel.lasso;
    panel.lasso = null;
    if (polygon.length > 2) select(panel.rowsInside(polygon), event.shiftKey);
    else if (!event.shiftKey) select([], false);
  });
}
