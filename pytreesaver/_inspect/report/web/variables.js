/* Plots of variables over the checkpoints of a run: norms, drift, distribution, and the drift of all. */

const finiteOrNull = (value) => (Number.isFinite(value) ? value : null);
const colourOf = (i) => `var(--c${i % 8})`;
const notFiniteItem = { label: "NaN or Inf", colour: "var(--bad)", kind: "cross" };

/* Rows of a curve of a variable in a run, one for each checkpoint. */
const curveRows = (data, run, name, value, bounds) => {
  const row = run.rowOf.get(name);
  if (row === undefined) return [];
  return run.measured.names.map((checkpoint, column) => ({
    run, name, column, checkpoint, x: data.columnX(run, column), y: finiteOrNull(value(run, row, column)),
    notFinite: run.notFiniteOf.get(row)?.get(column),
  })).filter((each) => within(bounds, each.x));
};

const notFiniteMarks = (rows) => {
  const bad = rows.filter((row) => row.notFinite);
  const options = { x: "x", symbol: "times", stroke: "var(--bad)", strokeWidth: 2, r: 4.5 };
  return [
    Plot.dot(bad.filter((row) => row.y !== null), { ...options, y: "y" }),
    Plot.dot(bad.filter((row) => row.y === null), { ...options, frameAnchor: "bottom" }),
  ];
};

/* The curves of the chosen variables. Those of the second run are dashed. */
const curvesSpec = (data, chosen, title, value, runs) => ({ bounds }) => {
  const range = bounds(data.columnAxis);
  const names = [...chosen].filter((name) => data.run.rowOf.has(name));
  const curves = names.flatMap((name, i) => runs.map((run) => ({ name, i, run, rows: curveRows(data, run, name, value, range) })));
  curves.forEach((curve, series) => curve.rows.forEach((row) => {
    Object.assign(row, { series, lines: [
      runs.length > 1 ? `${row.run.label}: ${curve.name}` : curve.name, `${title} ${numberText(row.y)}`,
      `${data.columnAxis} ${countText(row.x)}, ${row.checkpoint}`, ...(row.notFinite ? [row.notFinite] : []),
    ] });
  }));
  const rows = curves.flatMap((curve) => curve.rows);
  return {
    summary: `${names.length} variables over ${data.run.measured.x.length} checkpoints`,
    empty: "Choose variables in the table above.",
    height: 320, zoomKey: data.columnAxis, canLog: true, x: xAxis(data.columnAxis, range), marginLeft: 60,
    y: { label: title, values: rows.map((row) => row.y).filter((y) => y !== null) },
    legend: [
      ...names.map((name, i) => ({ label: name, colour: colourOf(i), kind: "line" })),
      ...(runs.length > 1 ? [{ label: runs[1].label, colour: "var(--dim)", kind: "line dashed" }] : []),
      ...(rows.some((row) => row.notFinite) ? [notFiniteItem] : []),
    ],
    points: rows.filter((row) => row.y !== null),
    marks: ({ isLog }) => {
      const drawable = (row) => (row.y !== null && (!isLog || row.y > 0) ? row.y : NaN);
      return [
        ...curves.flatMap(({ i, run, rows: list }) => [
          Plot.lineY(list, { x: "x", y: drawable, stroke: colourOf(i), strokeWidth: 1.5, strokeDasharray: run.number ? "5 4" : null }),
          Plot.dot(list, { x: "x", y: drawable, r: 2.5, fill: colourOf(i) }),
        ]),
        ...notFiniteMarks(rows.map((row) => ({ ...row, y: Number.isNaN(drawable(row)) ? null : row.y }))),
      ];
    },
  };
};
const normsSpec = (data, chosen) => curvesSpec(data, chosen, "norm", (run, row, column) => run.at("norm", row, column), data.runs);
const driftsSpec = (data, chosen) =>
  curvesSpec(data, chosen, "relative drift", (run, row, column) => run.relative(row, column), [data.run]);

/* Mean, standard deviation, least and largest element of a variable, in each run. */
const distributionSpec = (data, name) => ({ bounds }) => {
  const range = bounds(data.columnAxis);
  const rows = data.runs.flatMap((run) => curveRows(data, run, name, (_, row, column) => run.at("mean", row, column), range).map((each) => {
    const row = run.rowOf.get(name);
    const [low, high, std] = ["min", "max", "std"].map((curve) => run.at(curve, row, each.column));
    return {
      ...each, low: finiteOrNull(low), high: finiteOrNull(high), std, series: run.number,
      lines: [
        data.runs.length > 1 ? `${run.label}: ${each.checkpoint}` : each.checkpoint,
        `mean ${numberText(each.y)} ± ${numberText(std)}`, `from ${numberText(low)} to ${numberText(high)}`,
        `${data.columnAxis} ${countText(each.x)}`, ...(each.notFinite ? [each.notFinite] : []),
      ],
    };
  }));
  const known = rows.filter((row) => row.y !== null);
  const last = known.findLast((row) => row.run === data.run);
  const area = (run, low, high, fillOpacity) => Plot.areaY(rows.filter((row) => row.run === run), {
    x: "x", y1: (row) => low(row) ?? NaN, y2: (row) => high(row) ?? NaN, fill: `var(--c${run.number})`, fillOpacity,
  });
  const edge = (run, key) => Plot.lineY(rows.filter((row) => row.run === run), {
    x: "x", y: (row) => row[key] ?? NaN, stroke: `var(--c${run.number})`, strokeDasharray: "5 4",
  });
  return {
    title: name || "", summary: last ? last.lines.slice(1).join(", ") : "no values",
    empty: name ? "No real numbers." : "Choose a variable in the table above.",
    height: 320, zoomKey: data.columnAxis, x: xAxis(data.columnAxis, range), y: { label: null }, marginLeft: 60, points: known,
    legend: [
      ...data.runs.map((run) => ({ label: data.runs.length > 1 ? `${run.label}: mean` : "mean", colour: colourOf(run.number), kind: "line" })),
      ...(rows.some((row) => row.notFinite) ? [notFiniteItem] : []),
    ],
    marks: () => [
      ...data.runs.flatMap((run) => [
        ...(run.number ? [edge(run, "low"), edge(run, "high")] : [area(run, (row) => row.low, (row) => row.high, 0.16)]),
        area(run, (row) => row.y - row.std, (row) => row.y + row.std, run.number ? 0.2 : 0.3),
        Plot.lineY(rows.filter((row) => row.run === run), { x: "x", y: (row) => row.y ?? NaN, stroke: colourOf(run.number), strokeWidth: 2 }),
        Plot.dot(known.filter((row) => row.run === run), { x: "x", y: "y", r: 2.5, fill: colourOf(run.number) }),
      ]),
      ...notFiniteMarks(rows),
    ],
  };
};

/* The drift of the variables in `shown`, a row for each variable and a column for each checkpoint. */
const maxHeatmapRows = 100;
const heatmapRows = (shown) => shown.filter((v) => v.norm !== null).sort((a, b) => (b.drift || 0) - (a.drift || 0)).slice(0, maxHeatmapRows);
const heatmapSpec = (data, shown) => ({ width }) => {
  const { run } = data;
  const list = heatmapRows(shown);
  const length = Math.floor(Math.min(0.4 * width, 340) / 6.2);
  const cells = list.flatMap((v, series) => run.measured.names.map((checkpoint, column) => {
    const value = run.relative(v.row, column);
    const notFinite = run.notFiniteOf.get(v.row)?.get(column);
    return {
      x: column, y: v.row, series, notFinite, isUnchanged: value === 0, value: value > 0 && Number.isFinite(value) ? Math.log10(value) : null,
      lines: [v.name, `relative drift ${Number.isNaN(value) ? "unknown" : numberText(value)}`, checkpoint, ...(notFinite ? [notFinite] : [])],
    };
  })).filter((cell) => cell.x > 0 || cell.notFinite); // the first checkpoint has nothing before it
  const [low, high] = d3.extent(cells, (cell) => cell.value);
  const every = Math.ceil(run.measured.x.length / Math.max(1, (0.6 * width) / 52));
  const gradient = element("span", { className: "gradient" });
  gradient.style.background = `linear-gradient(to right, ${d3.range(0, 1.01, 0.125).map(d3.interpolateViridis)})`;
  return {
    summary: `${list.length} variables, ${run.measured.x.length} checkpoints`,
    empty: "No variable with numbers matches the search.",
    height: 60 + 15 * list.length, marginLeft: 16 + 6.2 * Math.min(length, d3.max(list, (v) => v.name.length) || 0), grid: false,
    color: { type: "linear", scheme: "viridis", domain: [low ?? 0, high ?? 1] },
    legend: low === undefined ? null : [element("span", {}, shortNumber(10 ** low), gradient, shortNumber(10 ** high))],
    x: { type: "band", label: data.columnAxis, padding: 0.04, tickFormat: (column) => (column % every ? "" : stepText(data.columnX(run, column))), tickSize: 0 },
    y: { type: "band", domain: list.map((v) => v.row), label: null, padding: 0.08, tickFormat: (row) => ending(run.variables[row].name, length), tickSize: 0 },
    points: cells,
    marks: () => [
      Plot.cell(cells.filter((cell) => cell.isUnchanged), { x: "x", y: "y", fill: "var(--line)", inset: 0.5 }),
      Plot.cell(cells, { x: "x", y: "y", fill: (cell) => cell.value, inset: 0.5 }),
      Plot.dot(cells.filter((cell) => cell.notFinite), { x: "x", y: "y", symbol: "times", stroke: "var(--bad)", strokeWidth: 2, r: 4 }),
    ],
  };
};
