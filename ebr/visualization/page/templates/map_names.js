// The labels' names on the map, each at the densest spot of its label; where two would overlap, the larger label's stays.

const CELLS = 48;
const NAME_CHARACTERS = 26;
const ABOVE = SIZE / 2 + 10; // pixels: on its spot, a name would hide a small label's points
const NAME_FONT = '600 11.5px system-ui, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "Noto Sans SC", sans-serif';

/** The row in the middle of the fullest 3 x 3 cells of each label: a mean of all could lie in the gap between two islands. */
function namePlaces(panel) {
  const { codes, groups } = state.column;
  const [left, bottom] = [panel.x, panel.y].map((values) => values.reduce((a, b) => Math.min(a, b), Infinity));
  const [right, top] = [panel.x, panel.y].map((values) => values.reduce((a, b) => Math.max(a, b), -Infinity));
  const cell = (value, low, high) => Math.min(CELLS - 1, Math.floor(((value - low) / (high - low || 1)) * CELLS));
  const counts = new Uint32Array(groups.length * CELLS * CELLS);
  const cellOf = new Uint16Array(N);
  for (let row = 0; row < N; row++) {
    cellOf[row] = cell(panel.x[row], left, right) * CELLS + cell(panel.y[row], bottom, top);
    if (codes[row] < groups.length) counts[codes[row] * CELLS * CELLS + cellOf[row]] += 1;
  }
  const fullest = groups.map((_, code) => fullestCell(counts.subarray(code * CELLS * CELLS, (code + 1) * CELLS * CELLS)));
  const sums = groups.map(() => [0, 0, 0]);
  for (let row = 0; row < N; row++) {
    const best = fullest[codes[row]];
    const [dx, dy] = [Math.floor(cellOf[row] / CELLS) - Math.floor(best / CELLS), (cellOf[row] % CELLS) - (best % CELLS)];
    if (!(Math.abs(dx) <= 1 && Math.abs(dy) <= 1)) continue;
    const sum = sums[codes[row]];
    sum[0] += panel.x[row];
    sum[1] += panel.y[row];
    sum[2] += 1;
  }
  return sums.map(([x, y, n]) => [x / n, y / n]);
}

function fullestCell(counts) {
  let [best, most] = [0, -1];
  for (let i = 0; i < CELLS; i++) {
    for (let j = 0; j < CELLS; j++) {
      let sum = 0;
      for (let a = Math.max(0, i - 1); a <= Math.min(CELLS - 1, i + 1); a++) {
        for (let b = Math.max(0, j - 1); b <= Math.min(CELLS - 1, j + 1); b++) sum += counts[a * CELLS + b];
      }
      if (counts[i * CELLS + j] && sum > most) [best, most] = [i * CELLS + j, sum];
    }
  }
  return best;
}

function drawNames(panel, pen, isDimmed) {
  const { groups } = state.column;
  if (panel.namesOf !== state.column) [panel.names, panel.namesOf] = [namePlaces(panel), state.column];
  const [[left, right], [bottom, top]] = panel.ranges;
  // A readable shade of the points' colour: the eye finds which of the near clusters a name belongs to.
  const [colours, inks] = [coloursNow(), raw.inks[document.documentElement.dataset.theme]];
  pen.font = NAME_FONT;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.lineJoin = "round";
  pen.globalAlpha = isDimmed ? 0.35 : 1;
  const taken = [];
  groups.forEach((group, code) => {
    if (group.kind !== "label" || state.hidden.has(code)) return;
    const text = shortened(group.text, NAME_CHARACTERS);
    const half = pen.measureText(text).width / 2 + 4;
    const spot = [((panel.names[code][0] - left) / (right - left)) * panel.width, ((top - panel.names[code][1]) / (top - bottom)) * panel.height];
    if (!panel.isInView(spot)) return;
    const x = Math.min(Math.max(spot[0], half), panel.width - half);
    const y = Math.max(spot[1] - ABOVE, 9);
    const box = [x - half, y - 8, x + half, y + 8];
    if (taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) return;
    taken.push(box);
    pen.lineWidth = 4;
    pen.strokeStyle = cssColour("--map");
    pen.strokeText(text, x, y);
    pen.fillStyle = inks[colours[code].toUpperCase()] ?? cssColour("--ink");
    pen.fillText(text, x, y);
  });
  pen.globalAlpha = 1;
}
