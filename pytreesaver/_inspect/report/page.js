"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const config = {
    responsive: true, displaylogo: false, displayModeBar: "hover", showSendToCloud: false, plotlyServerURL: "",
  };
  const rows = data.variables.length;
  const columns = data.steps.length;

  const matrix = (text) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new Float64Array(bytes.buffer);
  };
  const norms = matrix(data.norms);
  const drifts = matrix(data.drifts);
  const at = (values, row, column) => values[row * columns + column];
  const relative = (row, column) => {
    const before = column > 0 ? at(norms, row, column - 1) : NaN;
    return at(drifts, row, column) / before;
  };
  const notFinite = new Map();
  for (const [row, column, nan, inf] of data.notFinite) {
    if (!notFinite.has(row)) notFinite.set(row, new Map());
    notFinite.get(row).set(column, [nan, inf]);
  }
  const lastDrift = (row) => {
    for (let c = columns - 1; c > 0; c--) {
      const value = relative(row, c);
      if (!Number.isNaN(value)) return value;
    }
    return null;
  };
  data.variables.forEach((variable, row) => {
    variable.row = row;
    let norm = null;
    for (let c = columns - 1; c >= 0 && norm === null; c--) {
      const value = at(norms, row, c);
      if (!Number.isNaN(value)) norm = value;
    }
    variable.norm = norm;
    variable.drift = lastDrift(row);
  });

  // Themes.

  const dark = () => document.documentElement.dataset.theme === "dark";
  const setTheme = (theme) => { document.documentElement.dataset.theme = theme; };
  const preferred = window.matchMedia("(prefers-color-scheme: dark)");
  setTheme(preferred.matches ? "dark" : "light");
  const themed = (layout) => ({
    ...layout,
    template: data.templates[dark() ? "dark" : "white"],
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: "#8a8f98", activecolor: "#4c78a8" },
    margin: { t: 30, r: 20, b: 50, l: 70, ...(layout.margin || {}) },
  });
  const draw = (id, traces, layout) => Plotly.react(byId(id), traces, themed(layout), config);

  const drawFigures = () => {
    for (const [name, figure] of Object.entries(data.figures)) draw(name, figure.data, figure.layout);
  };

  // Tables.

  const numberText = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "string") return value;
    if (Number.isInteger(value)) return value.toLocaleString("en-US");
    return String(Number(Number(value).toPrecision(5)));
  };
  const compare = (a, b) => {
    const rank = (v) => (v === null || v === undefined || v === "" ? 1 : 0);
    if (rank(a) || rank(b)) return rank(a) - rank(b);
    if (typeof a === "number" && typeof b === "number") return a === b ? 0 : a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };

  /* A sortable table. A field is {title, value(item), text(value, item)?, kind?, mark(item)?}. */
  class Table {
    constructor(element, fields, items, options) {
      const { column, descending } = options;
      Object.assign(this, { element, fields, items, options, column, descending, showAll: false });
      const head = element.createTHead().insertRow();
      fields.forEach((field, i) => {
        const cell = document.createElement("th");
        cell.textContent = field.title;
        cell.className = field.kind || "";
        cell.tabIndex = 0;
        const sort = () => {
          this.descending = this.column === i ? !this.descending : field.kind === "number";
          this.column = i;
          this.write();
        };
        cell.addEventListener("click", sort);
        cell.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
        head.appendChild(cell);
      });
      this.body = element.createTBody();
      this.write();
    }

    visibleItems() {
      const { value } = this.fields[this.column];
      const found = this.items.filter(this.options.filter || (() => true));
      const known = found.filter((item) => ![null, undefined, ""].includes(value(item)));
      const unknown = found.filter((item) => [null, undefined, ""].includes(value(item)));
      known.sort((a, b) => (this.descending ? -1 : 1) * compare(value(a), value(b)));
      return [...known, ...unknown];
    }

    write() {
      [...this.element.tHead.rows[0].cells].forEach((cell, i) => {
        if (i === this.column) cell.setAttribute("aria-sort", this.descending ? "descending" : "ascending");
        else cell.removeAttribute("aria-sort");
      });
      const shown = this.visibleItems();
      const limit = this.showAll ? shown.length : this.options.limit || shown.length;
      const fragment = document.createDocumentFragment();
      for (const item of shown.slice(0, limit)) {
        const row = document.createElement("tr");
        for (const field of this.fields) {
          const cell = row.insertCell();
          const value = field.value(item);
          cell.textContent = field.text ? field.text(value, item) : numberText(value);
          cell.className = `${field.kind || ""} ${field.mark && field.mark(item) ? "bad" : ""}`.trim();
        }
        if (this.options.decorate) this.options.decorate(row, item);
        fragment.appendChild(row);
      }
      this.body.replaceChildren(fragment);
      if (this.options.onWrite) this.options.onWrite(shown, limit);
    }
  }

  // Curves of the selected variables.

  const notFiniteMarker = { symbol: "x", color: "#d62839", size: 9 };
  const chosen = new Set();
  const defaultRows = () => {
    const score = (v) => Math.min((notFinite.has(v.row) ? 1e300 : 0) + (v.drift || 0), 1e307);
    return [...data.variables]
      .filter((v) => v.norm !== null)
      .sort((a, b) => score(b) - score(a))
      .slice(0, 8)
      .map((v) => v.row);
  };
  const curve = (row, values) => ({
    x: data.steps,
    y: data.steps.map((_, c) => { const v = values(row, c); return Number.isFinite(v) ? v : null; }),
    name: data.variables[row].label,
    mode: "lines+markers",
    marker: { size: 5 },
    connectgaps: false,
    hovertemplate: `%{y:.6g}, ${data.axis} %{x}<extra>%{fullData.name}</extra>`,
  });
  const notFiniteMarkers = (list, values) => {
    const x = [], y = [], text = [];
    for (const row of list) {
      for (const [c, [nan, inf]] of notFinite.get(row) || []) {
        const value = values(row, c);
        x.push(data.steps[c]);
        y.push(Number.isFinite(value) ? value : null);
        text.push(`${data.variables[row].label}: ${nan} NaN, ${inf} Inf`);
      }
    }
    return { x, y, text, mode: "markers", marker: notFiniteMarker, name: "NaN or Inf",
      hovertemplate: "%{text}<extra></extra>" };
  };
  const needsLogAxis = (traces) => {
    const values = traces.flatMap((trace) => trace.y).filter((v) => v !== null && v > 0);
    const [least, most] = values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, 0]);
    return most / least > 100;
  };
  const drawCurves = () => {
    if (!data.hasValues || !rows) return;
    const list = [...chosen];
    for (const [id, values, title] of [["norms", (r, c) => at(norms, r, c), "norm"], ["drifts", relative, "relative drift"]]) {
      const traces = list.map((row) => curve(row, values));
      const isLog = needsLogAxis(traces);
      traces.push(notFiniteMarkers(list, values));
      draw(id, traces, {
        xaxis: { title: { text: data.axis } },
        yaxis: { title: { text: title }, type: isLog ? "log" : "linear", exponentformat: "power" },
        height: 420,
        showlegend: true,
        legend: { font: { size: 11 } },
      });
    }
  };

  const maxHeatmapRows = 100;
  const drawHeatmap = (shown) => {
    if (!data.hasValues || !rows) return;
    const best = shown.filter((v) => v.norm !== null)
      .sort((a, b) => compare(b.drift || 0, a.drift || 0)).slice(0, maxHeatmapRows);
    byId("heatmap-count").textContent =
      `${best.length} of the ${shown.length} variables that match the search, by most recent drift, largest at the top.`;
    const list = best.reverse();
    const z = list.map((v) => data.steps.map((_, c) => {
      const value = relative(v.row, c);
      return value > 0 && Number.isFinite(value) ? Math.log10(value) : null;
    }));
    const x = data.steps.map(String), y = list.map((v) => v.label);
    const marks = { x: [], y: [] };
    for (const v of list) {
      for (const c of (notFinite.get(v.row) || new Map()).keys()) { marks.x.push(x[c]); marks.y.push(v.label); }
    }
    draw("heatmap", [
      { type: "heatmap", x, y, z, colorscale: "Viridis", hoverongaps: false, colorbar: { title: { text: "log₁₀" } },
        hovertemplate: `%{y}<br>${data.axis} %{x}: 10^%{z:.2f}<extra></extra>` },
      { type: "scatter", ...marks, mode: "markers", marker: notFiniteMarker, name: "NaN or Inf", hoverinfo: "skip" },
    ], {
      xaxis: { type: "category", title: { text: data.axis } },
      yaxis: { type: "category", automargin: true, tickfont: { size: 10 }, range: [-0.5, list.length - 0.5] },
      height: Math.max(220, 110 + 15 * list.length),
      showlegend: false,
    });
  };

  // The variables.

  const total = data.variables.reduce((sum, v) => sum + (v.present ? v.nbytes : 0), 0);
  const number = (title, key, mark) => ({ title, kind: "number", value: (item) => item[key], mark });
  const fields = [
    { title: "name", kind: "name", value: (v) => v.name, text: String, mark: (v) => v.damaged },
    { title: "type", value: (v) => v.type, text: String },
    number("params", "size"), number("bytes", "nbytes"),
    { title: "share", kind: "number", value: (v) => (v.present && total ? (100 * v.nbytes) / total : null),
      text: (share) => (share === null ? "" : `${share.toFixed(2)} %`) },
  ];
  if (data.hasValues) {
    fields.push(number("norm", "norm"), number("drift", "drift"), number("min", "min"), number("max", "max"),
      number("mean", "mean"), number("std", "std"), number("NaN", "nan", (v) => v.nan > 0),
      number("Inf", "inf", (v) => v.inf > 0), number("zeros", "zeros"));
  }
  let words = [];
  let redraw;
  const variables = rows && new Table(byId("variables"), fields, data.variables, {
    column: 3, descending: true, limit: 400,
    filter: (v) => words.every((word) => v.name.toLowerCase().includes(word) || v.type.toLowerCase().includes(word)),
    decorate: (row, v) => {
      row.dataset.row = v.row;
      row.classList.toggle("chosen", chosen.has(v.row));
      row.classList.toggle("absent", !v.present);
      if (!v.present) row.title = "Not in the newest checkpoint.";
      if (v.damaged) row.title = `Damaged in ${v.damaged}.`;
    },
    onWrite: (shown, limit) => {
      byId("count").textContent = `${shown.length.toLocaleString("en-US")} of ${rows.toLocaleString("en-US")} variables`;
      byId("more").hidden = shown.length <= limit;
      byId("more").textContent = `Show all ${shown.length.toLocaleString("en-US")}`;
      clearTimeout(redraw);
      redraw = setTimeout(() => drawHeatmap(shown), 150);
    },
  });
  if (rows) {
    byId("search").addEventListener("input", (event) => {
      words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      variables.showAll = false;
      variables.write();
    });
    byId("more").addEventListener("click", () => { variables.showAll = true; variables.write(); });
  }
  if (rows && data.hasValues) {
    byId("variables").classList.add("clickable");
    variables.body.addEventListener("click", (event) => {
      const row = event.target.closest("tr");
      if (!row) return;
      const key = Number(row.dataset.row);
      if (!chosen.delete(key)) chosen.add(key);
      row.classList.toggle("chosen");
      drawCurves();
    });
    byId("clear").addEventListener("click", () => { chosen.clear(); variables.write(); drawCurves(); });
    defaultRows().forEach((row) => chosen.add(row));
    variables.write();
  }

  // The checkpoints.

  const metricNames = [...new Set(data.checkpoints.flatMap((each) => Object.keys(each.metrics)))];
  const wide = (title, key) => ({ title, value: (item) => item[key], text: (value) => String(value ?? "") });
  const checkpoints = new Table(byId("checkpoints"), [
    { title: "checkpoint", kind: "name", value: (c) => c.name, text: String },
    number("step", "step"), { title: "saved (UTC)", value: (c) => c.time, text: (_, c) => c.saved }, number("bytes", "nbytes"),
    ...(data.checkpoints.some((c) => c.written !== c.nbytes) ? [number("written", "written"), number("frees", "frees")] : []),
    ...metricNames.map((name) => ({ title: name, kind: "number", value: (c) => c.metrics[name] ?? null })),
    { ...wide("status", "status"), mark: (c) => c.status === "damaged" }, wide("details", "note"), wide("metadata", "metadata"),
  ], data.checkpoints, { column: 2, descending: true });

  const drawAll = () => {
    drawFigures();
    drawCurves();
    if (rows) drawHeatmap(variables.visibleItems());
  };
  byId("theme").addEventListener("click", () => { setTheme(dark() ? "light" : "dark"); drawAll(); });
  preferred.addEventListener("change", (event) => { setTheme(event.matches ? "dark" : "light"); drawAll(); });
  drawAll();
  document.documentElement.dataset.drawn = String(checkpoints.items.length);
})();
