// Plots of a source's minutes: bars or a line over time, with axes, and a value under the pointer.

import { clock, count, draw, make, share, significant } from "/format.js";

const HEIGHT = 132;
const LEFT = 44;
const BOTTOM = 20;
const TOP = 8;
const LEAST_MINUTES = 10;
const MOST_BINS = 96;

const inferred = (bin) => bin.inputs - bin.filtered;
const perMinute = (number) => (number < 100 ? significant(number) : count(Math.round(number)));

const PLOTS = [
  {
    title: "Inputs a minute",
    stack: [["filtered", (bin) => bin.filtered], ["inferred", inferred]],
    tell: (bin) => `${perMinute(bin.filtered)} filtered, ${perMinute(inferred(bin))} inferred`,
    axis: perMinute,
  },
  {
    title: "Filtering rate",
    line: (bin) => (bin.inputs ? bin.filtered / bin.inputs : null),
    most: 1,
    tell: (bin) => (bin.inputs ? share(bin.filtered / bin.inputs) : "no inputs"),
    axis: (number) => share(number, 0),
  },
  {
    title: "Wanted inputs a minute",
    stack: [["wanted", (bin) => bin.wanted]],
    tell: (bin) => perMinute(bin.wanted),
    axis: perMinute,
  },
  {
    title: "Model seconds a minute",
    stack: [["inferred", (bin) => bin.model_s]],
    tell: (bin) => `${significant(bin.model_s)} s`,
    axis: significant,
  },
];

// Returns {bins, from_s, to_s, step_s}: per bin the mean of its minutes; null where there is none.
export function binned(minutes, span, now_s) {
  const first_s = minutes[0].at_s;
  const to_s = Math.max(minutes[minutes.length - 1].at_s + 60, 60 * Math.floor(now_s / 60));
  const wanted = Math.min(span, Math.ceil((to_s - first_s) / 60));
  const shown = Math.max(LEAST_MINUTES, wanted);
  const step = Math.max(1, Math.ceil(shown / MOST_BINS));
  const bins = new Array(Math.ceil(shown / step)).fill(null);
  const from_s = to_s - bins.length * step * 60;
  for (const minute of minutes) {
    const at = Math.floor((minute.at_s - from_s) / (60 * step));
    if (at < 0 || at >= bins.length) continue;
    bins[at] ??= { minutes: 0, inputs: 0, filtered: 0, wanted: 0, errors: 0, model_s: 0 };
    const bin = bins[at];
    bin.minutes += 1;
    for (const key of ["inputs", "filtered", "wanted", "errors", "model_s"]) {
      bin[key] += minute[key];
    }
  }
  for (const bin of bins) {
    for (const key of bin ? ["inputs", "filtered", "wanted", "model_s"] : []) {
      bin[key] /= bin.minutes;
    }
  }
  return { bins, from_s, to_s, step_s: 60 * step };
}

export function drawPlots(place, data) {
  const width = Math.max(220, place.firstElementChild?.clientWidth || columnWidth(place));
  place.replaceChildren(...PLOTS.map((plot) => figure(plot, data, width)));
}

function columnWidth(place) {
  const columns = getComputedStyle(place).gridTemplateColumns.split(" ");
  return parseFloat(columns[0]) || place.clientWidth;
}

function figure(plot, data, width) {
  const caption = make("figcaption", plot.title);
  const readout = make("span", "", { class: "readout" });
  caption.append(readout);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
  const most = plot.most ?? roundUp(Math.max(...data.bins.map((bin) => total(plot, bin))));
  const x = (at) => LEFT + (at / data.bins.length) * (width - LEFT - 6);
  const y = (number) => HEIGHT - BOTTOM - (number / most) * (HEIGHT - BOTTOM - TOP);
  svg.append(...axes(plot, data, most, x, y, width));
  svg.append(...(plot.line ? line(plot, data.bins, x, y) : bars(plot, data.bins, x, y)));
  svg.setAttribute("aria-label", summary(plot, data));
  readOut(svg, readout, plot, data, x, width);
  const result = make("figure");
  result.append(caption, svg);
  return result;
}

function total(plot, bin) {
  return bin && plot.stack ? plot.stack.reduce((sum, [, read]) => sum + read(bin), 0) : 0;
}

// The next of 1, 2, 5, 10, 20, ... so that the axis does not move with every value.
function roundUp(number) {
  if (number <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(number));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= number * 0.999);
}

function axes(plot, data, most, x, y, width) {
  const parts = [];
  for (const number of [0, most / 2, most]) {
    const at = { x1: LEFT, x2: width - 6, y1: y(number), y2: y(number), class: "grid" };
    parts.push(draw("line", at));
    const label = { x: LEFT - 6, y: y(number) + 4, "text-anchor": "end" };
    parts.push(draw("text", label, plot.axis(number)));
  }
  const steps = [60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600];
  const fits = Math.max(2, Math.floor((width - LEFT) / 64));
  const step_s = steps.find((step) => (data.to_s - data.from_s) / step <= fits) ?? 43200;
  const offset_s = new Date(1000 * data.to_s).getTimezoneOffset() * 60;
  const first_s = Math.ceil((data.from_s - offset_s) / step_s) * step_s + offset_s;
  for (let at_s = first_s; at_s <= data.to_s; at_s += step_s) {
    const place = x((at_s - data.from_s) / data.step_s);
    if (place > width - 18) break;
    parts.push(draw("line", { x1: place, x2: place, y1: y(0), y2: y(0) + 4, class: "tick" }));
    const label = { x: place, y: HEIGHT - 4, "text-anchor": "middle" };
    parts.push(draw("text", label, clock(new Date(1000 * at_s))));
  }
  return parts;
}

function bars(plot, bins, x, y) {
  const parts = [];
  bins.forEach((bin, at) => {
    let below = 0;
    for (const [kind, read] of bin ? plot.stack : []) {
      const number = read(bin);
      if (number <= 0) continue;
      const height = y(below) - y(below + number);
      const gap = x(1) - x(0) > 4 ? 1 : 0;
      const width = Math.max(0.5, x(at + 1) - x(at) - gap);
      const box = { x: x(at), y: y(below + number), width, height: Math.max(0.5, height) };
      parts.push(draw("rect", { ...box, class: kind }));
      below += number;
    }
  });
  return parts;
}

function line(plot, bins, x, y) {
  const runs = [];
  bins.forEach((bin, at) => {
    const number = bin && plot.line(bin);
    if (number === null) return runs.push(null);
    if (!runs.at(-1)) runs.push([]);
    return runs.at(-1).push(`${x(at + 0.5)},${y(number)}`);
  });
  return runs.filter(Boolean).map((run) => {
    if (run.length > 1) return draw("polyline", { points: run.join(" "), class: "rate" });
    const [cx, cy] = run[0].split(",");
    return draw("circle", { cx, cy, r: 2, class: "filtered" });
  });
}

function summary(plot, data) {
  const last = data.bins.findLast((bin) => bin);
  const from = clock(new Date(1000 * data.from_s));
  const latest = last ? `; lately ${plot.tell(last)}` : "";
  return `${plot.title} since ${from}${latest}`;
}

function readOut(svg, readout, plot, data, x, width) {
  const marker = draw("rect", { y: TOP, height: HEIGHT - BOTTOM - TOP, class: "marker" });
  marker.setAttribute("width", Math.max(1, x(1) - x(0)));
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const place = ((event.clientX - box.left) * width) / box.width;
    const at = Math.floor(((place - LEFT) * data.bins.length) / (width - LEFT - 6));
    const bin = data.bins[at];
    if (bin === undefined) return;
    marker.setAttribute("x", x(at));
    svg.append(marker);
    const time = clock(new Date(1000 * (data.from_s + at * data.step_s)));
    readout.textContent = `${time}: ${bin ? plot.tell(bin) : "nothing"}`;
  });
  svg.addEventListener("pointerleave", () => {
    marker.remove();
    readout.textContent = "";
  });
}
