/* A chart with its title, what it does not show, and its numbers as a table. It is asked for when it comes into view. */
import { ask } from "./ask.js";
import { el, number, table } from "./dom.js";

const MOST_ROWS = 60;
const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    target.figure.visible = isIntersecting;
    if (isIntersecting) target.figure.refresh();
  }
}, { rootMargin: "300px" });

export class Figure {
  /* load() -> { data, changed }, given { from, to } after a zoom by hand; data: an answer that is there already */
  constructor(title, load, { zoom = false, data = null } = {}) {
    this.load = load;
    this.zoom = zoom;
    this.visible = false;
    this.first = data; /* what is known already, drawn once there is a width to draw it to */
    this.part = {};
    this.caption = el("figcaption", {}, title);
    this.plot = el("div", { class: "plot", role: "img", "aria-label": `Chart: ${title}` });
    this.remarks = el("div", { class: "remarks" });
    this.rows = el("details", { ontoggle: () => this.list() }, el("summary", {}, "Data"));
    this.element = el("figure", { class: "chart" }, this.caption, this.plot, this.remarks, this.rows);
    this.element.figure = this;
    seen.observe(this.element);
    dynaxxChart.follow(this.plot);
  }

  static metric(name, runs, params = {}) {
    return new Figure(params.quantity ?? name, (part) => ask("lines", { run: runs, name: params.quantity ? undefined : name, ...params, ...part }), { zoom: true });
  }

  async refresh() {
    if (this.busy || !this.visible) return;
    if (this.first) {
      const data = this.first;
      this.first = null;
      this.draw(data);
      return;
    }
    this.busy = true;
    try {
      const { data, changed } = await this.load(this.part);
      if (changed || !this.plot.plot || this.shown !== data) this.draw(data);
    } catch (error) {
      if (!this.plot.plot) {
        this.plot.classList.add("failed");
        this.plot.textContent = error.message;
      }
    } finally {
      this.busy = false;
    }
  }

  draw(data, anew = false) {
    this.shown = data;
    this.plot.classList.remove("failed");
    this.plot.setAttribute("aria-label", data.description);
    dynaxxChart.draw(this.plot, data, {
      anew,
      onZoom: this.zoom && ((from, to) => {
        this.part = from === null ? {} : { from, to };
        this.refresh();
      }),
    });
    this.remarks.replaceChildren(...data.remarks.map((text) => el("p", {}, text)));
    this.list();
  }

  list() {
    if (!this.rows.open || !this.shown) return;
    const { curves, xLabel } = this.shown, places = [...new Set(curves.flatMap((curve) => curve.x))].sort((a, b) => a - b);
    const every = Math.max(1, (places.length - 1) / (MOST_ROWS - 1)), chosen = [];
    for (let i = 0; i < places.length - 0.5; i += every) chosen.push(places[Math.round(i)]);
    const columns = curves.map((curve) => new Map(curve.x.map((x, i) => [x, curve.y[i] ?? "gap"])));
    const caption = chosen.length < places.length ? `${chosen.length} of ${places.length} rows` : "";
    const made = table([xLabel, ...curves.map((curve) => curve.name)],
      chosen.map((place) => [number(place), ...columns.map((column) => (column.has(place) ? number(column.get(place)) : ""))]),
      { label: `Data: ${this.shown.title}`, caption, numeric: [0, ...curves.map((_, i) => i + 1)] });
    this.rows.replaceChildren(this.rows.firstChild, made);
  }
}

export const charts = (figures) => el("div", { class: "charts", "data-count": figures.length }, figures.map((figure) => figure.element));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const element of document.querySelectorAll("figure.chart")) if (element.figure.shown) element.figure.draw(element.figure.shown, true);
});
