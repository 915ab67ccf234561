// One map: plotly draws the points and moves them; a canvas above it shows what is pointed at, found or selected.

const hasWebGL = (() => {
  const context = document.createElement("canvas").getContext("webgl");
  context?.getExtension("WEBGL_lose_context")?.loseContext();
  return Boolean(context);
})();
const SIZE = Math.min(9, Math.max(3.2, 30 / Math.log10(N + 9) ** 1.45));
const OPACITY = N > 50000 ? 0.62 : N > 5000 ? 0.75 : 0.88;
const MARGIN = 1.08;
const SOFT_DOTS_UP_TO = 8000; // emphasised points drawn round; beyond, squares keep the canvas fast

class Panel {
  constructor(spec, parent) {
    this.x = decoded(spec.x, "f4");
    this.y = decoded(spec.y, "f4");
    const figure = element("figure", { className: "panel", parent });
    const caption = element("figcaption", { parent: figure });
    if (spec.title) element("b", { text: spec.title, parent: caption });
    if (spec.subtitle) element("span", { text: spec.subtitle, className: "quiet", parent: caption });
    if (spec.warning) element("p", { text: `⚠ ${spec.warning}`, className: "warning", parent: figure });
    this.stage = element("div", { className: "stage", parent: figure });
    this.plot = element("div", { className: "plot", parent: this.stage });
    this.canvas = element("canvas", { parent: this.stage });
    this.rows = [];
    this.isQueued = false;
    this.lasso = null;
    this.glide = new Glide(this);
  }

  get width() { return Math.max(this.stage.clientWidth, 40); }
  get height() { return Math.max(this.stage.clientHeight, 40); }
  get drawnRanges() { return [this.plot._fullLayout.xaxis.range, this.plot._fullLayout.yaxis.range]; }
  get ranges() { return this.glide.target ?? this.drawnRanges; }

  /** Ranges of both axes round some rows, one unit as long along either. */
  rangesRound(rows) {
    let [left, right, bottom, top] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const row of rows) {
      left = Math.min(left, this.x[row]);
      right = Math.max(right, this.x[row]);
      bottom = Math.min(bottom, this.y[row]);
      top = Math.max(top, this.y[row]);
    }
    const least = (this.extent ?? 0) / 40; // a single point is not zoomed into nothingness
    const unit = Math.max((right - left) / this.width, (top - bottom) / this.height, least / this.width) * MARGIN || 1 / this.width;
    return this.rangesAt((left + right) / 2, (bottom + top) / 2, unit);
  }

  rangesAt(x, y, unit) {
    const [w, h] = [(unit * this.width) / 2, (unit * this.height) / 2];
    return { "xaxis.range": [x - w, x + w], "yaxis.range": [y - h, y + h] };
  }

  async draw() {
    const home = this.rangesRound(mixed);
    this.extent = home["xaxis.range"][1] - home["xaxis.range"][0];
    const axis = { visible: false, zeroline: false, showgrid: false };
    const clear = "rgba(0,0,0,0)";
    const layout = {
      width: this.width, height: this.height, margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: false,
      xaxis: { ...axis, range: home["xaxis.range"] }, yaxis: { ...axis, range: home["yaxis.range"] },
      dragmode: false, hovermode: "closest", hoverdistance: 12, paper_bgcolor: clear, plot_bgcolor: clear,
    };
    const ratio = window.devicePixelRatio || 1;
    const config = { scrollZoom: false, displayModeBar: false, doubleClick: false, plotGlPixelRatio: N > 20000 ? ratio : Math.max(2, ratio) };
    // plotly gets numbers and colours: none of its texts, which it reads as markup, come from data.
    const trace = { type: hasWebGL ? "scattergl" : "scatter", mode: "markers", hoverinfo: "none", ...this.points() };
    trace.marker = { size: SIZE, opacity: OPACITY, line: { width: 0 }, color: trace["marker.color"][0] };
    delete trace["marker.color"];
    [trace.x, trace.y] = [trace.x[0], trace.y[0]];
    await Plotly.newPlot(this.plot, [trace], layout, config);
    this.plot.on("plotly_relayout", () => this.queue());
    this.queue();
  }

  /** What plotly draws: the rows that are shown, and their colours. */
  points() {
    this.rows = shownRows();
    const colours = coloursNow();
    const { codes } = state.column;
    const [x, y, color] = [new Float32Array(this.rows.length), new Float32Array(this.rows.length), new Array(this.rows.length)];
    this.rows.forEach((row, i) => {
      [x[i], y[i], color[i]] = [this.x[row], this.y[row], colours[codes[row]]];
    });
    return { x: [x], y: [y], "marker.color": [color], visible: this.rows.length > 0 };
  }

  async repaint() {
    await Plotly.restyle(this.plot, this.points(), [0]);
    this.queue();
  }

  goTo(ranges) {
    this.glide.stop();
    return Plotly.relayout(this.plot, ranges);
  }

  resize() {
    if (!this.plot._fullLayout) return null;
    const [[left, right], [bottom, top]] = this.ranges;
    const unit = (right - left) / this.plot._fullLayout.width;
    const size = { width: this.width, height: this.height };
    return this.goTo({ ...size, ...this.rangesAt((left + right) / 2, (bottom + top) / 2, unit) });
  }

  /** Where a row lies, in pixels of the stage. */
  place(row) {
    const [[left, right], [bottom, top]] = this.ranges;
    return [((this.x[row] - left) / (right - left)) * this.width, ((top - this.y[row]) / (top - bottom)) * this.height];
  }

  isInView([x, y], margin = 0) {
    return x >= -margin && y >= -margin && x <= this.width + margin && y <= this.height + margin;
  }

  reveal(row) {
    if (this.isInView(this.place(row), -12)) return;
    const [[left, right]] = this.ranges;
    this.goTo(this.rangesAt(this.x[row], this.y[row], (right - left) / this.width));
  }

  queue() {
    if (this.isQueued) return;
    this.isQueued = true;
    requestAnimationFrame(() => {
      this.isQueued = false;
      this.overlay();
    });
  }

  overlay() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(this.width * ratio), Math.round(this.height * ratio)];
    if (this.canvas.width !== width || this.canvas.height !== height) [this.canvas.width, this.canvas.height] = [width, height];
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, this.width, this.height);
    const emphasised = emphasisedRows();
    this.stage.classList.toggle("dim", emphasised !== null);
    if (emphasised) this.dots(pen, emphasised);
    if (state.names) drawNames(this, pen, emphasised !== null);
    const row = state.hovered >= 0 ? state.hovered : state.pinned;
    if (row >= 0) this.star(pen, row);
    if (state.pinned >= 0 && state.pinned !== row) this.ring(pen, state.pinned, SIZE / 2 + 4, 2.2);
    if (this.lasso) this.outline(pen);
  }

  dots(pen, rows) {
    const colours = coloursNow();
    const { codes } = state.column;
    const radius = SIZE / 2 + 0.8;
    const isRound = rows.length <= SOFT_DOTS_UP_TO;
    pen.strokeStyle = cssColour(state.found ? "--ink" : "--map");
    pen.lineWidth = 0.8;
    for (const row of rows) {
      const [x, y] = this.place(row);
      if (!this.isInView([x, y], radius)) continue;
      pen.fillStyle = colours[codes[row]];
      if (isRound) {
        pen.beginPath();
        pen.arc(x, y, radius, 0, 2 * Math.PI);
        pen.fill();
        pen.stroke();
      } else pen.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
    }
  }

  /** A point with its neighbours of the original space: a long line is a neighbour that the map tore away. */
  star(pen, row) {
    const [x, y] = this.place(row);
    pen.strokeStyle = cssColour("--ink");
    for (const { row: other } of nearest(row)) {
      if (!isShown(other)) continue;
      const [otherX, otherY] = this.place(other);
      pen.globalAlpha = 0.3;
      pen.lineWidth = 1;
      pen.beginPath();
      pen.moveTo(x, y);
      pen.lineTo(otherX, otherY);
      pen.stroke();
      pen.globalAlpha = 1;
      this.ring(pen, other, SIZE / 2 + 2.2, 1.3);
    }
    this.ring(pen, row, SIZE / 2 + 4, 2.2);
  }

  ring(pen, row, radius, lineWidth) {
    const [x, y] = this.place(row);
    for (const [colour, width] of [["--map", lineWidth + 2], ["--ink", lineWidth]]) {
      pen.strokeStyle = cssColour(colour);
      pen.lineWidth = width;
      pen.beginPath();
      pen.arc(x, y, radius, 0, 2 * Math.PI);
      pen.stroke();
    }
  }

  outline(pen) {
    pen.beginPath();
    this.lasso.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.closePath();
    pen.globalAlpha = 0.12;
    pen.fillStyle = cssColour("--accent");
    pen.fill();
    pen.globalAlpha = 1;
    pen.lineWidth = 1.5;
    pen.strokeStyle = cssColour("--accent");
    pen.stroke();
  }

  /** The shown rows inside a polygon of pixels, by the parity of crossings of a ray to the left. */
  rowsInside(polygon) {
    const [xs, ys] = [polygon.map((corner) => corner[0]), polygon.map((corner) => corner[1])];
    const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    return this.rows.filter((row) => {
      const [x, y] = this.place(row);
      if (x < left || x > right || y < top || y > bottom) return false;
      let isInside = false;
      for (let i = 0, j = xs.length - 1; i < xs.length; j = i++) {
        if (ys[i] > y !== ys[j] > y && x < ((xs[j] - xs[i]) * (y - ys[i])) / (ys[j] - ys[i]) + xs[i]) isInside = !isInside;
      }
      return isInside;
    });
  }
}
