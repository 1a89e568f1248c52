/* All runs: found by words, project and tag, sorted, and chosen to be compared. */
import { ask } from "./ask.js";
import { badge, duration, el, field, moment, note, number, select, table } from "./dom.js";
import { link, remember } from "./route.js";

const MOST = 8;
const COLUMNS = [
  ["run", (run) => run.id], ["name", (run) => run.name], ["project", (run) => run.project], ["status", (run) => run.status],
  ["started", (run) => run.started], ["took", (run) => run.seconds], ["tags", (run) => run.tags.join(" ")],
  ["alerts", (run) => (run.alerts.error ?? 0) * 1e6 + (run.alerts.warning ?? 0) * 1e3 + (run.alerts.info ?? 0)], ["versions", (run) => run.versions],
];

export async function runs(parts, params) {
  const asked = () => Object.fromEntries(["search", "project", "tag", "parent"].map((name) => [name, params.get(name)]));
  const picked = new Set((params.get("pick") ?? "").split(",").filter(Boolean).map(Number));
  let sort = params.get("sort") ?? "-run", { data } = await ask("runs", asked());
  const holder = el("div"), count = el("p", { class: "small", role: "status" });
  const compare = el("a", { class: "button" }, "Compare");

  const set = async (changes) => {
    for (const [name, value] of Object.entries(changes)) if (value) params.set(name, value); else params.delete(name);
    remember(changes);
    ({ data } = await ask("runs", asked()));
    draw();
  };
  let timer;
  const search = el("input", {
    type: "search", value: params.get("search") ?? "", placeholder: "cnn status:failed lr=0.1", autocomplete: "off",
    oninput: (event) => {
      clearTimeout(timer);
      timer = setTimeout(() => set({ search: event.target.value }), 150);
    },
  });
  const project = select([["", "all"], ...data.projects], params.get("project") ?? "", (value) => set({ project: value }));
  const tag = select([["", "any"], ...data.tags], params.get("tag") ?? "", (value) => set({ tag: value }));

  function choose() {
    const enough = picked.size >= 2 && picked.size <= MOST;
    compare.textContent = picked.size ? `Compare ${picked.size} runs` : "Compare";
    compare.setAttribute("aria-disabled", String(!enough));
    if (enough) compare.href = link(["compare"], { items: [...picked].join(",") });
    else compare.removeAttribute("href");
    compare.title = enough ? "" : `Choose 2 to ${MOST} runs`;
    remember({ pick: [...picked].join(",") });
  }

  function heads() {
    return [el("th", { scope: "col" }, el("span", { class: "unseen" }, "compare")), ...COLUMNS.map(([name]) => {
      const down = sort === `-${name}`, up = sort === name;
      return el("th", { scope: "col", "aria-sort": up ? "ascending" : down ? "descending" : "none" }, el("button", {
        type: "button", onclick: () => {
          sort = down ? name : `-${name}`;
          remember({ sort });
          draw();
          [...holder.querySelectorAll("th button")].find((button) => button.textContent === name)?.focus();
        },
      }, name));
    })];
  }

  const row = (run) => [
    el("input", {
      type: "checkbox", checked: picked.has(run.id), "aria-label": `compare run ${run.id} ${run.name}`,
      onchange: (event) => {
        if (event.target.checked) picked.add(run.id); else picked.delete(run.id);
        choose();
      },
    }),
    el("a", { href: link(["run", run.id]) }, run.id), el("a", { href: link(["run", run.id]) }, run.name), run.project, badge(run.status),
    moment(run.started), duration(run.seconds),
    run.tags.map((name) => el("button", { type: "button", class: "tag", "aria-pressed": String(params.get("tag") === name), onclick: () => {
      tag.value = params.get("tag") === name ? "" : name;
      set({ tag: tag.value });
    } }, name)),
    ["error", "warning", "info"].filter((level) => run.alerts[level]).map((level) => [badge(level), ` ${number(run.alerts[level])} `]),
    run.versions ? number(run.versions) : "",
  ];

  function draw() {
    const name = sort.replace("-", ""), [, key] = COLUMNS.find(([other]) => other === name) ?? COLUMNS[0];
    const sorted = [...data.runs].sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : a.id - b.id));
    if (sort.startsWith("-")) sorted.reverse();
    const at = document.activeElement?.closest?.("tr")?.querySelector?.("input")?.getAttribute("aria-label");
    const kind = document.activeElement?.tagName;
    count.textContent = `${data.runs.length} run${data.runs.length === 1 ? "" : "s"}`;
    holder.replaceChildren(sorted.length ? table(heads(), sorted.map(row), { label: "Runs", list: true })
      : note("info", "No run has all of this. Words are looked for in names, projects, tags and settings."));
    /* a live table must not take the focus away from who is in it */
    if (at) [...holder.querySelectorAll("input")].find((input) => input.getAttribute("aria-label") === at)?.closest("tr").querySelector(kind)?.focus();
    choose();
  }
  draw();
  return {
    title: "Runs",
    element: el("div", {}, el("h1", { tabIndex: -1 }, "Runs"),
      el("div", { class: "controls" }, field("Search", search), field("Project", project), field("Tag", tag), compare), count, holder),
    async follow() {
      const answer = await ask("runs", asked());
      if (!answer.changed) return;
      data = answer.data;
      draw();
    },
  };
}
