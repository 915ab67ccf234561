// What is said of one point: beside the pointer in short, at the side in full, with its neighbours in the original space.

const SHORT = 160;

function swatch(row, parent) {
  const dot = element("i", { className: "swatch", parent });
  dot.style.background = coloursNow()[state.column.codes[row]];
}

const labelOf = (row) => state.column.text(row) || (state.column === plainColumn ? "" : say(state.column.isNumbers ? "missing_number" : "missing"));

function showTip(row, event) {
  const tip = byId("tip");
  tip.hidden = row < 0;
  if (row < 0) return;
  tip.replaceChildren();
  if (labelOf(row)) {
    const head = element("b", { parent: tip });
    swatch(row, head);
    head.append(shortened(labelOf(row), 60));
  }
  element("div", { text: shortened(raw.texts[row], SHORT), parent: tip });
  const { width, height } = tip.getBoundingClientRect();
  const isRight = event.clientX + 16 + width > window.innerWidth;
  tip.style.left = `${Math.max(4, isRight ? event.clientX - width - 14 : event.clientX + 14)}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, window.innerHeight - height - 8))}px`;
}

/** The point that is pointed at, or kept, or else a hint and what moved most. */
function showPoint() {
  const row = state.hovered >= 0 ? state.hovered : state.pinned;
  const part = byId("point");
  part.replaceChildren();
  if (row < 0) return showNoPoint(part);
  const head = element("div", { className: "row", parent: part });
  if (labelOf(row)) {
    swatch(row, head);
    element("b", { text: labelOf(row), className: "label", parent: head });
  }
  element("span", { className: "grow", parent: head });
  if (row === state.pinned) {
    element("span", { text: say("pinned"), className: "quiet", parent: head });
    const close = element("button", { text: "×", className: "link", title: say("close"), parent: head });
    close.addEventListener("click", () => pin(-1));
  }
  element("p", { text: raw.texts[row], className: "text", parent: part });
  const facts = element("dl", { parent: part });
  const fact = (name, value) => {
    element("dt", { text: name, parent: facts });
    element("dd", { text: value, parent: facts });
  };
  fact(say("id"), raw.ids[row].replace(/[\u202a-\u202e\u2066-\u2069]/g, "\ufffd")); // whole where they are saved
  for (const column of columns) if (column !== state.column && column.text(row)) fact(column.name, column.text(row));
  showNeighbours(row, part);
}

function showNeighbours(row, part) {
  if (!neighbours) return;
  element("h2", { text: say("neighbours"), title: say("neighbours_hint"), parent: part });
  const list = element("ol", { parent: part });
  for (const { row: other, cosine } of nearest(row)) listed(other, cosine.toFixed(3), list);
}

/** A row of a list that keeps its point when clicked. */
function listed(row, figure, list) {
  const button = element("button", { parent: element("li", { parent: list }), title: labelOf(row) });
  button.type = "button";
  swatch(row, button);
  element("span", { text: shortened(raw.texts[row], 90), className: "name", parent: button });
  const value = element("span", { className: "quiet", parent: button });
  if (typeof figure === "string") value.textContent = figure;
  else {
    value.className = "bar";
    element("i", { parent: value }).style.width = `${Math.round(100 * figure)}%`;
  }
  button.addEventListener("click", () => pin(row));
}

function showNoPoint(part) {
  if (raw.moved?.length) {
    element("h2", { text: say("moved"), parent: part });
    const list = element("ol", { parent: part });
    for (const [row, moved] of raw.moved) listed(row, moved / raw.moved[0][1], list);
  }
  element("p", { text: say("point_hint"), className: "quiet", parent: part });
  if (!neighbours) element("p", { text: say("no_neighbours"), className: "quiet", parent: part });
  if (raw.n_cut) element("p", { text: say("cut", { n: raw.n_cut, most: raw.most_characters }), className: "quiet", parent: part });
}

function hover(row, event) {
  state.hovered = row;
  showTip(row, event);
  showPoint();
  redraw();
}

function pin(row) {
  state.pinned = row === state.pinned ? -1 : row;
  state.hovered = -1;
  byId("tip").hidden = true;
  if (state.pinned >= 0) {
    if (!isShown(state.pinned)) {
      state.hidden.delete(state.column.codes[state.pinned]);
      repaint();
    }
    for (const panel of panels) panel.reveal(state.pinned);
  }
  showPoint();
  redraw();
}
