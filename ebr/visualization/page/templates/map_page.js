// The start: build the page, draw the maps, listen.

const panels = [];

function fillHead() {
  byId("title").textContent = raw.title;
  byId("count").textContent = say(raw.n_all > N ? "points_of" : "points", { n: N, all: raw.n_all });
  byId("show-figures").hidden = !raw.lines.length;
  byId("figures").querySelector("pre").textContent = raw.lines.join("\n");
}

function watchHead() {
  for (const button of document.querySelectorAll("header [data-tool]")) {
    button.addEventListener("click", () => chooseTool(button.dataset.tool));
  }
  byId("reset").addEventListener("click", () => seeAll());
  byId("show-figures").addEventListener("click", () => byId("figures").showModal());
  byId("theme").addEventListener("click", () => {
    const page = document.documentElement;
    page.dataset.theme = page.dataset.theme === "dark" ? "light" : "dark";
    if (state.column.isNumbers) fillColourBar();
    repaint();
    showPoint();
  });
}

function watchLegend() {
  byId("show-all").addEventListener("click", () => {
    state.hidden = new Set();
    repaint();
  });
  byId("show-none").addEventListener("click", () => {
    state.hidden = new Set(state.column.groups.map((_, code) => code));
    repaint();
  });
  byId("names").checked = state.names;
  byId("names").addEventListener("change", (event) => {
    state.names = event.target.checked;
    redraw();
  });
}

function watchKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !byId("figures").open) {
      if (state.pinned >= 0) pin(-1);
      else chooseTool("pan");
    } else if (event.key === "/" && event.target === document.body) {
      event.preventDefault();
      byId("search").focus();
    }
  });
}

function watchPlot(panel) {
  panel.plot.on("plotly_hover", (data) => hover(panel.rows[data.points[0].pointNumber], data.event));
  panel.plot.on("plotly_unhover", () => hover(-1));
  panel.plot.on("plotly_click", (data) => pin(panel.rows[data.points[0].pointNumber]));
  panel.stage.addEventListener("mousedown", (event) => {
    if (event.detail === 2 && state.tool === "pan" && state.hovered < 0) seeAll();
  }, true);
  watchLasso(panel);
  new ResizeObserver(() => panel.resize()).observe(panel.stage);
}

function seeAll() {
  for (const panel of panels) panel.goTo(panel.rangesRound(mixed));
}

async function start() {
  fillHead();
  for (const spec of raw.panels) panels.push(new Panel(spec, byId("maps")));
  byId("maps").dataset.n = String(panels.length);
  fillColourBy();
  fillLegend();
  showPoint();
  watchHead();
  watchLegend();
  watchSearch();
  watchSelection();
  watchKeys();
  chooseTool("pan");
  if (!hasWebGL) element("p", { text: say("no_webgl"), className: "warning", parent: panels[0].stage.parentElement });
  for (const panel of panels) {
    await panel.draw();
    watchPlot(panel);
  }
  // For tests and measurements: when the first picture stood, and where a row lies on the screen.
  requestAnimationFrame(() => requestAnimationFrame(() => {
    document.documentElement.dataset.ready = String(Math.round(performance.now()));
  }));
  window.ebrMap = {
    place: (row, panel = 0) => {
      const { left, top } = panels[panel].stage.getBoundingClientRect();
      const [x, y] = panels[panel].place(row);
      return [left + x, top + y];
    },
    drawn: (panel = 0) => panels[panel].plot.data[0].x.length,
    colours: (panel = 0) => panels[panel].plot.data[0].marker.color,
    emphasised: () => emphasisedRows(),
    drawnBy: (panel = 0) => panels[panel].plot.data[0].type,
    ranges: (panel = 0) => panels[panel].ranges,
    isAtRest: (panel = 0) => !panels[panel].glide.target,
    redrawMs: (panel = 0) => panels[panel].glide.redrawMs,
  };
}

start();
