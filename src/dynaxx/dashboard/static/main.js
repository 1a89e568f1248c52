/* Which page is shown, and what is new: every two seconds the server is asked once, and the page that is open follows. */
import { alerts } from "./alerts.js";
import { ask } from "./ask.js";
import { compare } from "./compare.js";
import { el, note } from "./dom.js";
import { current } from "./route.js";
import { run } from "./run.js";
import { runs } from "./runs.js";
import { versions } from "./versions.js";

const PAGES = { runs, run, compare, versions, alerts };
const EVERY = 2000;
const main = document.getElementById("main"), state = document.getElementById("state"), announce = document.getElementById("announce");
let page = null, shown = "", last = null, running = [], serial = 0;

/* A page is an async function of the address that gives { title, element, follow(news) }. */
async function show(first = false) {
  const { parts, params } = current(), mine = ++serial;
  shown = location.hash;
  for (const link of document.querySelectorAll("#pages a")) {
    if (link.hash === `#/${parts[0]}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  let next;
  try {
    const make = PAGES[parts[0]];
    if (!make) throw new Error(`There is no page ${parts[0]}.`);
    next = await make(parts, params, { running });
  } catch (error) {
    next = { title: "Not found", element: el("div", {}, el("h1", { tabIndex: -1 }, "Not found"), note("bad", error.message)) };
  }
  if (mine !== serial) return;
  page = next;
  document.title = `${page.title} · dynaxx`;
  main.replaceChildren(page.element);
  main.dataset.page = parts.join("/");
  if (!first) main.querySelector("h1")?.focus();
}

async function hear() {
  try {
    const { data } = await ask("news", { since: last ?? 0 });
    state.className = "";
    state.textContent = `${data.running.length ? `${data.running.length} running · ` : ""}${data.store}`;
    const fresh = last === null ? [] : data.alerts;
    if (fresh.length) {
      const words = fresh.map((alert) => `${alert.level} in run ${alert.run_id}: ${alert.title}`);
      announce.textContent = words.slice(-3).join(". ");
    }
    const ended = running.filter((id) => !data.running.includes(id));
    last = data.last;
    running = data.running;
    await page?.follow?.({ alerts: fresh, running, ended });
  } catch (error) {
    state.className = "lost";
    state.textContent = error.status === 401 ? "The token is wanted again: open the address that was printed." : "The server does not answer; trying again.";
  }
}

async function listen() {
  for (;;) {
    if (!document.hidden) await hear();
    await new Promise((done) => setTimeout(done, EVERY));
  }
}

addEventListener("hashchange", () => location.hash !== shown && show());
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
await show(true);
listen();
