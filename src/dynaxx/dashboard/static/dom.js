/* Elements from plain values. Text is always text: nothing that comes from a store is ever read as HTML. */
export function el(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else if (name in made && !["list", "form", "role"].includes(name) && !name.startsWith("aria")) made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false).map((child) =>
    child instanceof Node ? child : String(child)));
  return made;
}

export const number = (value) =>
  typeof value === "number" ? (Number.isInteger(value) ? dynaxxChart.whole(value) : dynaxxChart.number(value)) : value ?? "–";

export function estimate(one) {
  if (!one) return "–";
  return one.stderr ? `${number(one.value)} ± ${dynaxxChart.number(one.stderr, 2)}` : number(one.value);
}

export function duration(seconds) {
  if (seconds < 60) return `${dynaxxChart.number(seconds, 3)} s`;
  for (const [size, name, smaller, part] of [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]]) {
    if (seconds < size) continue;
    const rest = Math.floor((seconds % size) / smaller);
    return `${Math.floor(seconds / size)} ${name}${rest ? ` ${rest} ${part}` : ""}`;
  }
}

export const moment = (seconds) => {
  const text = new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  return el("time", { dateTime: new Date(seconds * 1000).toISOString(), title: "local time" }, text);
};

const STATES = { finished: "good", running: "info", failed: "bad", interrupted: "warning", good: "good", warning: "warning", bad: "bad", error: "bad" };
export const badge = (word, title) => el("span", { class: `badge ${STATES[word] ?? "info"}`, title }, word);

export const facts = (items) => el("dl", { class: "facts" }, items.map(([label, value, note]) =>
  el("div", {}, el("dt", {}, label), el("dd", { class: typeof value === "number" ? "" : "words" }, value instanceof Node ? value : number(value),
    note ? el("small", {}, note) : null))));

/* Rows under heads; a scrolling region must be reachable with the keyboard and then needs a name. */
export function table(heads, rows, { label, caption, numeric = [], list = false } = {}) {
  const mark = (index) => (numeric.includes(index) ? "number" : "");
  return el("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": label || caption || heads.join(", ") },
    el("table", { class: list ? "list" : "" }, caption ? el("caption", {}, caption) : null,
      el("thead", {}, el("tr", {}, heads.map((head, index) => head instanceof Node ? head : el("th", { scope: "col", class: mark(index) }, head)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, index) => el("td", { class: mark(index) }, cell)))))));
}

export const note = (level, text) => el("p", { class: `note ${level}`, role: "note" }, text);
export const field = (name, input) => el("label", {}, name, input);
export const select = (options, value, onchange) => el("select", { onchange: (event) => onchange(event.target.value) },
  options.map((option) => {
    const [key, text] = Array.isArray(option) ? option : [option, option];
    return el("option", { value: key, selected: String(key) === String(value) }, text);
  }));
