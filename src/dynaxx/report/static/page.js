"use strict";
/* The report: every chart and cloud of the page is drawn once, from the data inside it. */
(() => {
  const { draw, follow, HEIGHT } = dynaxxChart;
  const [charts, clouds] = ["charts", "clouds"].map((id) => JSON.parse(document.getElementById(id).textContent));
  const holders = [...document.querySelectorAll(".plot")];
  const redraw = () => holders.forEach((holder) => draw(holder, charts[Number(holder.dataset.chart)], { anew: true }));
  redraw();
  const again = [...document.querySelectorAll(".cloud")].map((holder) => dynaxxCloud.setup(holder, clouds[Number(holder.dataset.cloud)]));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  holders.forEach(follow);
  /* Paper is white whatever the screen is, and narrower: two charts side by side. */
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("print");
    redraw();
    again.forEach((draw) => draw());
    for (const holder of holders) {
      const alone = holder.closest(".charts").dataset.count === "1";
      holder.plot.setSize({ width: alone ? 640 : 310, height: HEIGHT });
    }
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("print");
    redraw();
    again.forEach((draw) => draw());
  });
})();
