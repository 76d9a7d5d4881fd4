/* The bytes of the variables as nested areas, of which the upper levels are drawn. */

const maxLevels = 4;

/* Group variables by the next component of their names, down to `levels` levels: {name, path, variables, nbytes, children}. */
const grouped = (name, path, variables, levels) => {
  const node = { name, path, variables, nbytes: d3.sum(variables, (v) => v.nbytes), children: null };
  const depth = path.length;
  if (!levels || (variables.length === 1 && variables[0].parts.length <= depth)) return node;
  const groups = d3.group(variables, (v) => (v.parts.length > depth ? v.parts[depth] : null));
  if (groups.size === 1 && !groups.has(null)) { // an only child is drawn in its parent's place
    const [[part, members]] = groups;
    return grouped(name ? `${name}/${part}` : part, [...path, part], members, levels);
  }
  node.children = [...groups].map(([part, members]) =>
    (part === null ? { name: ".", path, variables: members, nbytes: d3.sum(members, (v) => v.nbytes), children: null }
      : grouped(part, [...path, part], members, levels - 1)));
  return node;
};

/* Draw the areas of the variables under `path`, and the way there. `zoomTo(path)` is called for a chosen area. */
const drawTreemap = (host, way, variables, path, zoomTo) => {
  const width = host.clientWidth, height = host.clientHeight;
  const present = variables.filter((v) => v.present && v.nbytes > 0);
  present.forEach((v) => { v.parts ??= v.name.split("/"); });
  const below = present.filter((v) => path.every((part, i) => v.parts[i] === part));
  if (!below.length && path.length) return zoomTo([]);
  const total = d3.sum(present, (v) => v.nbytes);
  const root = d3.hierarchy(grouped("", path, below, maxLevels)).sum((node) => (node.children ? 0 : node.nbytes)).sort((a, b) => b.value - a.value);
  d3.treemap().size([width, height]).paddingInner(2).paddingOuter((node) => (node.depth ? 3 : 0)).paddingTop((node) => (node.depth ? 19 : 0)).round(true)(root);
  const areas = root.descendants().filter((node) => node.depth || !node.children).filter((node) => node.x1 - node.x0 > 1 && node.y1 - node.y0 > 1);
  const top = (node) => (node.depth <= 1 ? node : top(node.parent));
  const colours = new Map((root.children || [root]).map((node, i) => [node, colourOf(i)]));
  const drawn = areas.map((node) => {
    const { data } = node;
    const only = data.variables.length === 1 ? data.variables[0] : null;
    const what = `${only ? only.type : `${countText(data.variables.length)} variables`}, ${bytesText(data.nbytes)}`;
    const canZoom = data.path.length > path.length && !only;
    const area = element(canZoom ? "button" : "div", { className: "area", title: `${[...data.path].join("/")}\n${what} (${exactBytes(data.nbytes)}), ${(100 * data.nbytes / total).toFixed(2)} % of all` });
    Object.assign(area.style, { left: `${node.x0}px`, top: `${node.y0}px`, width: `${node.x1 - node.x0}px`, height: `${node.y1 - node.y0}px` });
    area.style.setProperty("--area", colours.get(top(node)));
    area.style.setProperty("--strength", `${14 + 9 * node.depth}%`);
    const [w, h] = [node.x1 - node.x0, node.y1 - node.y0];
    if (w > 34 && h > 16) area.append(element("span", { textContent: node.children ? `${data.name || "all"}, ${bytesText(data.nbytes)}` : data.name || "all" }));
    if (!node.children && w > 60 && h > 34) area.append(element("small", { textContent: what }));
    if (canZoom) {
      area.type = "button";
      area.addEventListener("click", () => zoomTo(data.path));
    }
    return area;
  });
  const hadFocus = host.contains(document.activeElement) || way.contains(document.activeElement);
  host.replaceChildren(...drawn);
  const crumb = (text, to) => {
    const button = element("button", { type: "button", textContent: text });
    if (to.length === path.length) button.setAttribute("aria-current", "location");
    button.addEventListener("click", () => zoomTo(to));
    return button;
  };
  way.replaceChildren(
    crumb(`all variables, ${bytesText(total)}`, []),
    ...path.flatMap((part, i) => [element("span", { textContent: "/" }), crumb(part || "''", path.slice(0, i + 1))]),
  );
  if (hadFocus) way.lastElementChild.focus();
};
