/* A plot, drawn by Observable Plot in a <figure>, which stays when the plot is drawn again.

A plot is described by {title?, summary, height?, marginLeft?, x, y, color?, legend?, marks, points, canLog?, zoomed?}:
`x` and `y` are options of Plot, `marks` its marks, `points` are {x, y, lines, series} for the pointer and the keys.
`y.values` are what the axis has to show; the scale is logarithmic if they differ by more than a factor of 100 and `canLog`.
*/

const charts = new Map();
const logChoices = new Map(); // by id of the figure, where somebody has chosen
const zooms = new Map(); // by title of the x axis: [from, to]

const makeChart = (figure, redraw) => {
  const button = (textContent, title) => element("button", { type: "button", textContent, title });
  const chart = {
    title: element("h3"), legend: element("div", { className: "legend" }),
    logButton: button("log", "Linear or logarithmic scale"), allButton: button("zoom out", "Show all"),
    drawing: element("div", { className: "drawing", tabIndex: 0 }), canvas: element("div"),
    tip: element("div", { className: "tip", hidden: true }), ring: element("div", { className: "ring", hidden: true }),
    range: element("div", { className: "range", hidden: true }), spoken: element("div", { className: "visually-hidden" }),
    points: [], current: null, width: 0,
  };
  chart.drawing.setAttribute("role", "application");
  chart.drawing.setAttribute("aria-roledescription", "plot");
  chart.spoken.setAttribute("aria-live", "polite");
  chart.drawing.append(chart.canvas, chart.range, chart.ring, chart.tip);
  const tools = element("div", { className: "tools" }, chart.allButton, chart.logButton);
  chart.head = element("div", { className: "head" }, chart.title, chart.legend);
  figure.replaceChildren(chart.head, tools, chart.drawing, chart.spoken);
  const zoom = (bounds) => { if (chart.zoomKey) { zooms.delete(chart.zoomKey); if (bounds) zooms.set(chart.zoomKey, bounds); redraw(); } };
  const toggleLog = () => { if (chart.canLog) { logChoices.set(figure.id, !chart.isLog); redraw(); } };
  chart.zoomBy = (factor) => {
    if (!chart.invert) return;
    const [low, high] = chart.domain;
    const center = chart.current ? chart.current.x : (low + high) / 2;
    zoom([center - (center - low) * factor, center + (high - center) * factor]);
  };
  chart.allButton.addEventListener("click", () => { chart.drawing.focus(); zoom(null); });
  chart.logButton.addEventListener("click", toggleLog);
  followPointer(chart, { zoom, toggleLog });
  new ResizeObserver(() => { if (chart.width && figure.clientWidth !== chart.width) drawSpec(figure, chart); }).observe(figure);
  charts.set(figure, chart);
  return chart;
};

const legendItem = ({ label, colour, kind }) => {
  const mark = element("i", { className: kind });
  mark.style.color = colour;
  return element("span", { title: label }, mark, beginning(label, 60));
};

const usesLog = (id, spec) => {
  const positive = (spec.y.values || []).filter((value) => value > 0 && Number.isFinite(value));
  const automatic = d3.max(positive) / d3.min(positive) > 100;
  return Boolean(spec.canLog && positive.length && (logChoices.has(id) ? logChoices.get(id) : automatic));
};

/* Draw, or draw again, the plot that `describe` describes. It gets the range of x to show, or null. */
const drawChart = (figure, describe, redraw) => {
  const chart = charts.get(figure) || makeChart(figure, redraw);
  chart.describe = describe;
  drawSpec(figure, chart);
};

const drawSpec = (figure, chart) => {
  const width = figure.clientWidth;
  if (!width) return;
  chart.width = width;
  const spec = chart.describe({ bounds: (title) => zooms.get(title) || null, width });
  const shown = spec.points.filter((point) => ![point.x, point.y].some((value) => value === null || Number.isNaN(value)));
  const isLog = usesLog(figure.id, spec);
  chart.canLog = spec.canLog && (spec.y.values || []).some((value) => value > 0);
  chart.isLog = isLog;
  chart.zoomKey = spec.zoomKey;
  chart.title.textContent = spec.title || "";
  chart.legend.replaceChildren(...(spec.legend || []).map((item) => (item instanceof Node ? item : legendItem(item))));
  chart.logButton.hidden = !chart.canLog;
  chart.logButton.setAttribute("aria-pressed", String(isLog));
  chart.allButton.hidden = !zooms.has(spec.zoomKey);
  chart.title.hidden = !spec.title;
  chart.legend.hidden = !spec.legend;
  chart.drawing.setAttribute("aria-label", `${spec.title ? `${spec.title}: ` : ""}${spec.summary}`);
  const before = chart.current;
  chart.show(null);
  if (!shown.length) {
    chart.points = [];
    chart.invert = null;
    chart.canvas.replaceChildren(element("p", { className: "empty", textContent: spec.empty || "Nothing to show." }));
    return;
  }
  const { values: _, ...y } = spec.y;
  const plot = Plot.plot({
    width, height: spec.height || 260, marginLeft: spec.marginLeft || 52, marginBottom: 38, marginTop: 22, marginRight: 16,
    style: { background: "none", color: "var(--dim)", overflow: "visible" },
    color: spec.color || { type: "identity" },
    x: { ticks: Math.max(2, Math.min(10, width / 90)), labelArrow: "none", labelAnchor: "center", ...spec.x },
    y: { ticks: 5, nice: true, tickFormat: shortNumber, labelArrow: "none", ...y, ...(isLog ? { type: "log", zero: false } : {}) },
    marks: [
      spec.grid === false ? null : Plot.gridY({ stroke: "var(--grid)", strokeOpacity: 1 }),
      spec.grid === false ? null : Plot.gridX({ stroke: "var(--grid)", strokeOpacity: 1 }),
      ...spec.marks({ isLog }),
    ],
  });
  plot.setAttribute("aria-hidden", "true");
  chart.canvas.replaceChildren(plot);
  const scales = [plot.scale("x"), plot.scale("y")];
  const place = (scale, value) => scale.apply(value) + (scale.bandwidth || 0) / 2;
  chart.points = shown
    .filter((point) => !isLog || point.y > 0)
    .map((point) => ({ ...point, left: place(scales[0], point.x), top: place(scales[1], point.y) }))
    .filter((point) => Number.isFinite(point.left) && Number.isFinite(point.top));
  chart.invert = spec.zoomKey && scales[0].invert ? (value) => Number(scales[0].invert(value)) : null;
  chart.domain = scales[0].domain.map(Number);
  if (before) chart.show(chart.points.find((each) => each.x === before.x && each.y === before.y && each.series === before.series));
};
