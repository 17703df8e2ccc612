// Tables that sort, as CSV, LaTeX and Parquet; and the start of the page.

const TABLE = { rows: [], columns: [], sorted: null, up: true };

function tableRows(target) {
  const rows = [];
  for (const [run, { label }] of DATA.runs.entries()) {
    if (!STATE.runs.has(run)) continue;
    const found = new Map();
    for (const [number, metric] of target.metrics.entries()) {
      const mine = metric.runs[run];
      if (!mine) continue;
      const sources = [...Object.entries(mine.lines).map(([source, line]) => [source, line, true]), ...Object.entries(mine.levels).map(([source, line]) => [source, line, false])];
      for (const [source, line, layered] of sources) {
        for (const [i, layer] of line.layers.entries()) {
          const key = `${source} ${layered ? layer : ""}`;
          const row = found.get(key) || { run: label, source, layer: layered ? (layer === null ? "average" : layerName(layer)) : "", order: layer === null ? 1000 : layer, cells: [] };
          row.cells[number] = { text: line.text[i], mean: line.mean[i], low: line.low[i], high: line.high[i], images: line.images[i] };
          found.set(key, row);
        }
      }
    }
    rows.push(...found.values());
  }
  return rows;
}

function valueOf(row, column) {
  if (column === 0) return row.run;
  if (column === 1) return row.source;
  if (column === 2) return row.order;
  const cell = row.cells[column - 3];
  return cell && cell.mean !== null ? cell.mean : null;
}

function sortRows() {
  if (TABLE.sorted === null) return;
  const sign = TABLE.up ? 1 : -1;
  TABLE.rows.sort((a, b) => {
    const [one, other] = [valueOf(a, TABLE.sorted), valueOf(b, TABLE.sorted)];
    if (one === null || other === null) return (one === null) - (other === null);
    return sign * (typeof one === "string" ? one.localeCompare(other) : one - other);
  });
}

function showTable() {
  const target = DATA.targets[Number(byId("table-target").value)];
  TABLE.columns = ["run", "source", "layer", ...target.metrics.map((metric) => metric.name)];
  TABLE.rows = tableRows(target);
  sortRows();
  const heads = TABLE.columns.map((name, number) => {
    const arrow = TABLE.sorted === number ? (TABLE.up ? " ▲" : " ▼") : "";
    const button = element("button", { type: "button" }, name + arrow);
    button.addEventListener("click", () => {
      TABLE.up = TABLE.sorted === number ? !TABLE.up : true;
      TABLE.sorted = number;
      showTable();
      byId("scores").querySelectorAll("thead button")[number].focus();
    });
    return element("th", { scope: "col", ariaSort: TABLE.sorted === number ? (TABLE.up ? "ascending" : "descending") : "none" }, button);
  });
  const body = TABLE.rows.map((row) => {
    const texts = [row.run, row.source, row.layer, ...target.metrics.map((_, i) => (row.cells[i] ? row.cells[i].text : ""))];
    return element("tr", {}, ...texts.map((text) => element("td", {}, text)));
  });
  byId("scores").replaceChildren(element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...body));
}

function csv() {
  const quoted = (value) => (/[",\n\r]/.test(String(value)) ? `"${String(value).replace(/"/g, '""')}"` : String(value));
  const metrics = TABLE.columns.slice(3);
  const head = ["run", "source", "layer", ...metrics.flatMap((name) => [name, `${name} low`, `${name} high`, `${name} images`])];
  const lines = TABLE.rows.map((row) => [
    row.run, row.source, row.layer,
    ...metrics.flatMap((_, i) => (row.cells[i] ? [row.cells[i].mean, row.cells[i].low, row.cells[i].high, row.cells[i].images] : ["", "", "", ""]).map((value) => value ?? "")),
  ]);
  return [head, ...lines].map((line) => line.map(quoted).join(",")).join("\n") + "\n";
}

function latex() {
  const marks = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "×": "$\\times$", "<": "\\textless{}", ">": "\\textgreater{}" };
  const text = (value) => String(value).replace(/[\\~^×<>]|[&%$#_{}]/g, (mark) => marks[mark] || `\\${mark}`);
  const number = (value) => text(value).replace(/-(?=\d)/g, "$-$");
  const metrics = TABLE.columns.slice(3);
  const lines = TABLE.rows.map((row) => [text(row.run), text(row.source), text(row.layer), ...metrics.map((_, i) => (row.cells[i] ? number(row.cells[i].text) : ""))].join(" & "));
  const head = TABLE.columns.map(text).join(" & ");
  return `% needs \\usepackage{booktabs}\n\\begin{tabular}{ll${"r".repeat(TABLE.columns.length - 2)}}\n\\toprule\n${head} \\\\\n\\midrule\n${lines.join(" \\\\\n")} \\\\\n\\bottomrule\n\\end{tabular}\n`;
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  byId("copied").textContent = `${what} copied`;
}

function save(content, name, type) {
  const link = element("a", { href: URL.createObjectURL(new Blob([content], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function startTables() {
  for (const [number, target] of DATA.targets.entries()) byId("table-target").append(element("option", { value: number }, target.name));
  byId("table-target").addEventListener("change", () => {
    TABLE.sorted = null;
    showTable();
  });
  byId("copy-csv").addEventListener("click", () => copy(csv(), "CSV"));
  byId("copy-latex").addEventListener("click", () => copy(latex(), "LaTeX"));
  byId("save-csv").addEventListener("click", () => save(csv(), "scores.csv", "text/csv"));
  byId("save-parquet").addEventListener("click", () => save(Uint8Array.from(atob(DATA.parquet), (letter) => letter.charCodeAt(0)), "scores.parquet", "application/vnd.apache.parquet"));
  REDRAW.push(showTable);
  showTable();
}

startControls();
startCurves();
startDifferences();
startSplits();
startExplorer();
startTables();
