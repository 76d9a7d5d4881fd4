/* The data of the page, with the arrays decoded, and what is derived from them. */

const decoded = ([dtype, text]) => {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return dtype === "f4" ? new Float32Array(bytes.buffer) : new Float64Array(bytes.buffer);
};

const maxDeleted = 3000;

/* Add to a run: `at(curve, row, column)`, `relative(row, column)`, what each variable last was, and its NaN and Inf. */
const completeRun = (run, number) => {
  const curves = Object.fromEntries(Object.entries(run.curves).map(([name, values]) => [name, decoded(values)]));
  const columns = run.measured.x.length;
  run.number = number;
  run.at = (curve, row, column) => curves[curve][row * columns + column];
  run.relative = (row, column) => (column > 0 ? run.at("drift", row, column) / run.at("norm", row, column - 1) : NaN);
  run.notFiniteOf = new Map();
  for (const [row, column, nan, inf] of run.notFinite) {
    if (!run.notFiniteOf.has(row)) run.notFiniteOf.set(row, new Map());
    run.notFiniteOf.get(row).set(column, `${countText(nan)} NaN, ${countText(inf)} Inf`);
  }
  const last = (value) => {
    for (let column = columns - 1; column >= 0; column--) if (!Number.isNaN(value(column))) return value(column);
    return null;
  };
  run.rowOf = new Map(run.variables.map((variable, row) => [variable.name, row]));
  run.variables.forEach((variable, row) => {
    variable.row = row;
    variable.norm = last((column) => run.at("norm", row, column));
    variable.drift = last((column) => run.relative(row, column));
  });
  run.checkpoints.forEach((checkpoint, i) => {
    checkpoint.index = i;
    checkpoint.metricOf = new Map(checkpoint.metrics);
  });
  /* Of very many deleted checkpoints, the plots show only every so many. */
  const deleted = run.checkpoints.filter((checkpoint) => !checkpoint.exists).length;
  run.every = Math.ceil(deleted / maxDeleted) || 1;
  run.drawn = run.checkpoints.filter((checkpoint, i) => checkpoint.exists || i % run.every === 0);
  return run;
};

const readData = (text) => {
  const data = JSON.parse(text);
  data.runs = data.runs.map(completeRun);
  [data.run, data.other] = data.runs;
  data.metricNames = [...new Set(data.runs.flatMap((run) => run.checkpoints.flatMap((each) => [...each.metricOf.keys()])))];
  /* The saves of all runs have one axis: steps if all have them, otherwise their numbers. */
  const haveSteps = data.runs.every((run) => run.hasSteps);
  data.saveAxis = haveSteps ? "step" : "save";
  data.saveX = (checkpoint) => (haveSteps ? checkpoint.x : checkpoint.index);
  const measuredSteps = data.runs.every((run) => run.measured.hasSteps);
  data.columnAxis = measuredSteps ? "step" : "checkpoint";
  data.columnX = (run, column) => (measuredSteps ? run.measured.x[column] : column);
  data.hasVariables = data.run.variables.length > 0;
  return data;
};

/* The variables that are plotted first: those with NaN or Inf, and those that changed most. */
const firstChoice = (run) => {
  const score = (v) => Math.min((run.notFiniteOf.has(v.row) ? 1e300 : 0) + (v.drift || 0), 1e307);
  const known = run.variables.filter((v) => v.norm !== null);
  const arrays = known.filter((v) => v.size > 1); // not the step and the like
  return (arrays.length ? arrays : known).sort((a, b) => score(b) - score(a)).slice(0, 8).map((v) => v.name);
};
