/* A heat map: one quantity of every layer over time. It is read with the pointer or the arrow keys. */
import { el, number, table } from "./dom.js";

/* Dark to light, evenly in brightness, also for those who see few colours (the stops are matplotlib's viridis). */
const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
export function shade(share) {
  const place = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1), at = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[at].map((v, i) => Math.round(v + (STOPS[at + 1][i] - v) * (place - at)));
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/* A canvas as wide as its holder and sharp on its screen; redrawn when either changes. */
function surface(holder, height, paint) {
  const canvas = el("canvas");
  holder.prepend(canvas);
  const draw = () => {
    const width = holder.clientWidth, tall = height(), ratio = devicePixelRatio;
    if (!width) return;
    canvas.width = width * ratio;
    canvas.height = tall * ratio;
    canvas.style.height = `${tall}px`;
    const ctx = canvas.getContext("2d");
    ctx.scale(ratio, ratio);
    ctx.font = `12px ${colour("--text")}`;
    paint(ctx, width, tall);
    holder.dataset.drawn = "yes";
  };
  new ResizeObserver(draw).observe(holder);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  return { canvas, draw };
}

export function heatmap(data) {
  const { layers, steps, values, low, high, log } = data;
  const ROW = Math.max(9, Math.min(24, 420 / layers.length)), FOOT = 22, LABELS = ROW >= 11;
  const scale = (v) => (high === low ? 0.5 : log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low));
  const readout = el("output", { class: "readout", "aria-live": "polite" }, "");
  const holder = el("div", {
    class: "canvas", tabIndex: 0, role: "img",
    "aria-label": `Heat map of ${data.quantity}: ${layers.length} layers by ${steps.length} steps, from ${number(low)} to ${number(high)}. The arrow keys read its cells; the table below has the last values.`,
  });
  let at = [0, steps.length - 1], left = 0, cell = 0, marked = false;
  const { canvas, draw } = surface(holder, () => layers.length * ROW + FOOT, (ctx, width) => {
    left = LABELS ? Math.min(width * 0.35, Math.max(...layers.map((name) => ctx.measureText(name).width)) + 10) : 0;
    cell = (width - left) / steps.length;
    ctx.textBaseline = "middle";
    ctx.fillStyle = colour("--soft");
    if (LABELS) layers.forEach((name, row) => ctx.fillText(name, 0, (row + 0.5) * ROW, left - 8));
    const bad = colour("--bad");
    values.forEach((row, y) => row.forEach((value, x) => {
      if (value === null) return;
      ctx.fillStyle = typeof value === "number" ? `rgb(${shade(scale(value))})` : bad;
      const from = Math.floor(left + x * cell); /* whole pixels: no seams between the cells */
      ctx.fillRect(from, y * ROW, Math.ceil(left + (x + 1) * cell) - from, ROW - (ROW > 10 ? 1 : 0));
    }));
    ctx.fillStyle = colour("--soft");
    ctx.textBaseline = "top";
    const many = Math.max(1, Math.ceil(steps.length / Math.max(1, Math.floor((width - left) / 80))));
    for (let x = 0; x < steps.length; x += many) ctx.fillText(number(steps[x]), left + x * cell, layers.length * ROW + 5);
    if (marked) {
      ctx.strokeStyle = colour("--ink");
      ctx.lineWidth = 2;
      ctx.strokeRect(left + at[1] * cell, at[0] * ROW, Math.max(cell, 3), ROW);
    }
  });
  const read = () => {
    const value = values[at[0]][at[1]];
    readout.textContent = `${layers[at[0]]}, step ${number(steps[at[1]])}: ${value === null ? "nothing yet" : typeof value === "number" ? number(value) : `not finite (${value})`}`;
  };
  canvas.addEventListener("pointermove", (event) => {
    const x = Math.floor((event.offsetX - left) / cell), y = Math.floor(event.offsetY / ROW);
    if (x >= 0 && y >= 0 && x < steps.length && y < layers.length) {
      at = [y, x];
      read();
    }
  });
  holder.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    marked = true;
    at = [Math.min(Math.max(at[0] + move[0], 0), layers.length - 1), Math.min(Math.max(at[1] + move[1], 0), steps.length - 1)];
    read();
    draw();
  });
  const bar = el("canvas", { width: 192, height: 12, "aria-hidden": "true" }), pen = bar.getContext("2d");
  for (let x = 0; x < 192; x++) {
    pen.fillStyle = `rgb(${shade(x / 191)})`;
    pen.fillRect(x, 0, 1, 12);
  }
  const lastOf = (row) => { const there = row.filter((v) => v !== null); return there[there.length - 1] ?? "–"; };
  return el("div", {}, holder, readout,
    el("div", { class: "scale" }, number(low), bar, number(high), el("span", {}, log ? "logarithmic" : ""), values.some((row) => row.some((v) => typeof v === "string")) ? "red: not finite" : ""),
    data.total > layers.length ? el("p", { class: "small" }, `The first ${layers.length} of ${data.total} layers.`) : null,
    el("details", {}, el("summary", {}, "Data"), table(["layer", "first", "last"],
      layers.map((name, row) => [name, number(values[row].find((v) => v !== null)), number(lastOf(values[row]))]), { label: `Data: ${data.quantity} by layer`, numeric: [1, 2] })));
}
