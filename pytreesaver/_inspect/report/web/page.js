/* The page: what is chosen, what is drawn when, and newer versions of a served page. */

let data = readData(byId("data").textContent);
const root = document.documentElement;
const state = {
  chosen: new Set(firstChoice(data.run)), // the names of the plotted variables
  distributed: null, // the name of the variable whose distribution is plotted
  metric: "", // the name of the plotted metric, "" for all
  words: [], // of the search
  area: [], // the path of the zoomed area
};

// Themes. The colours are variables of CSS, so that nothing is drawn again.

const setTheme = (isDark) => { root.dataset.theme = isDark ? "dark" : "light"; };
const preferred = window.matchMedia("(prefers-color-scheme: dark)");
setTheme(preferred.matches);
preferred.addEventListener("change", (event) => setTheme(event.matches));
byId("theme").addEventListener("click", () => setTheme(root.dataset.theme !== "dark"));

// Plots.

const draw = (id, describe) => drawChart(byId(id), describe, drawCharts);
const maxMetricsAtOnce = 6;

/* Fill a <select>, and return what is chosen in it: `wanted`, if there is such an option, otherwise the first. */
const fillSelect = (select, options, wanted) => {
  const chosen = options.some(([value]) => value === wanted) ? wanted : options.length ? options[0][0] : null;
  select.replaceChildren(...options.map(([value, label]) => element("option", { value, textContent: label, selected: value === chosen })));
  select.disabled = options.length < 2;
  return chosen;
};

const metricFigures = new Map();
const drawMetrics = () => {
  const names = data.metricNames;
  const all = names.length > 1 && names.length <= maxMetricsAtOnce ? [["", "all"]] : [];
  state.metric = fillSelect(byId("metric"), [...all, ...names.map((name) => [name, name])], state.metric);
  const shown = state.metric === "" && all.length ? names : names.filter((name) => name === state.metric);
  shown.forEach((name) => { if (!metricFigures.has(name)) metricFigures.set(name, element("figure")); });
  const figures = shown.map((name) => metricFigures.get(name));
  if (figures.length !== byId("metrics").children.length || figures.some((figure, i) => figure !== byId("metrics").children[i])) {
    byId("metrics").replaceChildren(...figures);
  }
  shown.forEach((name) => {
    const figure = metricFigures.get(name);
    figure.id ||= `metric-${names.indexOf(name)}`;
    drawChart(figure, metricSpec(data, name), drawCharts);
  });
  byId("status-legend").replaceChildren(...statusLegend(data.runs).map(legendItem));
};

const drawCurves = () => {
  if (!data.hasValues || !data.hasVariables) return;
  const names = [...state.chosen].filter((name) => data.run.rowOf.has(name));
  state.distributed = fillSelect(byId("distributed"), names.map((name) => [name, name]), state.distributed);
  draw("norms", normsSpec(data, state.chosen));
  draw("drifts", driftsSpec(data, state.chosen));
  draw("distribution", distributionSpec(data, state.distributed));
};

const drawHeatmap = () => {
  if (!data.hasValues || !data.hasVariables) return;
  const shown = variables.visibleItems();
  byId("heatmap-count").textContent =
    `${heatmapRows(shown).length} of the ${shown.length} variables that match the search, by most recent drift, largest at the top.`;
  draw("heatmap", heatmapSpec(data, shown));
};

const drawAreas = () => {
  const zoomTo = (path) => { state.area = path; drawAreas(); };
  if (data.hasVariables) drawTreemap(byId("treemap"), byId("treemap-path"), data.run.variables, state.area, zoomTo);
};
let areasWidth = 0;
new ResizeObserver(([entry]) => {
  if (areasWidth && entry.contentRect.width !== areasWidth) drawAreas();
  areasWidth = entry.contentRect.width;
}).observe(byId("treemap"));

const drawCharts = () => {
  drawMetrics();
  draw("lifetimes", lifetimesSpec(data));
  draw("reasons", reasonsSpec(data));
  draw("save-bytes", bytesSpec(data));
  draw("save-times", timesSpec(data));
  draw("save-intervals", intervalsSpec(data));
  drawCurves();
};

// Tables.

const variables = new Table("variables", { column: "bytes", descending: true });
const checkpoints = new Table("checkpoints", { column: "saved (UTC)", descending: true });
const differences = new Table("differences", { column: "name", descending: false });

const toggle = (name) => {
  if (!state.chosen.delete(name)) {
    state.chosen.add(name);
    state.distributed = name;
  }
  drawCurves();
};
const checkbox = (v) => {
  const box = element("input", { type: "checkbox", checked: state.chosen.has(v.name), disabled: v.norm === null });
  box.setAttribute("aria-label", `Plot ${v.name}`);
  return box;
};
const variableFields = () => {
  const total = d3.sum(data.run.variables, (v) => (v.present ? v.nbytes : 0));
  const share = (v) => (v.present && total ? (100 * v.nbytes) / total : null);
  return [
    ...(data.hasValues ? [{ title: "plot", value: (v) => Number(state.chosen.has(v.name)), cell: checkbox }] : []),
    { ...textField("name", "name", "name"), mark: (v) => v.damaged }, textField("type", "type", "nowrap"),
    numberField("params", "size"), bytesField("bytes", "nbytes"),
    { title: "share", kind: "number", value: share, text: (value) => (value === null ? "" : `${value.toFixed(2)} %`) },
    ...(data.hasValues ? [
      ...["norm", "drift", "min", "max", "mean", "std"].map((key) => numberField(key, key)),
      numberField("NaN", "nan", (v) => v.nan > 0), numberField("Inf", "inf", (v) => v.inf > 0), numberField("zeros", "zeros"),
    ] : []),
  ];
};
let redraw;
const showVariables = () => variables.show(variableFields(), data.run.variables, {
  filter: (v) => state.words.every((word) => v.name.toLowerCase().includes(word) || v.type.toLowerCase().includes(word)),
  decorate: (row, v) => {
    row.variable = v;
    row.classList.toggle("chosen", data.hasValues && state.chosen.has(v.name));
    row.classList.toggle("absent", !v.present);
    if (!v.present) row.title = "Not in the newest checkpoint.";
    if (v.damaged) row.title = `Damaged in ${v.damaged}.`;
  },
  onWrite: (shown) => {
    byId("count").textContent = `${countText(shown.length)} of ${countText(data.run.variables.length)} variables`;
    clearTimeout(redraw);
    redraw = setTimeout(drawHeatmap, 150);
  },
});

const checkpointFields = () => {
  const all = data.run.checkpoints;
  const some = (key) => all.some((c) => !isUnknown(c[key]));
  const names = [...new Set(all.flatMap((c) => [...c.metricOf.keys()]))];
  return [
    textField("checkpoint", "name", "name"), numberField("step", "step"),
    { title: "saved (UTC)", kind: "nowrap", value: (c) => c.time, text: (_, c) => c.saved }, bytesField("bytes", "nbytes"),
    ...(all.some((c) => !isUnknown(c.written) && c.written !== c.nbytes) ? [bytesField("written", "written"), bytesField("frees", "frees")] : []),
    ...(some("wrote") ? [secondsField("writing", "wrote"), secondsField("blocked", "blocked")] : []),
    secondsField("since previous", "sincePrevious"),
    ...names.map((name) => ({ title: name, kind: "number", value: (c) => c.metricOf.get(name) ?? null })),
    { ...textField("status", "status", "nowrap"), mark: (c) => c.status === "damaged" }, textField("details", "note", "details"),
    textField("metadata", "metadata", "details"),
  ];
};

const showTables = () => {
  if (data.hasVariables) showVariables();
  checkpoints.show(checkpointFields(), data.run.checkpoints);
  if (!data.other) return;
  const { differences: found, runs } = data;
  differences.show([
    textField("name", "name", "name"),
    ...["first", "second"].map((key, i) => ({ title: runs[i].label, value: (each) => each[key], text: (type) => type ?? "absent" })),
  ], found);
  const newest = runs.map((run) => `${run.label}/${run.measured.names.at(-1) ?? ""}`);
  byId("differences-note").textContent = found.length
    ? `${countText(found.length)} variables differ in name, shape or dtype between ${newest.join(" and ")}.`
    : `The variables of ${newest.join(" and ")} have the same names, shapes and dtypes.`;
};

// Everything.

const showAll = () => {
  byId("metrics-section").hidden = !data.metricNames.length;
  byId("reasons-section").hidden = !data.run.checkpoints.some((c) => c.exists);
  byId("differences-section").hidden = !data.other;
  for (const each of document.querySelectorAll(".of-variables")) each.hidden = !data.hasVariables;
  for (const each of document.querySelectorAll(".of-values")) each.hidden = !data.hasVariables || !data.hasValues;
  for (const each of document.querySelectorAll("data.bytes")) {
    each.textContent = bytesText(Number(each.value));
    each.title = exactBytes(Number(each.value));
  }
  byId("saves-note").textContent = savesNote(data.run);
  byId("variables").classList.toggle("clickable", data.hasValues);
  showTables();
  drawCharts();
  drawAreas();
  root.dataset.drawn = String(data.run.checkpoints.length);
};

byId("metric").addEventListener("change", (event) => { state.metric = event.target.value; drawMetrics(); });
byId("distributed").addEventListener("change", (event) => { state.distributed = event.target.value; drawCurves(); });
byId("search").addEventListener("input", (event) => {
  state.words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  variables.state.showAll = false;
  variables.write();
});
byId("variables").addEventListener("click", (event) => {
  const row = event.target.closest("tbody tr");
  if (!row || !data.hasValues || row.variable.norm === null) return;
  toggle(row.variable.name);
  row.classList.toggle("chosen", state.chosen.has(row.variable.name));
  row.querySelector("input").checked = state.chosen.has(row.variable.name);
});
byId("clear").addEventListener("click", () => { state.chosen.clear(); variables.write(); drawCurves(); });
showAll();

// A served page asks for newer versions, and shows them without losing what is chosen.

const secondsBetweenQuestions = 2;
const say = (text, isLate = false) => { byId("live").textContent = text; byId("live").classList.toggle("late", isLate); };

const get = async (url) => {
  const answer = await fetch(url, { cache: "no-store" });
  const text = await answer.text();
  if (!answer.ok) throw new Error(text.slice(0, 300));
  return text;
};

const update = async () => {
  const { version } = JSON.parse(await get("version.json"));
  if (version === root.dataset.version) return say("live");
  say("reading a new version");
  const page = new DOMParser().parseFromString(await get("./"), "text/html");
  const [left, top] = [window.scrollX, window.scrollY];
  byId("top").replaceChildren(...page.getElementById("top").childNodes);
  data = readData(page.getElementById("data").textContent);
  root.dataset.version = page.documentElement.dataset.version;
  showAll();
  window.scrollTo(left, top);
  say("live");
};

const follow = async () => {
  try {
    await update();
  } catch (error) {
    say(error instanceof TypeError ? "no connection; trying again" : `not updated: ${error.message}`, true);
  }
  setTimeout(follow, 1000 * secondsBetweenQuestions);
};
if (root.dataset.version) {
  byId("live").hidden = false;
  follow();
}
