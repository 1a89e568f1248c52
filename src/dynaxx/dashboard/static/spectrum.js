/* The eigenvalues over time: a slider over the steps, and what is stiff, sloppy, or rounding at each. */
import { ask } from "./ask.js";
import { el, facts, field, number, select } from "./dom.js";
import { Figure } from "./figure.js";
import { remember } from "./route.js";

const THRESHOLDS = [["0.1", "a tenth"], ["0.01", "a hundredth"], ["0.001", "a thousandth"]];

export async function spectrum(run, params) {
  const arrays = run.arrays.filter((array) => array.page === "spectrum");
  let name = params.get("array") ?? arrays[0].name, threshold = params.get("threshold") ?? "0.01";
  let step = params.has("step") ? Number(params.get("step")) : null; /* null: the last, also when there is a later one */
  const load = () => ask("spectrum", { run: run.id, name, step: step ?? undefined, threshold });
  let { data } = await load();
  const figure = new Figure(name, load, { data }), numbers = el("div"), out = el("output", {});
  const slider = el("input", { type: "range", min: 0, step: 1, "aria-label": "step", oninput: () => {
    const index = Number(slider.value);
    step = index === data.steps.length - 1 ? null : data.steps[index];
    remember({ step });
    tell(data.steps[index]);
    update();
  } });
  function tell(shown) {
    out.textContent = `step ${number(shown)} (${data.steps.indexOf(shown) + 1} of ${data.steps.length})`;
    slider.setAttribute("aria-valuetext", out.textContent);
  }
  function draw() {
    slider.max = data.steps.length - 1;
    slider.value = data.steps.indexOf(data.step);
    tell(data.step);
    figure.caption.textContent = `${name}, step ${number(data.step)}`;
    const { "stiff share": share, ...rest } = data.facts;
    numbers.replaceChildren(facts(Object.entries(rest).filter(([, value]) => value !== null).map(([label, value]) =>
      [label, value, label === "stiff" && share !== null ? `${number(100 * share)} % of those above the floor` : ""])));
    if (figure.visible) figure.draw(data); else figure.first = data;
  }
  let asked = 0;
  async function update() {
    const mine = ++asked, answer = await load();
    if (mine !== asked) return;
    data = answer.data;
    draw();
  }
  draw();
  return {
    element: el("div", {},
      el("div", { class: "controls" },
        arrays.length > 1 ? field("Array", select(arrays.map((array) => array.name), name, (value) => {
          name = value;
          step = null;
          remember({ array: name, step });
          update();
        })) : null,
        field("Stiff: at least this part of the largest", select(THRESHOLDS, threshold, (value) => {
          threshold = value;
          remember({ threshold });
          update();
        })),
        el("div", { class: "field wide" }, out, slider)),
      figure.element, numbers),
    follow: () => update(),
  };
}
