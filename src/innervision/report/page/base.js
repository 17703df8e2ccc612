"use strict";
// What all parts of the page share: the data, what is switched on, and elements made of text alone.

const DATA = JSON.parse(document.getElementById("data").textContent);
const STATE = { runs: new Set(DATA.runs.keys()), lines: new Set(["intervals", "floors", "ceilings"]) };
const REDRAW = [];

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("aria") || key === "role" || key === "scope") made.setAttribute(key.replace("aria", "aria-").toLowerCase(), value);
    else made[key] = value;
  }
  made.append(...children.map((child) => (typeof child === "string" ? document.createTextNode(child) : child)));
  return made;
}

function shape(name, properties) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value);
  return made;
}

function byId(id) {
  return document.getElementById(id);
}

// Plotly reads some tags in its texts; a name must not become one.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function wrapped(text, width = 46) {
  const lines = [""];
  for (const word of String(text).split(" ")) {
    const last = lines.at(-1);
    if (last && last.length + word.length >= width) lines.push(word);
    else lines[lines.length - 1] = last ? `${last} ${word}` : word;
  }
  return lines.map(plain).join("<br>");
}

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function colour(run) {
  return style(`--run${run}`);
}

function faded(hex, share) {
  const parts = [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16));
  return `rgba(${parts.join(",")},${share})`;
}

function layerName(layer) {
  return layer === null ? "average" : layer === -1 ? "vision" : String(layer);
}

function redraw() {
  for (const draw of REDRAW) draw();
}

function toggle(into, text, set, key, swatch) {
  const box = element("input", { type: "checkbox", checked: set.has(key) });
  box.dataset.key = key;
  box.addEventListener("change", () => {
    if (box.checked) set.add(key);
    else set.delete(key);
    redraw();
  });
  const parts = swatch ? [box, element("span", { className: `swatch run${key}` }), text] : [box, text];
  byId(into).append(element("label", {}, ...parts));
}

function startControls() {
  for (const [number, run] of DATA.runs.entries()) toggle("run-toggles", run.label, STATE.runs, number, true);
  toggle("line-toggles", "95% intervals", STATE.lines, "intervals");
  toggle("line-toggles", "floors", STATE.lines, "floors");
  toggle("line-toggles", "ceilings", STATE.lines, "ceilings");
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  REDRAW.push(() => {
    for (const part of document.querySelectorAll(".standing")) part.hidden = !STATE.runs.has(Number(part.dataset.run));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", redraw);
  addEventListener("afterprint", redraw);
}
