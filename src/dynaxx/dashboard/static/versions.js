/* States of models that were given a name, each with its health, and chosen to be compared. */
import { ask } from "./ask.js";
import { badge, el, moment, note, number, table } from "./dom.js";
import { link, remember } from "./route.js";

const MOST = 8;
const drift = (one) => `${one.name}: ${number(one.baseline)} → ${number(one.value)} in run ${one.run}` +
  (typeof one.deviations === "number" ? ` (${number(one.deviations)} standard errors)` : "");
const details = (version) => {
  const lines = [...version.details.map(([key, value]) => `${key} = ${value}`), ...(version.digest ? [`digest ${version.digest}`] : []),
    ...Object.entries(version.baseline).map(([name, [value, spread]]) => `baseline ${name} = ${number(value)}${spread === "NaN" ? "" : ` ± ${number(spread)}`}`),
    ...version.drift.map((one) => `drift ${drift(one)}`)];
  return lines.length ? el("details", {}, el("summary", {}, `${lines.length} details`), el("ul", { class: "reasons" }, lines.map((line) => el("li", {}, line)))) : "";
};

export function versionTable(found, { runs = true, pick = null } = {}) {
  if (!found.length) return note("info", "No model version was recorded: run.model_version(name, ...) records one.");
  return table([...(pick ? [el("th", { scope: "col" }, el("span", { class: "unseen" }, "compare"))] : []), "version", ...(runs ? ["run"] : []), "step", "health", "because", "recorded", "details"],
    found.map((version) => [
      ...(pick ? [pick(version)] : []), el("strong", {}, version.name),
      ...(runs ? [el("a", { href: link(["run", version.run, "versions"]) }, `${version.run} ${version.run_name}`)] : []),
      version.step === null ? "" : number(version.step), badge(version.health), el("ul", { class: "reasons" }, version.reasons.map((reason) => el("li", {}, reason))),
      moment(version.wall), details(version),
    ]), { label: "Model versions", list: true });
}

export async function versions(parts, params) {
  const picked = new Set((params.get("pick") ?? "").split(",").filter(Boolean));
  let { data } = await ask("versions");
  const holder = el("div"), compare = el("a", { class: "button" }, "Compare");
  const choose = () => {
    const enough = picked.size >= 2 && picked.size <= MOST;
    compare.setAttribute("aria-disabled", String(!enough));
    if (enough) compare.href = link(["compare"], { items: [...picked].join(",") }); else compare.removeAttribute("href");
    compare.title = enough ? "" : `Choose 2 to ${MOST} versions`;
    remember({ pick: [...picked].join(",") });
  };
  const pick = (version) => {
    const item = `${version.run}:${version.name}`;
    return el("input", { type: "checkbox", checked: picked.has(item), "aria-label": `compare ${version.name} of run ${version.run}`, onchange: (event) => {
      if (event.target.checked) picked.add(item); else picked.delete(item);
      choose();
    } });
  };
  const draw = () => holder.replaceChildren(versionTable(data.versions, { pick }),
    data.total > data.versions.length ? el("p", { class: "small" }, `The newest ${data.versions.length} of ${data.total}; the others are on the pages of their runs.`) : "");
  draw();
  choose();
  return {
    title: "Model versions",
    element: el("div", {}, el("h1", { tabIndex: -1 }, "Model versions"),
      el("p", {}, "Health rests on the alerts since the version before, on values that are not finite when the version was made, and on drift against its baseline."),
      el("div", { class: "row" }, compare), holder),
    async follow({ running, ended }) {
      if (!running.length && !ended.length) return;
      const answer = await ask("versions");
      if (!answer.changed || holder.contains(document.activeElement)) return;
      data = answer.data;
      draw();
    },
  };
}
