/* Alerts of all runs, or of one, the newest first. */
import { ask } from "./ask.js";
import { badge, el, field, moment, note, number, select, table } from "./dom.js";
import { link, remember } from "./route.js";

export const alertTable = (alerts, { runs = true } = {}) => (alerts.length
  ? table(["level", "step", "what", "rule", ...(runs ? ["run"] : []), "when"], alerts.map((alert) => [
    badge(alert.level), alert.step === null ? "" : number(alert.step), [el("strong", {}, alert.title), alert.text ? el("div", { class: "small" }, alert.text) : null],
    alert.rule ?? "", ...(runs ? [el("a", { href: link(["run", alert.run_id, "alerts"]) }, `${alert.run_id} ${alert.run_name ?? ""}`)] : []), moment(alert.wall),
  ]), { label: "Alerts", list: true }) : note("good", "No alerts."));

export async function alerts(parts, params) {
  let { data } = await ask("alerts"), level = params.get("level") ?? "";
  const holder = el("div");
  const draw = () => holder.replaceChildren(alertTable(data.alerts.filter((alert) => !level || alert.level === level)));
  draw();
  return {
    title: "Alerts",
    element: el("div", {}, el("h1", { tabIndex: -1 }, "Alerts"), el("div", { class: "controls" },
      field("Level", select([["", "all"], "error", "warning", "info"], level, (value) => {
        level = value;
        remember({ level });
        draw();
      }))), holder),
    async follow({ alerts: fresh }) {
      if (!fresh.length) return;
      ({ data } = await ask("alerts"));
      draw();
    },
  };
}
