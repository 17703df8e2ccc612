// Curves by layer, paired differences and splits, drawn by Plotly.

const DASHES = { shuffled: "dot", blank: "1px,5px", mean: "dash", zero: "9px,3px,2px,3px,2px,3px", expert: "dashdot", plain: "longdash" };
const CEILINGS = ["expert", "plain"];

// Decoder layers stand at their numbers; what comes before them as far apart as its names need.
function place(layer, depth) {
  return layer < 1 ? 1 + (layer - 1) * Math.max(1, 0.1 * depth) : layer;
}

function layout(title, depth, vision) {
  const ink = style("--ink");
  const line = style("--line");
  const shaded = faded(style("--soft"), 0.13);
  const [tower, projector, first] = [-1, 0, 1].map((layer) => place(layer, depth));
  const [before, between, after] = [tower - (projector - tower) / 2, (tower + projector) / 2, (projector + first) / 2];
  const step = [1, 2, 4, 8, 16, 32, 64].find((each) => depth <= 10 * each) || 128;
  const ticks = [-1, 0, 1].filter((layer) => (layer >= 0 || vision) && layer <= depth);
  for (let layer = step; layer <= depth; layer += step) if (layer > 1) ticks.push(layer);
  return {
    margin: { l: 52, r: 12, t: 10, b: 42 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, size: 12 },
    showlegend: false,
    hovermode: "closest",
    hoverlabel: { align: "left", bgcolor: style("--raised"), font: { color: ink } },
    xaxis: {
      title: { text: "decoder layer", standoff: 6 },
      tickvals: ticks.map((layer) => place(layer, depth)),
      tickangle: 0,
      ticktext: ticks.map((layer) => (layer === -1 ? "vision" : layer === 0 ? "0" : String(layer))),
      range: [vision ? before : between, depth + 0.5],
      gridcolor: line, zeroline: false, linecolor: line,
    },
    yaxis: { title: { text: wrapped(title, 30), standoff: 4, font: { size: 11 } }, gridcolor: line, zeroline: false, linecolor: line, automargin: true },
    shapes: [
      { type: "rect", xref: "x", yref: "paper", x0: before, x1: between, y0: 0, y1: 1, fillcolor: shaded, line: { width: 0 }, layer: "below", visible: vision },
      { type: "rect", xref: "x", yref: "paper", x0: between, x1: after, y0: 0, y1: 1, fillcolor: faded(style("--soft"), 0.06), line: { width: 0 }, layer: "below" },
    ],
  };
}

function layersOf(metric) {
  return Object.values(metric.runs).flatMap((run) => (run.lines.probe ? run.lines.probe.layers : [])).filter((layer) => layer !== null);
}

// Splits a line where the decoder begins, and gives the places of its finite points.
function points(line, wanted) {
  return line.layers.map((layer, i) => i).filter((i) => line.layers[i] !== null && line.mean[i] !== null && wanted(line.layers[i]));
}

function band(line, run) {
  const inside = points(line, (layer) => layer >= 1).filter((i) => line.low[i] !== null);
  if (inside.length < 2) return [];
  const x = inside.map((i) => line.layers[i]);
  const y = [...inside.map((i) => line.high[i]), ...inside.map((i) => line.low[i]).reverse()];
  return [{ x: [...x, ...[...x].reverse()], y, fill: "toself", fillcolor: faded(colour(run), 0.18), line: { width: 0 }, mode: "lines", hoverinfo: "skip" }];
}

function probeTrace(line, run, label, better) {
  const shown = points(line, () => true);
  const hue = colour(run);
  const bars = (i) => line.low[i] !== null && (line.layers[i] < 1 || points(line, (layer) => layer >= 1).length < 2);
  return {
    x: shown.map((i) => line.layers[i]),
    y: shown.map((i) => line.mean[i]),
    mode: "lines+markers",
    name: plain(label),
    line: { color: hue, width: 2 },
    marker: {
      symbol: shown.map((i) => DATA.runs[run].symbol + (line.clear && line.clear[i] ? "" : "-open")), color: hue, line: { color: hue, width: 1.5 },
    },
    error_y: {
      type: "data", symmetric: false, color: hue, thickness: 1.5, width: 3, visible: STATE.lines.has("intervals"),
      array: shown.map((i) => (bars(i) ? line.high[i] - line.mean[i] : 0)),
      arrayminus: shown.map((i) => (bars(i) ? line.mean[i] - line.low[i] : 0)),
    },
    text: shown.map((i) => {
      const verdict = line.clear ? (line.clear[i] === null ? "" : line.clear[i] ? "<br>beats every floor" : "<br>does not beat every floor") : better(line, i);
      return `${wrapped(label)}<br>layer ${layerName(line.layers[i])}: <b>${plain(line.text[i])}</b><br>n = ${line.images[i].toLocaleString("en")} images${verdict}`;
    }),
    hovertemplate: "%{text}<extra></extra>",
  };
}

function floorTraces(metric, run, label) {
  const traces = [];
  const { lines, levels } = metric.runs[run];
  for (const [source, line] of Object.entries(lines)) {
    if (source === "probe" || !STATE.lines.has("floors")) continue;
    const shown = points(line, () => true);
    traces.push({
      x: shown.map((i) => line.layers[i]), y: shown.map((i) => line.mean[i]), mode: "lines",
      line: { color: colour(run), width: 1.5, dash: DASHES[source] },
      text: shown.map((i) => `${wrapped(label)}, ${plain(source)}<br>${wrapped(DATA.sources[source])}<br>layer ${layerName(line.layers[i])}: <b>${plain(line.text[i])}</b>`),
      hovertemplate: "%{text}<extra></extra>",
    });
  }
  const ends = layersOf(metric);
  for (const [source, level] of Object.entries(levels)) {
    if (level.mean[0] === null || !STATE.lines.has(CEILINGS.includes(source) ? "ceilings" : "floors")) continue;
    const same = Object.values(metric.runs).every((other) => other.levels[source] && other.levels[source].mean[0] === level.mean[0]);
    const hue = same ? style("--soft") : colour(run);
    const x = [Math.min(...ends) - 0.4, ...new Set(ends), Math.max(...ends) + 0.4].sort((a, b) => a - b);
    traces.push({
      x, y: x.map(() => level.mean[0]), mode: "lines", line: { color: hue, width: 1.5, dash: DASHES[source] }, opacity: 0.8,
      text: x.map(() => `${wrapped(label)}, ${plain(source)}<br>${wrapped(DATA.sources[source])}: <b>${plain(level.text[0])}</b>`),
      hovertemplate: "%{text}<extra></extra>",
    });
  }
  return traces;
}

function chart(into, title, tall = false) {
  const plot = element("div", { className: tall ? "plot tall" : "plot", role: "img", ariaLabel: title });
  into.append(element("div", { className: "chart" }, element("h3", {}, title), plot));
  return plot;
}

function draw(plot, traces, how) {
  Plotly.react(plot, traces, how, { displayModeBar: false, responsive: true });
}

// Draws traces whose x are layers.
function drawLayers(plot, traces, metric, title, yaxis = {}) {
  const layers = layersOf(metric);
  const depth = Math.max(1, ...layers);
  const how = layout(title, depth, layers.includes(-1));
  const placed = traces.map((trace) => ({
    ...trace,
    x: trace.x.map((layer) => place(layer, depth)),
    marker: { ...trace.marker, size: depth > 16 ? 5 : 8 },
  }));
  draw(plot, placed, { ...how, yaxis: { ...how.yaxis, ...yaxis } });
}

function drawCurve(plot, metric) {
  const traces = [];
  for (const run of STATE.runs) {
    const mine = metric.runs[run];
    if (!mine || !mine.lines.probe) continue;
    traces.push(...floorTraces(metric, run, DATA.runs[run].label));
    if (STATE.lines.has("intervals")) traces.push(...band(mine.lines.probe, run));
    traces.push(probeTrace(mine.lines.probe, run, DATA.runs[run].label, () => ""));
  }
  const better = metric.higher ? "higher is better" : "lower is better";
  drawLayers(plot, traces, metric, `${metric.axis} (${better})`);
}

function startCurves() {
  const others = document.querySelector("#other-curves .charts");
  const main = [];
  const rest = [];
  for (const target of DATA.targets) {
    for (const [number, metric] of target.metrics.entries()) {
      const first = target.headlines.includes(number);
      (first ? main : rest).push([chart(first ? byId("headline-curves") : others, `${target.name}: ${metric.name}`), metric]);
    }
  }
  const details = byId("other-curves");
  details.hidden = !rest.length;
  const drawMain = () => main.forEach((each) => drawCurve(...each));
  const drawRest = () => details.open && rest.forEach((each) => drawCurve(...each));
  details.addEventListener("toggle", drawRest);
  REDRAW.push(drawMain, drawRest);
  drawMain();
  showLineLegend();
}

function showLineLegend() {
  const metrics = DATA.targets.flatMap((target) => target.metrics);
  const used = new Set(metrics.flatMap((metric) => Object.values(metric.runs).flatMap((run) => [...Object.keys(run.lines), ...Object.keys(run.levels)])));
  const patterns = { dot: "2 3", "1px,5px": "1 5", dash: "8 4", "9px,3px,2px,3px,2px,3px": "9 3 2 3 2 3", dashdot: "8 3 2 3", longdash: "14 4" };
  for (const [source, dash] of Object.entries(DASHES)) {
    if (!used.has(source)) continue;
    const line = shape("line", { x1: 0, y1: 5, x2: 40, y2: 5, stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": patterns[dash] });
    const drawing = shape("svg", { viewBox: "0 0 40 10", "aria-hidden": "true" });
    drawing.append(line);
    byId("line-legend").append(element("li", {}, drawing, `${source}: ${DATA.sources[source]}`));
  }
}

function startDifferences() {
  const select = byId("reference");
  if (!select) return;
  for (const [number, run] of DATA.runs.entries()) select.append(element("option", { value: number }, run.label));
  select.value = String(DATA.runs.length - 1);
  const details = byId("other-differences");
  const main = [];
  const rest = [];
  for (const target of DATA.targets) {
    for (const [number, metric] of target.metrics.entries()) {
      if (!metric.differences.length) continue;
      const first = target.headlines.includes(number);
      (first ? main : rest).push([chart(first ? byId("difference-charts") : details.querySelector(".charts"), `${target.name}: ${metric.name}`), metric]);
    }
  }
  details.hidden = !rest.length;
  const drawAll = () => {
    const reference = Number(select.value);
    const told = DATA.pairs.filter((pair) => pair.runs.includes(reference));
    byId("not-compared").replaceChildren(...told.map((pair) => element("li", {}, `${pair.runs.map((run) => DATA.runs[run].label).join(" and ")}: ${pair.why}`)));
    for (const each of details.open ? [...main, ...rest] : main) drawDifference(...each, reference);
  };
  select.addEventListener("change", drawAll);
  details.addEventListener("toggle", drawAll);
  REDRAW.push(drawAll);
  drawAll();
}

function drawDifference(plot, metric, reference) {
  const traces = [];
  for (const run of STATE.runs) {
    const found = metric.differences.find(({ runs }) => runs[0] === run && runs[1] === reference);
    if (!found) continue;
    const differ = (line, i) => (line.low[i] === null ? "" : line.low[i] > 0 || line.high[i] < 0 ? "<br>the runs differ" : "<br>cannot be told apart");
    if (STATE.lines.has("intervals")) traces.push(...band(found, run));
    traces.push(probeTrace(found, run, `${DATA.runs[run].label} less ${DATA.runs[reference].label}`, differ));
    traces.at(-1).marker.symbol = DATA.runs[run].symbol;
  }
  const title = `difference (${metric.higher ? "above" : "below"} 0: better)`;
  drawLayers(plot, traces, metric, title, { zeroline: true, zerolinecolor: style("--ink"), rangemode: "tozero" });
}

function startSplits() {
  const plots = [];
  const layers = new Set();
  for (const target of DATA.targets) {
    for (const metric of target.metrics) {
      if (!metric.splits) continue;
      plots.push([chart(byId("split-charts"), `${target.name}: ${metric.name}`, true), metric]);
      for (const part of metric.splits.runs) for (const run of Object.values(part)) run.layers.forEach((layer) => layers.add(layer));
    }
  }
  byId("no-splits").hidden = plots.length > 0;
  const select = byId("split-layer");
  const order = [...layers].sort((a, b) => (a === null ? -2 : a) - (b === null ? -2 : b));
  for (const layer of order) select.append(element("option", { value: String(layer) }, layer === null ? "average over the decoder layers" : layerName(layer)));
  const drawAll = () => {
    const layer = select.value === "null" ? null : Number(select.value);
    for (const [plot, metric] of plots) drawSplit(plot, metric, layer);
  };
  select.addEventListener("change", drawAll);
  REDRAW.push(drawAll);
  drawAll();
}

function drawSplit(plot, metric, layer) {
  const { names, runs } = metric.splits;
  const shown = [...STATE.runs];
  const count = (part) => Math.max(0, ...Object.values(part).map((line) => line.images[line.layers.indexOf(layer)] || 0));
  const traces = shown.map((run, number) => {
    const rows = names.map((_, i) => i).filter((i) => runs[i][run] && runs[i][run].layers.includes(layer));
    const at = (i) => runs[i][run].layers.indexOf(layer);
    const value = (i, end) => runs[i][run][end][at(i)];
    const side = (i, a, b) => (value(i, "low") === null ? 0 : value(i, a) - value(i, b));
    return {
      x: rows.map((i) => value(i, "mean")), y: rows.map((i) => i + (number - (shown.length - 1) / 2) * (0.6 / Math.max(shown.length, 2))),
      mode: "markers", marker: { color: colour(run), symbol: DATA.runs[run].symbol, size: 8 },
      error_x: { type: "data", symmetric: false, color: colour(run), thickness: 1.5, width: 0, visible: STATE.lines.has("intervals"), array: rows.map((i) => side(i, "high", "mean")), arrayminus: rows.map((i) => side(i, "mean", "low")) },
      text: rows.map((i) => `${wrapped(DATA.runs[run].label)}<br>${wrapped(names[i])}: <b>${plain(value(i, "text"))}</b><br>n = ${value(i, "images").toLocaleString("en")} images`),
      hovertemplate: "%{text}<extra></extra>",
    };
  });
  const how = layout(metric.axis, 1, false);
  const label = (i) => wrapped(`${names[i].length > 40 ? `${names[i].slice(0, 39)}…` : names[i]} (${count(runs[i]).toLocaleString("en")})`, 18);
  how.margin.t = names.length > 15 ? 60 : 10;
  how.height = 90 + Math.max(26, 10 * shown.length) * names.length;
  how.xaxis = { ...how.xaxis, side: names.length > 15 ? "top" : "bottom", title: { text: wrapped(metric.axis) }, tickvals: undefined, ticktext: undefined, range: undefined };
  how.yaxis = { ...how.yaxis, title: undefined, automargin: true, tickvals: names.map((_, i) => i), ticktext: names.map((_, i) => label(i)), range: [names.length - 0.5, -0.5] };
  how.shapes = [];
  draw(plot, traces, how);
}
