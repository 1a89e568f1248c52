"use strict";
/* Points in a plane, or in space and then rotatable, as the report and the dashboard draw them. */
const dynaxxCloud = (() => {
  const { node, number, theme } = dynaxxChart;
  const HEIGHT = 320, PALETTE = 8, SHAPES = ["circle", "square", "triangle"];
  const START = { yaw: 0.6, pitch: 0.4, zoom: 1 };

  /* A colour and, past eight labels, a shape: every label keeps a mark of its own up to twenty-four. */
  const shapeOf = (group) => SHAPES[Math.floor(group / PALETTE) % SHAPES.length];
  function mark(context, shape, x, y, r) {
    context.beginPath();
    if (shape === "circle") context.arc(x, y, r, 0, 2 * Math.PI);
    else if (shape === "square") context.rect(x - r, y - r, 2 * r, 2 * r);
    else {
      context.moveTo(x, y - 1.2 * r);
      context.lineTo(x + 1.1 * r, y + 0.8 * r);
      context.lineTo(x - 1.1 * r, y + 0.8 * r);
      context.closePath();
    }
    context.fill();
  }

  /* One scale for all axes, since distances are what the picture is about. */
  function extent(points, size) {
    const low = Array(size).fill(Infinity), high = Array(size).fill(-Infinity);
    for (const point of points) {
      for (let i = 0; i < size; i++) {
        low[i] = Math.min(low[i], point[i]);
        high[i] = Math.max(high[i], point[i]);
      }
    }
    const centre = low.map((v, i) => (points.length ? (v + high[i]) / 2 : 0));
    const radius = points.length ? Math.max(...low.map((v, i) => (high[i] - v) / 2)) || 1 : 1;
    if (!points.length) return { low: centre.map(() => -1), high: centre.map(() => 1), centre, radius, room: 1 };
    /* a flat box may be drawn larger than a cube and still turn without leaving the frame */
    const room = Math.sqrt(3) / Math.max(1, Math.hypot(...low.map((v, i) => (high[i] - v) / 2 / radius)));
    return { low, high, centre, radius, room };
  }

  /* Draws a cloud into an element, keeps it as wide as that, and gives the function that draws it again. */
  function setup(holder, cloud) {
    const size = cloud.axes.length, solid = size === 3;
    const box = extent(cloud.points, size), shown = cloud.groups.map(() => true), view = { ...START };
    const canvas = node("canvas"), place = node("output", "place"), list = node("ul", "legend");
    holder.append(canvas, place, list);
    let drawn = [];

    /* Screen place of a point, and its depth from 0 (far) to 1 (near). */
    function project(point, width) {
      const [x, y, z] = point.map((v, i) => (v - box.centre[i]) / box.radius);
      if (!solid) {
        const scale = Math.min((width - 96) / (box.high[0] - box.low[0] || 1), (HEIGHT - 56) / (box.high[1] - box.low[1] || 1)) * box.radius;
        return [width / 2 + 20 + x * scale, HEIGHT / 2 - 14 - y * scale, 1];
      }
      const { yaw, pitch, zoom } = view, scale = Math.min(width, HEIGHT) * 0.33 * box.room * zoom;
      const right = x * Math.cos(yaw) - y * Math.sin(yaw), away = x * Math.sin(yaw) + y * Math.cos(yaw);
      const up = z * Math.cos(pitch) + away * Math.sin(pitch), depth = away * Math.cos(pitch) - z * Math.sin(pitch);
      return [width / 2 + right * scale, HEIGHT / 2 - up * scale, (1.75 - depth) / 3.5];
    }

    function frame(context, width, colours) {
      context.strokeStyle = colours.line;
      context.fillStyle = colours.ink;
      context.font = colours.font;
      context.lineWidth = 1;
      const line = (a, b) => {
        const [x0, y0] = project(a, width), [x1, y1] = project(b, width);
        context.beginPath();
        context.moveTo(x0, y0);
        context.lineTo(x1, y1);
        context.stroke();
      };
      const { low, high } = box;
      for (let corner = 0; corner < 2 ** size; corner++) {
        for (let axis = 0; axis < size; axis++) {
          if (corner & (1 << axis)) continue;
          const a = low.map((v, i) => (corner & (1 << i) ? high[i] : v)), b = a.slice();
          b[axis] = high[axis];
          line(a, b);
        }
      }
      /* an axis is named at that of its edges which lies farthest out, where no points are */
      const [cx, cy] = project(box.centre, width);
      const outermost = (axis) => {
        let best = null, most = -1;
        for (let corner = 0; corner < (solid ? 2 ** size : 1); corner++) {
          if (corner & (1 << axis)) continue;
          const [x, y] = project(low.map((v, i) => (i === axis ? (v + high[i]) / 2 : corner & (1 << i) ? high[i] : v)), width);
          const away = Math.hypot(x - cx, y - cy) + (y > cy ? 1 : 0);
          if (away > most) [best, most] = [[x, y], away];
        }
        return best;
      };
      cloud.axes.forEach((name, axis) => {
        const [x, y] = outermost(axis), away = Math.hypot(x - cx, y - cy) || 1;
        const ends = `${name}: ${number(low[axis])} to ${number(high[axis])}`;
        context.save();
        context.textAlign = "center";
        const out = (x - cx) / away;
        if (solid) {
          const long = context.measureText(name).width, start = x + out * 10 - long * (out < -0.5 ? 1 : out > 0.5 ? 0 : 0.5);
          context.textAlign = "left";
          context.fillText(name, Math.max(2, Math.min(width - long - 2, start)), y + ((y - cy) / away) * 16 + 4);
        }
        else if (axis === 0) context.fillText(ends, x, y + 20);
        else {
          context.translate(x - 12, y);
          context.rotate(-Math.PI / 2);
          context.fillText(ends, 0, 0);
        }
        context.restore();
      });
    }

    function draw() {
      const width = holder.clientWidth, ratio = devicePixelRatio, colours = theme(), context = canvas.getContext("2d");
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(HEIGHT * ratio);
      context.scale(ratio, ratio);
      frame(context, width, colours);
      drawn = cloud.points.map((point, index) => ({ at: project(point, width), group: cloud.group[index], index })).filter((p) => shown[p.group]);
      if (cloud.connect) {
        cloud.groups.forEach((_, group) => {
          context.strokeStyle = colours.palette[group % PALETTE];
          context.globalAlpha = 0.5;
          context.beginPath();
          drawn.filter((p) => p.group === group).forEach(({ at }, i) => (i ? context.lineTo(at[0], at[1]) : context.moveTo(at[0], at[1])));
          context.stroke();
        });
      }
      const radius = cloud.points.length > 1500 ? 1.8 : cloud.points.length > 300 ? 2.4 : 3.4;
      const sorted = solid ? drawn.slice().sort((a, b) => a.at[2] - b.at[2]) : drawn;
      for (const { at, group } of sorted) {
        context.globalAlpha = solid ? 0.45 + 0.55 * Math.min(1, Math.max(0, at[2])) : 0.9;
        context.fillStyle = colours.palette[group % PALETTE];
        mark(context, shapeOf(group), at[0], at[1], solid ? radius * (0.7 + 0.6 * at[2]) : radius);
      }
      context.globalAlpha = 1;
      list.querySelectorAll("svg").forEach((svg, group) => { svg.style.fill = colours.palette[group % PALETTE]; });
      holder.dataset.drawn = "yes";
      holder.dataset.view = `${view.yaw.toFixed(3)} ${view.pitch.toFixed(3)} ${view.zoom.toFixed(3)}`;
    }

    function icon(group) {
      const space = "http://www.w3.org/2000/svg", svg = document.createElementNS(space, "svg");
      svg.setAttribute("viewBox", "0 0 12 12");
      const path = document.createElementNS(space, "path");
      path.setAttribute("d", { circle: "M6 1a5 5 0 1 0 .01 0z", square: "M1 1h10v10H1z", triangle: "M6 1l5.5 10H.5z" }[shapeOf(group)]);
      svg.append(path);
      return svg;
    }
    if (cloud.groups.length > 1 || cloud.groups[0]) {
      cloud.groups.forEach((name, group) => {
        const item = node("li"), button = node("button");
        button.type = "button";
        button.setAttribute("aria-pressed", "true");
        button.append(icon(group), node("span", "", name || "–"));
        button.addEventListener("click", () => {
          shown[group] = !shown[group];
          button.setAttribute("aria-pressed", String(shown[group]));
          draw();
        });
        item.append(button);
        list.append(item);
      });
    }

    /* What is in front goes where the arrow, or the pointer, goes. */
    function turn(yaw, pitch) {
      view.yaw = (view.yaw + yaw) % (2 * Math.PI);
      view.pitch = Math.min(Math.PI / 2, Math.max(-Math.PI / 2, view.pitch + pitch));
      draw();
    }
    function zoom(factor) {
      view.zoom = Math.min(8, Math.max(0.4, view.zoom * factor));
      draw();
    }
    const keys = {
      ArrowLeft: () => turn(-0.12, 0), ArrowRight: () => turn(0.12, 0), ArrowUp: () => turn(0, -0.12), ArrowDown: () => turn(0, 0.12),
      "+": () => zoom(1.15), "=": () => zoom(1.15), "-": () => zoom(1 / 1.15), 0: () => { Object.assign(view, START); draw(); },
    };
    let grip = null;
    if (solid) {
      holder.addEventListener("keydown", (event) => {
        if (event.target !== holder || event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
        event.preventDefault();
        keys[event.key]();
      });
      canvas.addEventListener("pointerdown", (event) => {
        grip = [event.clientX, event.clientY];
        canvas.setPointerCapture(event.pointerId);
      });
      canvas.addEventListener("pointerup", () => { grip = null; });
      canvas.addEventListener("pointercancel", () => { grip = null; });
    }
    canvas.addEventListener("pointermove", (event) => {
      if (grip) {
        turn((event.clientX - grip[0]) * 0.01, (event.clientY - grip[1]) * 0.01);
        grip = [event.clientX, event.clientY];
        return;
      }
      const x = event.offsetX, y = event.offsetY;
      let best = null, least = 14;
      for (const point of drawn) {
        const away = Math.hypot(point.at[0] - x, point.at[1] - y);
        if (away < least) [best, least] = [point, away];
      }
      place.textContent = best
        ? `${cloud.groups[best.group]} (${cloud.points[best.index].map((v) => number(v)).join(", ")})`.trim()
        : "";
    });
    canvas.addEventListener("pointerleave", () => { place.textContent = ""; });
    draw();
    let before = holder.clientWidth;
    new ResizeObserver(() => {
      if (!holder.clientWidth || Math.abs(holder.clientWidth - before) <= 1) return;
      before = holder.clientWidth;
      draw();
    }).observe(holder);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    return draw;
  }

  return { setup };
})();
