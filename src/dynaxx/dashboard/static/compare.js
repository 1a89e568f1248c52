/* Runs and model versions side by side. */
import { ask } from "./ask.js";
import { badge, el, estimate, field, note, table } from "./dom.js";
import { Figure, charts } from "./figure.js";
import { link, remember } from "./route.js";

export async function compare(parts, params) {
  const items = (params.get("items") ?? "").split(",").filter(Boolean);
  let { data } = await ask("compare", { item: items }), words = params.get("filter") ?? "";
  const runs = [...new Set(data.items.map((item) => item.run))];
  const heads = data.items.map((item) => el("th", { scope: "col" }, el("a", { href: link(["run", item.run]) }, item.label), " ",
    badge(item.version ? item.version.health : item.status, item.version?.reasons.join("; "))));
  const without = (item) => link(["compare"], { items: items.filter((other) => other !== item).join(","), filter: words });
  const figures = new Map(data.metrics.filter(({ drawn }) => drawn).map(({ name }) => [name, Figure.metric(name, runs)]));
  const wanted = (name) => words.toLowerCase().split(/\s+/).every((word) => name.toLowerCase().includes(word));
  const values = () => table([el("th", { scope: "col" }, "metric"), ...heads.map((head) => head.cloneNode(true))],
    data.metrics.filter(({ name }) => wanted(name)).map(({ name, values: row }) => [name, ...row.map((one) => (one ? [estimate(one), " ", el("span", { class: "small" }, `step ${one.step}`)] : "–"))]), { label: "Last values" });
  const holder = el("div"), curves = el("div");
  function draw() {
    holder.replaceChildren(values());
    const shown = [...figures].filter(([name]) => wanted(name)).map(([, figure]) => figure);
    curves.replaceChildren(...(shown.length ? [el("h2", {}, "Curves"), charts(shown)] : []));
  }
  draw();
  return {
    title: "Comparison",
    element: el("div", {}, el("h1", { tabIndex: -1 }, "Comparison"),
      el("div", { class: "row" }, data.items.map((item) => el("a", { class: "button", href: items.length > 1 ? without(item.item) : "#/runs", "aria-label": `take ${item.label} out` }, `${item.label} ✕`)),
        runs.length > 1 ? el("a", { class: "button", href: `compare.html?${new URLSearchParams(runs.map((id) => ["run", id]))}`, download: "" }, "Report") : null),
      data.cautions.map((text) => note("warning", text)),
      el("div", { class: "controls" }, field("Show metrics that have", el("input", { type: "search", value: words, placeholder: "rank", oninput: (event) => {
        words = event.target.value;
        remember({ filter: words });
        draw();
      } }))),
      el("section", { class: "flat" }, el("h2", {}, "Last values"), holder),
      el("section", { class: "flat" }, el("h2", {}, "Settings that differ"), data.settings.length
        ? table(["setting", ...data.items.map((item) => item.label)], data.settings, { label: "Settings that differ" }) : el("p", {}, "None.")),
      el("section", { class: "flat" }, curves)),
    async follow({ running, ended }) {
      if (!runs.some((id) => running.includes(id) || ended.includes(id))) return;
      figures.forEach((figure) => figure.element.isConnected && figure.refresh());
      const answer = await ask("compare", { item: items });
      data = answer.data;
      if (answer.changed) holder.replaceChildren(values());
    },
  };
}
