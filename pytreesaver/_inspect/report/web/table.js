/* Sortable tables. A field is {title, value(item), text(value, item)?, exact(value)?, kind?, mark(item)?, cell(item)?}. */

/* A name that may be broken after each slash. */
const breakable = (name) => name.split(/(?<=\/)/).flatMap((part) => [part, document.createElement("wbr")]);

class Table {
  /* `state` is {column, descending, showAll}, where `column` is the title of the field by which the rows are sorted. */
  constructor(id, state) {
    Object.assign(this, { element: byId(id), more: byId(`${id}-more`), state: { showAll: false, ...state }, fields: [], items: [] });
    this.more.addEventListener("click", () => { this.state.showAll = true; this.write(); });
  }

  /* Show other items, in the same order as before. */
  show(fields, items, options = {}) {
    Object.assign(this, { fields, items, options });
    if (this.titles !== fields.map((field) => field.title).join("\n")) {
      this.titles = fields.map((field) => field.title).join("\n");
      this.element.replaceChildren();
      this.element.createTHead().insertRow().append(...fields.map((field) => this.heading(field)));
      this.element.createTBody();
    }
    this.write();
  }

  heading(field) {
    const cell = element("th", { className: field.kind || "", scope: "col" });
    const button = element("button", { type: "button", textContent: field.title });
    button.addEventListener("click", () => {
      const { state } = this;
      state.descending = state.column === field.title ? !state.descending : field.kind === "number";
      state.column = field.title;
      this.write();
    });
    cell.append(button);
    return cell;
  }

  visibleItems() {
    const { column, descending } = this.state;
    const { value } = this.fields.find((field) => field.title === column) || this.fields[0];
    const found = this.items.filter(this.options.filter || (() => true));
    const [unknown, known] = [found.filter((item) => isUnknown(value(item))), found.filter((item) => !isUnknown(value(item)))];
    known.sort((a, b) => (descending ? -1 : 1) * compare(value(a), value(b)));
    return [...known, ...unknown];
  }

  write() {
    [...this.element.tHead.rows[0].cells].forEach((cell, i) => {
      if (this.fields[i].title === this.state.column) cell.setAttribute("aria-sort", this.state.descending ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
    const shown = this.visibleItems();
    const limit = this.state.showAll ? shown.length : 400;
    this.element.tBodies[0].replaceChildren(...shown.slice(0, limit).map((item) => this.row(item)));
    this.more.hidden = shown.length <= limit;
    this.more.textContent = `Show all ${countText(shown.length)}`;
    if (this.options.onWrite) this.options.onWrite(shown);
  }

  row(item) {
    const row = document.createElement("tr");
    for (const field of this.fields) {
      const cell = row.insertCell();
      const value = field.value(item);
      if (field.cell) cell.append(field.cell(item));
      else if (field.kind === "name") cell.append(...breakable(value));
      else cell.textContent = field.text ? field.text(value, item) : numberText(value);
      if (field.exact) cell.title = field.exact(value);
      cell.className = `${field.kind || ""} ${field.mark && field.mark(item) ? "bad" : ""}`.trim();
    }
    if (this.options.decorate) this.options.decorate(row, item);
    return row;
  }
}

const numberField = (title, key, mark) => ({ title, kind: "number", value: (item) => item[key], mark });
const bytesField = (title, key) => ({ ...numberField(title, key), text: bytesText, exact: exactBytes });
const secondsField = (title, key) => ({ ...numberField(title, key), text: secondsText, exact: (value) => (isUnknown(value) ? "" : `${value} s`) });
const textField = (title, key, kind = "") => ({ title, kind, value: (item) => item[key], text: (value) => String(value ?? "") });
