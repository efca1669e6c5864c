// What the page is built of. Data becomes text nodes and attributes only: nothing here reads it as HTML.

/** An element with attributes (a function is a listener) and children (text or elements). */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Sets a text only where it differs: screen readers and selections are left alone. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function show(element, is) {
  if (element.hidden === is) element.hidden = !is;
}

/** Puts a list of items into `parent`, one child each, kept by its key; `update` writes an item into its child. */
export function keep(parent, items, key, make, update) {
  const before = parent.kept ?? new Map();
  const after = new Map();
  let at = parent.firstElementChild;
  for (const item of items) {
    const id = key(item);
    if (after.has(id)) continue;
    const child = before.get(id) ?? make(item);
    child.item = item;
    update(child, item);
    after.set(id, child);
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
  }
  for (const [id, child] of before) if (!after.has(id)) child.remove();
  parent.kept = after;
}

/** What stands in place of a list that cannot be read. */
const UNKNOWN = "Not known just now: the database is unavailable.";

/**
 * A table. Columns: `name`, `of(item)` as text or `cell(item)` as an element that is made once, `update(element, item)` with it.
 * On a narrow screen each row is a card, so the roles are said aloud.
 */
export function table(place, label, columns, key, empty) {
  const head = columns.map(({ name, hidden }) =>
    h("th", { scope: "col", role: "columnheader" }, hidden ? h("span", { class: "unseen" }, name) : name));
  const body = h("tbody", { role: "rowgroup" });
  const whole = h("table", { role: "table", "aria-labelledby": label },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ...head)), body);
  const none = h("p", { class: "empty" }, empty);
  place.append(whole, none);
  const make = (item) => {
    const cells = columns.map((column, n) => h(n ? "td" : "th",
      { role: n ? "cell" : "rowheader", scope: n ? null : "row", "data-label": column.hidden ? null : column.name, class: column.class },
      column.cell ? column.cell(() => row.item ?? item) : null));
    const row = h("tr", { role: "row" }, ...cells);
    return row;
  };
  const update = (row, item) => columns.forEach((column, n) => {
    const cell = row.children[n];
    if (column.of) say(cell, column.of(item) ?? "–");
    else column.update?.(cell.firstElementChild, item);
    if (column.tone) {
      const tone = column.tone(item) ?? "";
      if (cell.dataset.tone !== tone) cell.dataset.tone = tone;
    }
  });
  /** Without items nothing is known of them: that is not the same as none. */
  return (items) => {
    keep(body, items ?? [], key, make, update);
    say(none, items ? empty : UNKNOWN);
    show(whole, Boolean(items?.length));
    show(none, !items?.length);
  };
}

/** A line of values over time; `null` is not known. For eyes alone: what it says stands beside it as text. */
export function line(values, limit) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const [width, height] = [160, 36];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("line");
  const top = Math.max(limit ?? 0, 1, ...values.map((value) => value ?? 0));
  const x = (n) => (n * width) / Math.max(values.length - 1, 1);
  const y = (value) => height - 2 - (value * (height - 4)) / top;
  const add = (name, attributes) => {
    const shape = document.createElementNS(space, name);
    for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, value);
    svg.append(shape);
  };
  if (limit) add("line", { x1: 0, x2: width, y1: y(limit), y2: y(limit), class: "bound" });
  const known = values.map((value, n) => [n, value]).filter(([, value]) => value !== null);
  if (known.length > 1) {
    const points = known.map(([n, value]) => `${x(n).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    const [first, last] = [x(known[0][0]), x(known.at(-1)[0])];
    add("polygon", { points: `${first},${height} ${points} ${last},${height}`, class: "area" });
    add("polyline", { points, class: "stroke" });
  }
  return svg;
}

/** Names what a dialog shows in the address, so that a link to it can be sent to somebody. Closing it takes the name away. */
export function nameInAddress(dialog, address) {
  const [before] = location.hash.split("/");
  history.replaceState(null, "", `#${address}`);
  dialog.onclose = () => {
    if (!dialog.open && location.hash === `#${address}`) history.replaceState(null, "", before || "#overview");
  };
}

/** How much of a limit is in use, as a bar. */
export function meter(label) {
  return h("div", { class: "meter", role: "meter", "aria-label": label, "aria-valuemin": 0 }, h("div", { class: "fill" }));
}

/** `used` is null: not known. */
export function setMeter(bar, used, limit) {
  const isKnown = used !== null && used !== undefined;
  used ??= 0;
  const part = limit ? Math.min(used / limit, 1) : 0;
  bar.setAttribute("aria-valuemax", String(limit || Math.max(used, 1)));
  bar.setAttribute("aria-valuenow", String(limit ? Math.min(used, limit) : used));
  bar.setAttribute("aria-valuetext", !isKnown ? "not known" : limit ? `${used} of ${limit}` : `${used}, no limit`);
  bar.dataset.tone = !limit ? "" : used >= limit ? "full" : part >= 0.8 ? "near" : "";
  bar.firstElementChild.style.width = `${(part * 100).toFixed(1)}%`;
}

/** How much of something is done, as a bar. */
export function progress(label) {
  return h("div", { class: "meter", role: "progressbar", "aria-label": label, "aria-valuemin": 0 }, h("div", { class: "fill" }));
}

export function setProgress(bar, done, all) {
  bar.setAttribute("aria-valuemax", String(Math.max(all, 1)));
  bar.setAttribute("aria-valuenow", String(Math.min(done, Math.max(all, 1))));
  bar.setAttribute("aria-valuetext", `${done} of ${all}`);
  bar.firstElementChild.style.width = `${all ? (Math.min(done / all, 1) * 100).toFixed(1) : 0}%`;
}

/** Names and values as a list; those without a value are left out. */
export function showAttributes(list, pairs) {
  const told = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  keep(list, told, ([name]) => name, ([name]) => h("div", {}, h("dt", {}, name), h("dd")),
    (pair, [, value]) => say(pair.lastElementChild, String(value)));
}

/** Milliseconds as a person says them. */
export function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}
