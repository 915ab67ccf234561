// Moving the map. Where plotly redraws within a frame it does so at every step; where it needs longer (many points, no graphics
// card), the picture that stands is moved and stretched, and drawn anew as soon as the hand rests.

const FRAME_MS = 40;
const REST_MS = 140;
const ZOOM_A_NOTCH = 1.18;

class Glide {
  constructor(panel) {
    this.panel = panel;
    this.target = null; // the ranges to show, while plotly's are behind
    this.redrawMs = Infinity; // what the last redraw took, until its picture stood
    this.timer = 0;
    panel.stage.addEventListener("pointerdown", (event) => this.hold(event), true);
    panel.stage.addEventListener("wheel", (event) => this.zoom(event), { passive: false });
  }

  hold(event) {
    if (state.tool !== "pan" || event.button !== 0) return;
    let [lastX, lastY] = [event.clientX, event.clientY];
    const move = (moved) => {
      const [[left, right], [bottom, top]] = this.panel.ranges;
      const dx = ((moved.clientX - lastX) * (right - left)) / this.panel.width;
      const dy = ((moved.clientY - lastY) * (top - bottom)) / this.panel.height;
      [lastX, lastY] = [moved.clientX, moved.clientY];
      if (dx || dy) this.show([[left - dx, right - dx], [bottom + dy, top + dy]]);
    };
    const release = () => {
      window.removeEventListener("pointermove", move, true);
      window.removeEventListener("pointerup", release, true);
      window.removeEventListener("pointercancel", release, true);
    };
    // On the window, and first of all: while a button is down, plotly lays a sheet over the page.
    window.addEventListener("pointermove", move, true);
    window.addEventListener("pointerup", release, true);
    window.addEventListener("pointercancel", release, true);
  }

  zoom(event) {
    event.preventDefault();
    const notches = Math.max(-3, Math.min(3, event.deltaY / (event.deltaMode ? 3 : 100)));
    const factor = ZOOM_A_NOTCH ** notches;
    const box = this.panel.stage.getBoundingClientRect();
    const [[left, right], [bottom, top]] = this.panel.ranges;
    const x = left + ((event.clientX - box.left) / box.width) * (right - left);
    const y = top - ((event.clientY - box.top) / box.height) * (top - bottom);
    this.show([[x - (x - left) * factor, x + (right - x) * factor], [y - (y - bottom) * factor, y + (top - y) * factor]]);
  }

  show(ranges) {
    this.target = ranges;
    if (state.hovered >= 0) {
      Plotly.Fx.unhover(this.panel.plot); // else it takes the dot that is still under the pointer for one it has told of
      hover(-1);
    }
    clearTimeout(this.timer);
    if (this.redrawMs <= FRAME_MS) requestAnimationFrame(() => this.redraw());
    else {
      this.stretch();
      this.timer = setTimeout(() => this.redraw(), REST_MS);
    }
    this.panel.queue();
  }

  /** Lay the picture that stands where its points belong in the ranges to show. */
  stretch() {
    const [[left, right], [, top]] = this.panel.drawnRanges;
    const [[toLeft, toRight], [toBottom, toTop]] = this.target;
    const scale = (right - left) / (toRight - toLeft);
    const x = ((left - toLeft) / (toRight - toLeft)) * this.panel.width;
    const y = ((toTop - top) / (toTop - toBottom)) * this.panel.height;
    this.panel.plot.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
  }

  async redraw() {
    if (!this.target) return;
    const [[left, right], [bottom, top]] = this.target;
    const start = performance.now();
    this.target = null;
    await this.panel.goTo({ "xaxis.range": [left, right], "yaxis.range": [bottom, top] });
    // Two frames: the first is asked for before the picture stands.
    requestAnimationFrame(() => requestAnimationFrame(() => { this.redrawMs = performance.now() - start; }));
  }

  /** Plotly's ranges are to be set by somebody else: nothing is pending any more. */
  stop() {
    clearTimeout(this.timer);
    this.target = null;
    this.panel.plot.style.transform = "";
  }
}
