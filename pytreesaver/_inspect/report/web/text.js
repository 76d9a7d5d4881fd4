/* Elements of the page, and numbers, sizes and times as people read them. */

const byId = (id) => document.getElementById(id);
const element = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};

const isUnknown = (value) => value === null || value === undefined || value === "";
const countText = (count) => count.toLocaleString("en-US");
const numberText = (value) => {
  if (isUnknown(value)) return "";
  if (typeof value === "string") return value;
  if (Number.isInteger(value)) return countText(value);
  return Math.abs(value) < 1e-4 ? value.toExponential(4).replace(/\.?0*e/, "e") : String(Number(value.toPrecision(5)));
};
/* For the ticks of an axis, where there is little space. */
const shortNumber = (value) => {
  const size = Math.abs(value);
  if (size >= 1e3 && size < 1e15) return d3.format("~s")(value).replace("G", "B");
  if (size !== 0 && (size < 1e-3 || size >= 1e15)) return d3.format(".3~e")(value).replace("−", "-");
  return String(Number(value.toPrecision(4)));
};
const units = ["B", "kB", "MB", "GB", "TB", "PB"];
/* The factor and the name of the unit in which a number of bytes is below 1000, and likewise for seconds. */
const bytesUnit = (nbytes) => {
  let factor = 1, unit = 0;
  while (nbytes / factor >= 999.95 && unit < units.length - 1) { factor *= 1000; unit += 1; }
  return [factor, units[unit]];
};
const secondsUnit = (seconds) =>
  [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([length]) => seconds >= length) || [0.001, "ms"];
const bytesText = (nbytes) => {
  if (isUnknown(nbytes)) return "";
  const [factor, unit] = bytesUnit(nbytes);
  return factor === 1 ? `${nbytes} B` : `${(nbytes / factor).toFixed(1)} ${unit}`;
};
const exactBytes = (nbytes) => (isUnknown(nbytes) ? "" : `${countText(nbytes)} bytes`);
const secondsText = (seconds) => {
  if (isUnknown(seconds)) return "";
  if (typeof seconds === "string") return seconds;
  const [factor, unit] = secondsUnit(Math.abs(seconds));
  return `${numberText(Number((seconds / factor).toPrecision(3)))} ${unit}`;
};
/* The end of a long text, after "…": the last components of a name say most. */
const ending = (text, length) => (text.length <= length ? text : `…${text.slice(1 - length)}`);
const beginning = (text, length) => (text.length <= length ? text : `${text.slice(0, length - 1)}…`);

const compare = (a, b) => {
  if (typeof a === "number" && typeof b === "number") return a === b ? 0 : a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
};
