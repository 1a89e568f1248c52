"use strict";
/* Curves and spectra as the report and the dashboard draw them, over uPlot. */
const dynaxxChart = (() => {
  const HEIGHT = 232;
  const RAISED = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
  const raised = (power) => [...String(power)].map((c) => RAISED[c]).join("");

  /* The same rules as dynaxx.report.numerals, so that a legend and a table agree. */
  function number(value, digits = 4) {
    if (value === 0) return "0";
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
    const power = Number(exponent);
    const trim = (s) => (s.includes(".") ? s.replace(/0+$/, "").replace(/\.$/, "") : s);
    if (power < -4 || power >= 6) return `${trim(mantissa)}×10${raised(power)}`.replace(/^-/, "−");
    const [whole, part] = trim(value.toFixed(Math.max(0, digits - 1 - power))).split(".");
    const grouped = whole.replace(/\B(?=(\d{3})+$)/g, "\u202f");
    return (part ? `${grouped}.${part}` : grouped).replace(/^-/, "−");
  }
  const whole = (value) => (Number.isInteger(value) && Math.abs(value) < 1e9 ? number(value, 9) : number(value));

  /* Places on a logarithmic axis: powers of ten, every n-th where they are many, with 2 and 5 or more where they are few.
     (The library lists every multiple of every power, which for a range of 300 decades is too much for it.) */
  function logSplits(u, axis, low, high) {
    const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high)), decades = Math.log10(high / low);
    if (decades < 0.5) {
      const step = 10 ** Math.floor(Math.log10((high - low) / 2)), out = [];
      const wide = (high - low) / step > 8 ? 5 * step : (high - low) / step > 4 ? 2 * step : step;
      for (let v = Math.ceil(low / wide) * wide; v <= high; v += wide) out.push(Number(v.toPrecision(12)));
      return out;
    }
    const every = Math.max(1, Math.ceil(decades / 7)), leads = decades < 1 ? [1, 2, 3, 5, 7] : decades < 2 ? [1, 2, 5] : [1];
    const out = [];
    for (let power = Math.ceil(from / every) * every; power <= to; power += every) {
      for (const lead of leads) {
        const v = Number(`${lead}e${power}`);
        if (v >= low && v <= high) out.push(v);
      }
    }
    return out;
  }
  const all = (u, splits) => splits;
  const logTicks = (u, splits) => splits.map((v) => {
    if (v === null) return "";
    const power = Math.round(Math.log10(v));
    return Math.abs(v / 10 ** power - 1) < 1e-6 && (power < -2 || power > 4) ? `10${raised(power)}` : number(v);
  });

  const node = (tag, name, content) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (content !== undefined) made.textContent = content;
    return made;
  };

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue(name).trim();
    return {
      ink: get("--soft"), grid: get("--grid"), line: get("--line"), paper: get("--paper"), font: `12px ${get("--text")}`,
      palette: Array.from({ length: 8 }, (_, i) => get(`--c${i}`)),
    };
  }

  /* A curve becomes one or more columns: itself, its band's edges, or the part below its floor. */
  function columns(chart, colours) {
    const tables = [], series = [{}], bands = [], owners = [];
    chart.curves.forEach((curve, index) => {
      const stroke = colours.palette[index % 8];
      const dash = index >= 8 ? [6, 3] : undefined;
      const add = (y, options) => {
        tables.push([curve.x, y]);
        owners.push(index);
        return series.push({ label: curve.name, stroke, width: 1.75, dash, pxAlign: 0, ...options }) - 1;
      };
      const main = { points: { size: 5, fill: stroke, width: 0, filter: isolated } };
      if (chart.kind === "spectra") {
        const dots = curve.x.length <= 60 ? { show: true, size: 4.5, fill: stroke, width: 0 } : { show: false };
        curve.main = add(curve.y.map((v, i) => (i < curve.above ? v : null)), { points: dots });
        if (curve.above < curve.y.length) {
          const from = Math.max(0, curve.above - 1);
          const faint = { ...dots, fill: `${stroke}55` };
          add(curve.y.map((v, i) => (i < from ? null : v)), { stroke: `${stroke}55`, width: 1.25, points: faint, faded: true });
        }
        return;
      }
      if (curve.low) {
        const edge = { stroke: "transparent", width: 0, points: { show: false }, edge: true };
        const low = add(curve.low, edge), high = add(curve.high, edge);
        bands.push({ series: [high, low], fill: `${stroke}26` });
      }
      curve.main = add(curve.y, main);
    });
    return { data: joined(tables), series, bands, owners };
  }

  /* One table of all: places of any curve, then a column for each. Curves over the same places need no joining, which
     for a hundred thousand values would take longer than drawing them. */
  function joined(tables) {
    if (!tables.length) return [[]];
    const [places] = tables[0];
    return tables.every(([x]) => x === places) ? [places, ...tables.map(([, y]) => y)] : uPlot.join(tables);
  }

  /* A value between two gaps has no line through it, so it gets a point whatever the density. */
  function isolated(u, column, show) {
    if (show) return null;
    const y = u.data[column], found = [];
    let before = null, at = -1;
    for (let i = 0; i <= y.length; i++) {
      if (i < y.length && y[i] === undefined) continue;
      const now = i < y.length ? y[i] : null;
      if (at >= 0 && before === null && now === null) found.push(at);
      before = at >= 0 ? y[at] : null;
      at = now === null ? -1 : i;
    }
    return found.length ? found : null;
  }

  /* Stretches of the vertical axis that have a name, tinted in turn under the curves. */
  function ground(state, colours) {
    return (u) => {
      const { ctx, bbox } = u, ratio = devicePixelRatio;
      ctx.save();
      ctx.font = `${11 * ratio}px ${colours.font.slice(colours.font.indexOf(" ") + 1)}`;
      ctx.textBaseline = "top";
      ctx.textAlign = "right";
      (state.chart.regions || []).forEach((region, index) => {
        const place = (v) => Math.min(Math.max(u.valToPos(v, "y", true), bbox.top), bbox.top + bbox.height);
        const top = region.high === null ? bbox.top : place(region.high);
        const bottom = region.low === null ? bbox.top + bbox.height : place(region.low);
        if (bottom - top < 1) return;
        ctx.fillStyle = `${colours.ink}${index % 2 ? "0a" : "1a"}`;
        ctx.fillRect(bbox.left, top, bbox.width, bottom - top);
        ctx.fillStyle = colours.ink;
        if (bottom - top > 16 * ratio) ctx.fillText(region.label, bbox.left + bbox.width - 4 * ratio, top + 3 * ratio);
      });
      ctx.restore();
    };
  }

  /* Straight lines across the plot: floors of spectra, and markers with their words. */
  function overlay(state, colours) {
    return (u) => {
      const { chart } = state, { ctx, bbox } = u, ratio = devicePixelRatio;
      ctx.save();
      ctx.beginPath();
      ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
      ctx.clip();
      ctx.lineWidth = ratio;
      const sharp = (v) => Math.round(v) + (Math.round(ratio) % 2) / 2; /* on the pixel, not across two */
      const line = (x0, y0, x1, y1) => { ctx.beginPath(); ctx.moveTo(x0, y0); ctx.lineTo(x1, y1); ctx.stroke(); };
      chart.curves.forEach((curve, index) => {
        if (!curve.floor || !u.series[curve.main].show) return;
        const y = sharp(u.valToPos(curve.floor, "y", true));
        ctx.setLineDash([5 * ratio, 4 * ratio]);
        ctx.strokeStyle = colours.palette[index % 8];
        line(bbox.left, y, bbox.left + bbox.width, y);
      });
      ctx.setLineDash([2 * ratio, 3 * ratio]);
      ctx.strokeStyle = ctx.fillStyle = colours.ink;
      ctx.font = `${11 * ratio}px ${colours.font.slice(colours.font.indexOf(" ") + 1)}`;
      ctx.textBaseline = "top";
      ctx.textAlign = "left";
      const rows = [];
      for (const marker of chart.markers) {
        if (chart.logX && marker.x <= 0) continue;
        const exact = u.valToPos(marker.x, "x", true), right = bbox.left + bbox.width;
        if (exact < bbox.left - 1 || exact > right + 1) continue;
        const x = Math.min(sharp(exact), right - ratio / 2); /* the last step is inside, too */
        line(x, bbox.top, x, bbox.top + bbox.height);
        const width = ctx.measureText(marker.label).width + 8 * ratio;
        const left = x + width > bbox.left + bbox.width ? x - width + 4 * ratio : x + 4 * ratio;
        let row = 0; /* words that would overlap go one line down */
        while (row < 4 && rows[row] !== undefined && rows[row] > left) row++;
        if (row === 4) continue;
        rows[row] = left + width;
        const top = bbox.top + (3 + 15 * row) * ratio;
        ctx.fillStyle = `${colours.paper}d9`;
        ctx.fillRect(left - 2 * ratio, top - ratio, width - 4 * ratio, 14 * ratio);
        ctx.fillStyle = colours.ink;
        ctx.fillText(marker.label, left, top);
      }
      ctx.restore();
    };
  }

  /* The value of a curve at or nearest before a place; null for a gap, undefined where it has not begun. */
  function at(u, column, index) {
    for (let i = index; i >= 0; i--) if (u.data[column][i] !== undefined) return u.data[column][i];
    return undefined;
  }

  function legend(holder, state, colours) {
    const { chart } = state;
    const list = node("ul", "legend"), outputs = [];
    const place = node("div", "axis-name x", chart.xLabel);
    const only = chart.curves.length === 1 && (chart.curves[0].name === chart.title || !chart.curves[0].name);
    chart.curves.forEach((curve, index) => {
      const item = node("li"), button = node("button"), swatch = node("i", index >= 8 ? "dashed" : "");
      swatch.style.borderTopColor = colours.palette[index % 8];
      const value = node("output");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.append(swatch, ...(only ? [] : [node("span", "", curve.name)]), value);
      button.addEventListener("click", () => {
        const show = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(show));
        state.owners.forEach((owner, i) => owner === index && holder.plot.setSeries(i + 1, { show }));
      });
      item.append(button);
      list.append(item);
      outputs.push(value);
    });
    if (chart.curves.some((curve) => curve.floor)) {
      const item = node("li", "floor"), swatch = node("i", "dashed");
      swatch.style.display = "inline-block";
      swatch.style.marginRight = ".4em";
      swatch.style.verticalAlign = "middle";
      item.append(swatch, "rounding floor");
      list.append(item);
    }
    const update = (u) => {
      const { chart } = state;
      const hovered = u.cursor.idx !== null && u.cursor.idx !== undefined && u.cursor.left >= 0;
      const length = u.data[0].length;
      place.textContent = length && hovered ? `${chart.xLabel} ${whole(u.data[0][u.cursor.idx])}` : chart.xLabel;
      chart.curves.forEach((curve, index) => {
        let value = at(u, curve.main, hovered ? u.cursor.idx : length - 1);
        if (chart.kind === "spectra") {
          value = hovered ? curve.y[curve.x.indexOf(u.data[0][u.cursor.idx])] : undefined;
        }
        const missing = chart.kind === "spectra" || value === undefined ? "" : "gap";
        outputs[index].textContent = value === null || value === undefined ? (length ? missing : "no data") : number(value);
      });
    };
    return { list, place, update };
  }

  function range(chart) {
    return (u, low, high) => {
      if (low === null || low === undefined) return chart.logY ? [0.1, 1] : [0, 1];
      if (chart.logY) return low === high ? [low / 3, high * 3] : [low / 1.15, high * 1.15];
      const pad = (high - low || Math.abs(high) || 1) * 0.06;
      /* zero is shown where it is near: a small change should not look like a large one */
      return [low >= 0 && low < 0.4 * high ? 0 : low - pad, high <= 0 && high > 0.4 * low ? 0 : high + pad];
    };
  }

  /* What the drawing was made for: data with the same names may take the place of the old without a new drawing. */
  const shape = (chart, series) => JSON.stringify([
    chart.kind, chart.title, chart.xLabel, chart.yLabel, chart.logX, chart.logY, series.map((s) => s.label),
    chart.curves.map((curve) => [curve.name, !!curve.floor]),
  ]);

  /* Draws a chart into an element, or gives the chart that is there new data. onZoom(low, high) hears of a change of
     the horizontal stretch by hand; both are null when it is the whole again. */
  function draw(holder, chart, { onZoom, anew = false } = {}) {
    const colours = theme();
    for (const curve of chart.curves) if (typeof curve.x === "number") curve.x = chart.curves[curve.x].x;
    const { data, series, bands, owners } = columns(chart, colours);
    const made = shape(chart, series);
    if (holder.plot && !anew && holder.state.made === made) {
      Object.assign(holder.state, { chart, owners });
      holder.plot.setData(data, !holder.state.zoomed);
      if (holder.state.zoomed) holder.plot.redraw();
      holder.state.update(holder.plot);
      return;
    }
    if (holder.plot) holder.plot.destroy();
    holder.textContent = "";
    const state = holder.state = { chart, owners, made, zoomed: false };
    const { list, place, update } = legend(holder, state, colours);
    state.update = update;
    const canvas = node("div");
    holder.append(node("div", "axis-name y", chart.yLabel), canvas, place, list);
    const axis = {
      stroke: colours.ink, font: colours.font, grid: { stroke: colours.grid, width: 1 }, ticks: { show: false }, gap: 6,
    };
    const linear = (u, splits) => splits.map((v) => (v === null ? "" : whole(Number(v.toPrecision(12)))));
    const options = {
      width: holder.clientWidth, height: HEIGHT, series, bands, padding: [8, 20, 0, 0],
      legend: { show: false },
      cursor: {
        y: false, points: { size: 7, width: 0 }, focus: { prox: 24 },
        ...(chart.kind === "lines" ? { sync: { key: `x ${chart.xLabel} ${chart.logX}`, scales: ["x", null] } } : {}),
      },
      focus: { alpha: 0.35 },
      scales: { x: { time: false, distr: chart.logX ? 3 : 1 }, y: { distr: chart.logY ? 3 : 1, range: range(chart) } },
      axes: [
        { ...axis, size: 24, space: 56, grid: { show: false }, ...(chart.logX ? { splits: logSplits, filter: all, values: logTicks } : { values: linear }) },
        {
          ...axis, space: 34,
          ...(chart.logY
            ? { splits: logSplits, filter: all, values: logTicks, grid: { ...axis.grid, filter: all } }
            : { values: linear }),
          size: (u, values) => {
            if (!values || !values.length) return 40;
            u.ctx.save();
            u.ctx.font = u.axes[1].font[0];
            const widest = Math.max(...values.map((v) => u.ctx.measureText(v || "").width));
            u.ctx.restore();
            return Math.ceil(widest / devicePixelRatio) + 14;
          },
        },
      ],
      hooks: {
        drawClear: [ground(state, colours)], draw: [overlay(state, colours)], setCursor: [update], ready: [update],
        setSelect: [(u) => {
          if (!onZoom || u.select.width < 2) return;
          state.zoomed = true;
          onZoom(u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x"));
        }],
      },
    };
    holder.plot = new uPlot(options, data, canvas);
    if (onZoom) {
      canvas.addEventListener("dblclick", () => {
        if (state.zoomed) onZoom(null, null);
        state.zoomed = false;
      });
    }
    holder.dataset.drawn = "yes";
  }

  /* Keeps the drawings as wide as their elements. */
  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const width = target.clientWidth;
      if (target.plot && width && Math.abs(width - target.plot.width) > 1) target.plot.setSize({ width, height: HEIGHT });
    }
  });
  const follow = (holder) => observer.observe(holder);

  return { draw, follow, number, whole, node, theme, HEIGHT };
})();
