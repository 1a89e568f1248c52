/* One run: its curves, layers, spectra, pruning, reduction, embedding, alerts, versions and settings, a page each. */
import { alertTable } from "./alerts.js";
import { ask } from "./ask.js";
import { badge, duration, el, estimate, facts, field, moment, note, number, select, table } from "./dom.js";
import { Figure, charts } from "./figure.js";
import { heatmap } from "./heatmap.js";
import { link, remember } from "./route.js";
import { spectrum } from "./spectrum.js";
import { versionTable } from "./versions.js";

const has = (page) => (run) => run.arrays.some((array) => array.page === page);
const PAGES = {
  curves: ["Curves", () => true, curves],
  layers: ["Layers", (run) => Object.keys(run.layers).length, layers],
  spectrum: ["Spectrum", has("spectrum"), spectrum],
  pruning: ["Pruning", (run) => has("pruning")(run) || run.metrics.some(({ name }) => name.endsWith("/sparsity")), pruning],
  reduction: ["Reduction", has("reduction"), (run) => family(run, "reduction")],
  inpca: ["InPCA", has("inpca"), inpca],
  alerts: ["Alerts", () => true, (run) => ({ element: alertTable(run.alerts, { runs: false }) })],
  versions: ["Versions", (run) => run.versions.length, (run) => ({ element: versionTable(run.versions, { runs: false }) })],
  settings: ["Settings and files", () => true, settings],
};

export async function run(parts, params, { running }) {
  const id = Number(parts[1]), at = parts[2] ?? "curves";
  let { data } = await ask(`runs/${id}`), live = running.includes(id);
  if (!PAGES[at]) throw new Error(`A run has no page ${at}.`);
  const [, there, make] = PAGES[at];
  const page = there(data) ? await make(data, params) : { element: note("info", "This run has nothing of this kind.") };
  const head = el("div"), tabs = el("nav", { class: "tabs", "aria-label": "Pages of this run" });
  const title = () => `${data.id} ${data.name}`;
  function draw() {
    head.replaceChildren(
      el("p", { class: "subtitle" }, badge(data.status), ` ${data.project} · `, moment(data.started), ` · ${duration(data.seconds)}`,
        data.parent ? [" · goes on from ", el("a", { href: link(["run", data.parent]) }, `run ${data.parent}`)] : null,
        data.children.length ? [" · goes on in ", data.children.map((child) => [el("a", { href: link(["run", child.id]) }, `run ${child.id}`), " "])] : null),
      data.tags.length ? el("p", {}, data.tags.map((tag) => el("a", { class: "tag", href: link(["runs"], { tag }) }, tag))) : "");
    tabs.replaceChildren(...Object.entries(PAGES).filter(([name, [, present]]) => name === at || present(data)).map(([name, [text]]) =>
      el("a", { href: link(["run", id, name]), "aria-current": name === at ? "page" : null }, name === "alerts" && data.alerts.length ? `${text} (${data.alerts.length})` : text)));
  }
  draw();
  const holder = el("div", {}, page.element);
  return {
    title: title(),
    element: el("div", {}, el("h1", { tabIndex: -1 }, title()), head,
      el("div", { class: "row" }, el("span", { class: "small" }, "Download"),
        el("a", { class: "button", href: `runs/${id}/report.html`, download: "" }, "Report"), el("a", { class: "button", href: `runs/${id}/data.csv`, download: "" }, "CSV"),
        el("a", { class: "button", href: `runs/${id}/data.json`, download: "" }, "JSON")), tabs, holder),
    async follow(news) {
      if (!live && !news.running.includes(id) && !news.alerts.some((alert) => alert.run_id === id)) return;
      live = news.running.includes(id); /* once more after its end, then no more */
      const answer = await ask(`runs/${id}`);
      data = answer.data;
      if (answer.changed) draw();
      if (page.follow) await page.follow(data);
      else if (answer.changed && ["alerts", "versions", "settings"].includes(at)) holder.replaceChildren((await make(data, params)).element);
    },
  };
}

function curves(run, params) {
  const figures = new Map(), holder = el("div"), singles = el("section", { class: "flat" }), empty = note("info", "Nothing to show: no metric with this name was logged yet.");
  let words = params.get("filter") ?? "", shown = "";
  function draw(data) {
    const found = data.metrics.filter(({ name }) => words.toLowerCase().split(/\s+/).every((word) => name.toLowerCase().includes(word)));
    const names = found.filter(({ first, step }) => first < step).map(({ name }) => name);
    const single = found.filter(({ first, step }) => first === step);
    singles.replaceChildren(single.length ? facts(single.map((one) => [one.name, estimate(one), `step ${number(one.step)}`])) : "");
    if (shown === names.join("\n") && holder.hasChildNodes()) return;
    shown = names.join("\n");
    const groups = new Map();
    for (const name of names) {
      const group = name.includes("/") ? name.slice(0, name.lastIndexOf("/")) : "metrics";
      if (!groups.has(group)) groups.set(group, []);
      if (!figures.has(name)) figures.set(name, Figure.metric(name, [run.id]));
      groups.get(group).push(figures.get(name));
    }
    holder.replaceChildren(...(names.length || single.length ? [...groups].map(([group, members]) => el("section", { class: "flat" }, el("h2", {}, group), charts(members))) : [empty]));
  }
  draw(run);
  let latest = run;
  return {
    element: el("div", {}, el("div", { class: "controls" }, field("Show metrics that have", el("input", { type: "search", value: words, placeholder: "rank", oninput: (event) => {
      words = event.target.value;
      remember({ filter: words });
      draw(latest);
    } }))), singles, holder),
    follow(data) {
      latest = data;
      draw(data);
      figures.forEach((figure) => figure.element.isConnected && figure.refresh());
    },
  };
}

async function layers(run, params) {
  const quantities = Object.keys(run.layers), holder = el("div");
  let quantity = params.get("quantity") ?? quantities[0], figure;
  async function draw(anew = false) {
    const { data, changed } = await ask("heatmap", { run: run.id, name: undefined, quantity });
    if (!anew && !changed) return figure.refresh();
    if (anew) figure = Figure.metric(quantity, [run.id], { quantity });
    if (holder.contains(document.activeElement) && !anew) return figure.refresh();
    holder.replaceChildren(el("h2", {}, `${quantity} by layer and step`), heatmap(data), el("section", { class: "flat" }, el("h2", {}, "The largest"), charts([figure])));
    figure.refresh();
  }
  await draw(true);
  return {
    element: el("div", {}, el("div", { class: "controls" }, field("Quantity", select(quantities, quantity, (value) => {
      quantity = value;
      remember({ quantity });
      draw(true);
    }))), holder),
    follow: () => draw(),
  };
}

async function family(run, page, words = null) {
  const load = async (index) => { const { data, changed } = await ask("family", { run: run.id, page }); return { data: data.charts[index], changed }; };
  const { data } = await ask("family", { run: run.id, page });
  const figures = data.charts.map((chart, index) => new Figure(chart.title, () => load(index), { data: chart }));
  return { element: el("div", {}, words, charts(figures)), follow: () => figures.forEach((figure) => figure.refresh()) };
}

function pruning(run) {
  const wanted = ["sparsity", "kept", "score_before", "score_after"];
  const found = run.metrics.filter(({ name }) => wanted.includes(name.split("/").pop()));
  const files = run.artifacts.filter((file) => file.mime === "text/html").map((file) =>
    el("p", {}, el("a", { href: `runs/${run.id}/artifacts/${encodeURIComponent(file.name)}`, download: "" }, `The workflow's own report (${file.name})`)));
  return family(run, "pruning", [found.length ? facts(found.map((one) => [one.name.split("/").pop().replace("_", " "), estimate(one)])) : null, files]);
}

async function inpca(run, params) {
  const arrays = run.arrays.filter((array) => array.page === "inpca"), holder = el("div");
  let name = params.get("array") ?? arrays[0].name;
  async function draw() {
    const { data } = await ask("inpca", { run: run.id, name });
    const signs = data.eigenvalues.map((value, i) => [`eigenvalue ${i + 1}`, value, value < 0 ? "negative: a direction in which distances shrink" : ""]);
    const cloud = el("div", { class: "cloud", tabIndex: 0, role: data.cloud.axes.length === 3 ? "application" : "img", "aria-label": data.description });
    const rows = data.table.rows.map((row) => row.map(number));
    holder.replaceChildren(facts([["points", data.points], ["step", data.step], ...(data.explained_stress === null ? [] : [["explained stress", data.explained_stress]]), ...signs]),
      el("figure", {}, el("figcaption", {}, name), cloud, el("div", { class: "remarks" }, data.remarks.map((text) => el("p", {}, text))),
        el("details", {}, el("summary", {}, "Data"), table(data.table.columns, rows, { label: `Data: ${name}`, caption: data.table.caption, numeric: data.cloud.axes.map((_, i) => i + 1) }))));
    /* drawn once it has a width */
    requestAnimationFrame(() => dynaxxCloud.setup(cloud, data.cloud));
  }
  await draw();
  return { element: el("div", {}, arrays.length > 1 ? el("div", { class: "controls" }, field("Array", select(arrays.map((array) => array.name), name, (value) => {
    name = value;
    remember({ array: name });
    draw();
  }))) : null, holder) };
}

function settings(run) {
  const files = run.artifacts.map((file) => [el("a", { href: `runs/${run.id}/artifacts/${encodeURIComponent(file.name)}`, download: "" }, file.name),
    file.mime, file.size === null ? "" : number(file.size), file.path ?? "in the store"]);
  const list = (title, rows, heads) => (rows.length ? el("section", { class: "flat" }, el("h2", {}, title), table(heads, rows, { label: title })) : null);
  return { element: el("div", {},
    list("Configuration", run.config, ["setting", "value"]), list("Files", files, ["file", "type", "bytes", "place"]),
    list("Last values", run.metrics.map((one) => [one.name, number(one.step), estimate(one)]), ["metric", "step", "value"]),
    list("Environment", [...run.environment, ["machine", run.host]], ["what", "value"])) };
}
