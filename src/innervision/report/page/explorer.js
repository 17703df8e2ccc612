// Images, and what the layers of every run show of them. A sheet holds all cells of an image; the window moves over it.

const EXPLORED = { target: 0, image: 0, cell: null };

function startExplorer() {
  if (!DATA.explorer.length) return;
  byId("explorer-view").hidden = false;
  for (const [number, target] of DATA.explorer.entries()) {
    const button = element("button", { type: "button", ariaPressed: "false" }, target.target);
    button.addEventListener("click", () => showTarget(number));
    byId("explorer-targets").append(button);
  }
  byId("layer").addEventListener("input", showImage);
  for (const [id, step] of [["previous-layer", -1], ["next-layer", 1]]) {
    byId(id).addEventListener("click", () => {
      byId("layer").value = String(Number(byId("layer").value) + step);
      showImage();
    });
  }
  REDRAW.push(showImage);
  showTarget(0);
}

function press(group, number) {
  for (const [place, button] of [...byId(group).children].entries()) button.setAttribute("aria-pressed", String(place === number));
}

function rankName({ rank, of }) {
  const name = rank === 1 ? "best" : rank === of ? "worst" : rank === Math.ceil(of / 2) ? "median" : `rank ${rank}`;
  return `${name} of ${of}`;
}

function showTarget(number) {
  EXPLORED.target = number;
  press("explorer-targets", number);
  const { images, metric } = DATA.explorer[number];
  byId("thumbnails").replaceChildren(
    ...images.map((image, place) => {
      const button = element("button", { type: "button", ariaPressed: "false" }, element("img", { src: image.photograph, alt: "" }), `${rankName(image)}, ${metric} ${image.score.toFixed(2)}`);
      button.addEventListener("click", () => chooseImage(place));
      return button;
    }),
  );
  chooseImage(0);
}

function layersShown(image) {
  const cells = Object.values(image.runs).flatMap((run) => run.cells);
  return [...new Set(cells)].filter((cell) => /^-?\d+$/.test(cell)).map(Number).sort((a, b) => a - b);
}

function chooseImage(number) {
  EXPLORED.image = number;
  press("thumbnails", number);
  const layers = layersShown(DATA.explorer[EXPLORED.target].images[number]);
  const slider = byId("layer");
  slider.max = String(layers.length - 1);
  slider.value = String(EXPLORED.layer === undefined ? layers.length - 1 : Math.max(0, layers.indexOf(EXPLORED.layer)));
  showImage();
}

function showImage() {
  const target = DATA.explorer[EXPLORED.target];
  const image = target.images[EXPLORED.image];
  const layers = layersShown(image);
  const layer = layers[Number(byId("layer").value)];
  EXPLORED.layer = layer;
  const name = layer === -1 ? "vision" : layer === 0 ? "0, embeddings" : String(layer);
  byId("layer-name").textContent = name;
  byId("layer").setAttribute("aria-valuetext", `layer ${name}`);
  byId("image-title").textContent = `${image.name}: ${rankName(image)} by ${target.metric}`;
  const first = Object.keys(image.runs)[0];
  const panels = [photographPanel(image)];
  if (image.runs[first].cells.includes("truth")) panels.push(cellPanel(target, image, first, "truth", target.kind === "depth" ? "truth: the known depth" : "truth"));
  panels.push(cellPanel(target, image, first, "expert", "ceiling: the expert’s own feature"));
  if (image.runs[first].cells.includes("mean")) panels.push(cellPanel(target, image, first, "mean", "floor: the mean feature"));
  for (const run of STATE.runs) {
    const label = `${DATA.runs[run].label}, layer ${name}`;
    if (image.runs[run]) panels.push(cellPanel(target, image, String(run), String(layer), label, run));
    else panels.push(element("figure", {}, element("figcaption", {}, `${DATA.runs[run].label} has kept no picture of this image.`)));
  }
  byId("panels").replaceChildren(...panels);
  byId("class-legend").replaceChildren(
    ...image.legend.map(([text, hue]) => {
      const sample = element("i");
      sample.style.background = hue;
      return element("li", {}, sample, text);
    }),
  );
}

function frame(image, pairs) {
  const cell = element("div", { className: "cell" });
  cell.style.aspectRatio = `${image.size[0]} / ${image.size[1]}`;
  if (pairs && image.pairs.length) cell.append(drawPairs(image));
  return cell;
}

function photographPanel(image) {
  const cell = frame(image, true);
  const shown = element("img", { src: image.photograph, alt: `photograph ${image.name}` });
  shown.style.cssText = "width:100%;height:100%;left:0;top:0";
  cell.prepend(shown);
  const text = image.pairs.length ? "photograph; of each pair the white point is closer" : "photograph";
  return element("figure", {}, cell, element("figcaption", {}, text));
}

function cellPanel(target, image, run, cell, label, hue) {
  const { cells, columns, sheet, scores } = image.runs[run];
  const number = cells.indexOf(cell);
  const panel = element("figure");
  panel.dataset.run = run;
  panel.dataset.cell = cell;
  const score = scores[cell];
  const text = score === undefined ? label : `${label}: ${target.metric} ${score.toFixed(3)}`;
  const mark = hue === undefined ? [] : [element("span", { className: `swatch run${hue}` }), " "];
  if (number < 0) return element("figure", {}, element("figcaption", {}, ...mark, `${label}: this layer was not probed.`));
  const window = frame(image, true);
  const shown = element("img", { src: sheet, alt: `${label}, of ${image.name}` });
  const rows = Math.ceil(cells.length / columns);
  shown.style.cssText = `width:${100 * columns}%;height:${100 * rows}%;left:${-100 * (number % columns)}%;top:${-100 * Math.floor(number / columns)}%`;
  if (target.kind === "seg") shown.style.imageRendering = "pixelated";
  window.prepend(shown);
  panel.append(window, element("figcaption", {}, ...mark, text));
  return panel;
}

function drawPairs(image) {
  const [width, height] = image.size.map((side) => (100 * side) / Math.max(...image.size));
  const drawing = shape("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  for (const pair of image.pairs) {
    const [closer, other] = pair.map(([row, column]) => [column * width, row * height]);
    for (const [hue, thick] of [["#000", 2.2], ["#fff", 1]]) drawing.append(shape("line", { x1: closer[0], y1: closer[1], x2: other[0], y2: other[1], stroke: hue, "stroke-width": thick }));
    drawing.append(shape("circle", { cx: closer[0], cy: closer[1], r: 3, fill: "#fff", stroke: "#000", "stroke-width": 1 }));
    drawing.append(shape("circle", { cx: other[0], cy: other[1], r: 3, fill: "#000", stroke: "#fff", "stroke-width": 1 }));
  }
  return drawing;
}
