/* Points of a drawing under the pointer and by keyboard: a ring, a text, and what a screen reader says. */

const maxDistance = 60;
const heightWeight = 1 / 3; // the pointer is more often above or below a curve than beside it

/* Return the point nearest to a position, or null. Points are {left, top, lines, series}. */
const nearest = (points, left, top) => {
  let best = null, least = maxDistance ** 2;
  for (const point of points) {
    const distance = (point.left - left) ** 2 + (heightWeight * (point.top - top)) ** 2;
    if (distance < least) [best, least] = [point, distance];
  }
  return best;
};

/* Let the pointer and the keys go through the points of `chart`, drag ranges and zoom. */
const followPointer = (chart, { zoom, toggleLog }) => {
  const { drawing, tip, ring, range, spoken } = chart;
  let from = null;
  const position = (event) => {
    const box = drawing.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const show = (point, isByKey = false) => {
    chart.current = point;
    tip.hidden = ring.hidden = !point;
    if (!point) return;
    ring.style.left = `${point.left}px`;
    ring.style.top = `${point.top}px`;
    tip.replaceChildren(...point.lines.map((line) => element("div", { textContent: line })));
    const width = drawing.clientWidth;
    const left = point.left + 14 + tip.offsetWidth > width ? point.left - 14 - tip.offsetWidth : point.left + 14;
    tip.style.left = `${Math.max(0, Math.min(left, width - tip.offsetWidth))}px`;
    tip.style.top = `${Math.max(0, point.top - tip.offsetHeight - 10)}px`;
    if (isByKey) spoken.textContent = point.lines.join(", ");
  };
  chart.show = show;
  drawing.addEventListener("pointermove", (event) => {
    const [left, top] = position(event);
    if (from === null) return show(nearest(chart.points, left, top));
    Object.assign(range.style, { left: `${Math.min(from, left)}px`, width: `${Math.abs(left - from)}px`, top: 0, bottom: 0 });
    range.hidden = Math.abs(left - from) < 4;
  });
  drawing.addEventListener("pointerleave", () => { if (from === null) show(null); });
  drawing.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button !== 0 || !chart.invert) return;
    [from] = position(event);
    drawing.setPointerCapture(event.pointerId);
    show(null);
  });
  const release = (event) => {
    const [left] = position(event);
    if (from !== null && Math.abs(left - from) > 8) zoom([chart.invert(Math.min(from, left)), chart.invert(Math.max(from, left))]);
    from = null;
    range.hidden = true;
  };
  drawing.addEventListener("pointerup", release);
  drawing.addEventListener("pointercancel", () => { from = null; range.hidden = true; });
  drawing.addEventListener("dblclick", () => zoom(null));
  drawing.addEventListener("blur", () => show(null));

  const step = (by) => {
    const { points } = chart;
    const at = chart.current ? points.indexOf(chart.current) + by : by > 0 ? 0 : points.length - 1;
    return points[Math.max(0, Math.min(at, points.length - 1))];
  };
  const otherSeries = (by) => {
    const { points, current } = chart;
    if (!current) return points[0];
    const series = points.filter((point) => point.series === current.series + by);
    return series.length ? d3.least(series, (point) => Math.abs(point.left - current.left)) : current;
  };
  const keys = {
    ArrowRight: () => show(step(1), true), ArrowLeft: () => show(step(-1), true),
    ArrowUp: () => show(otherSeries(-1), true), ArrowDown: () => show(otherSeries(1), true),
    Home: () => show(chart.points[0], true), End: () => show(chart.points.at(-1), true), Escape: () => show(null),
    "+": () => chart.zoomBy(0.5), "=": () => chart.zoomBy(0.5), "-": () => chart.zoomBy(2), 0: () => zoom(null),
    l: toggleLog, L: toggleLog,
  };
  drawing.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    if (chart.points.length || !event.key.startsWith("Arrow")) keys[event.key]();
  });
};
