/* Plots of the checkpoints of a run: learning curves, timeline, retention, and the sizes and times of the saves. */

const statuses = {
  kept: { colour: "var(--kept)", kind: "filled" },
  "will be deleted": { colour: "var(--soon)", kind: "filled" },
  damaged: { colour: "var(--bad)", kind: "cross" },
  deleted: { colour: "var(--gone)", kind: "" },
  missing: { colour: "var(--gone)", kind: "" },
};
const statusOf = (checkpoint) => statuses[checkpoint.status];

/* Dots at rows of {x, y, checkpoint}, whose colour and shape tell what became of the checkpoint. */
const dotSize = (count) => (count > 1000 ? 1 : count > 300 ? 2 : 3.5);
const statusDots = (rows, options = {}) => Object.entries(statuses).map(([status, { colour, kind }]) => {
  const own = rows.filter((row) => row.checkpoint.status === status);
  return Plot.dot(own, {
    x: "x", y: "y", r: dotSize(own.length), strokeWidth: kind === "cross" ? 2 : 1.5, stroke: colour,
    symbol: kind === "cross" ? "times" : status === "missing" ? "diamond2" : "circle",
    fill: kind === "cross" ? "none" : kind === "filled" ? colour : "var(--page)", ...options,
  });
});

const statusLegend = (runs) => {
  const counts = d3.rollup(runs.flatMap((run) => run.checkpoints), (list) => list.length, (each) => each.status);
  return Object.entries(statuses).filter(([status]) => counts.has(status))
    .map(([status, style]) => ({ ...style, label: `${status} (${countText(counts.get(status))})` }));
};

/* What the pointer shows of a checkpoint. */
const checkpointLines = (run, c, several) => [
  several ? `${run.label}: ${c.name}` : c.name,
  `saved ${c.saved} UTC`,
  ...(c.step === null ? [] : [`step ${countText(c.step)}`]),
  c.exists ? (c.status === "kept" ? `kept: ${c.note}` : c.status === "damaged" ? `damaged: ${c.note}` : "will be deleted at the next save")
    : c.note,
  ...c.metrics.map(([name, value]) => `${name} = ${numberText(value)}`),
];

const within = (bounds, x) => bounds === null || (x >= bounds[0] && x <= bounds[1]);
/* Steps are integers: ticks between them have no text. */
const stepText = (step) => (!Number.isInteger(step) ? "" : step % 10 ? countText(step) : shortNumber(step));
const xAxis = (title, bounds) => ({ label: title, tickFormat: stepText, ...(bounds ? { domain: bounds } : {}) });

/* The curve of a metric in all runs. Values that are not finite are crosses at the bottom. */
const metricSpec = (data, name) => ({ bounds }) => {
  const range = bounds(data.saveAxis);
  const several = data.runs.length > 1;
  const rows = data.runs.flatMap((run) => run.drawn.filter((c) => c.metricOf.has(name)).map((checkpoint) => ({
    run, checkpoint, x: data.saveX(checkpoint), y: checkpoint.metricOf.get(name), series: run.number,
    lines: checkpointLines(run, checkpoint, several),
  }))).filter((row) => within(range, row.x));
  const finite = rows.filter((row) => typeof row.y === "number");
  const last = finite.findLast((row) => row.run === data.run);
  const least = d3.least(finite.filter((row) => row.run === data.run), (row) => row.y);
  return {
    title: name,
    summary: last ? `${rows.length} saves; last ${numberText(last.y)} at ${data.saveAxis} ${last.x}, ` +
      `least ${numberText(least.y)} at ${data.saveAxis} ${least.x}` : "no finite values",
    empty: "No finite values.",
    zoomKey: data.saveAxis,
    canLog: true,
    legend: several ? data.runs.map((run) => ({ label: run.label, colour: `var(--c${run.number})`, kind: run.number ? "line dashed" : "line" })) : null,
    x: xAxis(data.saveAxis, range),
    y: { label: null, values: finite.map((row) => row.y) },
    points: finite,
    marks: ({ isLog }) => {
      const drawn = finite.filter((row) => !isLog || row.y > 0);
      return [
        ...data.runs.map((run) => Plot.lineY(drawn.filter((row) => row.run === run), {
          x: "x", y: "y", stroke: `var(--c${run.number})`, strokeWidth: 1.5, strokeDasharray: run.number ? "5 4" : null,
        })),
        ...statusDots(drawn),
        Plot.dot(rows.filter((row) => typeof row.y !== "number"), {
          x: "x", frameAnchor: "bottom", symbol: "times", stroke: "var(--bad)", strokeWidth: 2, r: 4,
        }),
      ];
    },
  };
};

const timeOf = (seconds) => (typeof seconds === "number" && Math.abs(seconds) < 8e12 ? new Date(seconds * 1000) : null);

/* An axis of times, whose title says the date if the ticks do not. */
const timeAxis = (rows, now) => {
  const [first, last] = d3.extent([...rows.map((row) => row.x), now]);
  const days = (last - first) / 864e5;
  const format = days < 0.01 ? "%H:%M:%S" : days < 2 ? "%H:%M" : days < 300 ? "%b %d" : "%Y-%m";
  const date = d3.utcFormat("%Y-%m-%d")(first);
  return { type: "utc", label: days < 2 ? `time (UTC), from ${date}` : "date (UTC)", tickFormat: d3.utcFormat(format) };
};

/* A line for each checkpoint of a run from its save to its deletion, at the height of its step. */
const lifetimesSpec = (data) => () => {
  const { run } = data;
  const title = run.hasSteps ? "step" : "save";
  const times = run.drawn.flatMap((c) => [c.time, c.deleted]).filter((time) => timeOf(time));
  const now = timeOf(times.length < 3 ? run.time : d3.max(times));
  const rows = run.drawn.map((checkpoint) => ({
    checkpoint, x: timeOf(checkpoint.time), y: checkpoint.x, series: 0, lines: checkpointLines(run, checkpoint),
    end: checkpoint.exists ? now : timeOf(checkpoint.deleted ?? checkpoint.time),
  })).filter((row) => row.x !== null);
  return {
    summary: `${run.checkpoints.length} saves, ${run.checkpoints.filter((c) => c.exists).length} of them exist`,
    height: 340, x: timeAxis(rows, now), y: { label: title }, points: rows, legend: statusLegend([run]),
    marks: () => [
      Plot.ruleY(rows, { x1: "x", x2: "end", y: "y", stroke: (row) => statusOf(row.checkpoint).colour, strokeWidth: 2 }),
      ...statusDots(rows),
    ],
  };
};

/* The existing checkpoints, with a row for each reason to keep them. */
const reasonsSpec = (data) => ({ bounds, width }) => {
  const { run } = data;
  const title = run.hasSteps ? "step" : "save";
  const range = bounds(title);
  const rows = run.checkpoints.filter((c) => c.exists && within(range, c.x)).flatMap((checkpoint) =>
    (checkpoint.reasons.length ? checkpoint.reasons : [checkpoint.status]).map((reason) => ({
      checkpoint, x: checkpoint.x, y: reason, lines: checkpointLines(run, checkpoint),
    })));
  const reasons = [...new Set(rows.map((row) => row.y))];
  rows.forEach((row) => { row.series = reasons.indexOf(row.y); });
  const length = Math.floor(Math.min(0.45 * width, 260) / 6);
  return {
    summary: reasons.map((reason) => `${reason}: ${rows.filter((row) => row.y === reason).length}`).join("; "),
    height: 66 + 30 * reasons.length, marginLeft: 16 + 6 * Math.min(length, d3.max(reasons, (each) => each.length) || 0),
    zoomKey: title, x: xAxis(title, range),
    y: { type: "point", domain: reasons, label: null, tickFormat: (reason) => beginning(reason, length), tickSize: 0 },
    points: rows,
    marks: () => statusDots(rows, { symbol: "square", r: 4 }),
  };
};

/* One number of each save: `series` are {label, value(checkpoint), colour}; `unitOf` chooses the unit of the axis. */
const savesSpec = (data, title, series, format, unitOf, more = () => []) => ({ bounds }) => {
  const { run } = data;
  const axis = run.hasSteps ? "step" : "save";
  const range = bounds(axis);
  const rows = series.flatMap(({ label, value, colour }, number) => run.drawn
    .filter((c) => typeof value(c) === "number" && within(range, c.x))
    .map((checkpoint) => ({
      checkpoint, colour, x: checkpoint.x, value: value(checkpoint), series: number,
      lines: [checkpoint.name, `${label}: ${format(value(checkpoint))}`, ...more(checkpoint), `saved ${checkpoint.saved} UTC`],
    })));
  const values = rows.map((row) => row.value);
  const [factor, unit] = unitOf(d3.max(values, Math.abs) || 0);
  rows.forEach((row) => { row.y = row.value / factor; });
  return {
    title, zoomKey: axis, canLog: true, empty: "Not recorded.",
    summary: rows.length ? `${format(d3.min(values))} to ${format(d3.max(values))}` : "not recorded",
    legend: series.length > 1 ? series.map(({ label, colour }) => ({ label, colour, kind: "filled" })) : null,
    height: 220, x: xAxis(axis, range),
    y: { label: unit, values, zero: true }, points: rows,
    marks: ({ isLog }) => {
      const drawn = rows.filter((row) => !isLog || row.y > 0);
      return [
        isLog || series.length > 1 ? null : Plot.ruleX(drawn, { x: "x", y: "y", stroke: "colour", strokeOpacity: 0.5 }),
        Plot.dot(drawn, { x: "x", y: "y", r: 2.5, fill: "colour" }),
      ];
    },
  };
};
const bytesSpec = (data) => savesSpec(data, "Bytes", [{ label: "size", value: (c) => c.nbytes, colour: "var(--c0)" }], bytesText, bytesUnit,
  (c) => (isUnknown(c.written) || c.written === c.nbytes ? [] : [`written: ${bytesText(c.written)}, the rest shared`]));
const timesSpec = (data) => savesSpec(data, "Time of a save", [
  { label: "writing", value: (c) => c.wrote, colour: "var(--c0)" },
  { label: "training blocked", value: (c) => c.blocked, colour: "var(--c1)" },
], secondsText, secondsUnit);
const intervalsSpec = (data) => savesSpec(data, "Time since the previous save", [
  { label: "since the previous save", value: (c) => c.sincePrevious, colour: "var(--c0)" },
], secondsText, secondsUnit);

/* What is not recorded of the saves, in words. */
const savesNote = (run) => {
  const count = run.checkpoints.length;
  const untimed = run.checkpoints.filter((c) => isUnknown(c.wrote)).length;
  const unsized = run.checkpoints.filter((c) => isUnknown(c.nbytes)).length;
  const parts = [];
  if (run.every > 1) parts.push(`Of the deleted checkpoints, the plots show one in ${run.every}; the table at the end has all.`);
  if (untimed) parts.push(`How long a save took was not recorded for ${countText(untimed)} of ${countText(count)} saves.`);
  if (unsized) parts.push(`The sizes of ${countText(unsized)} deleted checkpoints were not recorded.`);
  return parts.join(" ") || "What each save wrote, how long it took, and how long the training loop waited for it.";
};
