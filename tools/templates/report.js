"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function fill(select, names) {
  select.replaceChildren(...names.map((name) => element("option", name, { value: name })));
}

// Layers: rows whose text holds what was typed.
function filterLayers() {
  const wanted = byId("layer-filter").value.trim().toLowerCase();
  const rows = [...document.querySelectorAll("tr.layer")];
  for (const row of rows) row.hidden = !row.dataset.text.toLowerCase().includes(wanted);
  byId("layer-count").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
}

// Graph: one block, both sides, each match in a colour of its own.
const regionColor = (index, reason) => (reason ? "hsl(38 90% 50%)" : `hsl(${(index * 137 + 210) % 360} 65% 50%)`);

function showLines(target, lines, block, onlyChanged) {
  const shown = lines.filter((line) => !onlyChanged || line.changed || line.region !== null);
  let section = null;
  target.replaceChildren();
  for (const line of shown) {
    const parent = line.module.startsWith(block.name) ? line.module.split(".").slice(0, block.name.split(".").length + 1).join(".") : line.module;
    if (parent !== section) target.append(element("div", `# ${parent || "model"}`, { class: "section" }));
    section = parent;
    const made = element("div", line.text, { class: line.changed ? "changed" : "", title: line.module });
    if (line.region !== null) {
      const color = regionColor(line.region, block.regions[line.region].reason);
      made.dataset.region = line.region;
      made.style.borderLeftColor = color;
      made.style.background = color.replace(")", " / 0.14)");
    }
    target.append(made);
  }
}

function chooseRegion(index) {
  for (const line of document.querySelectorAll(".code div[data-region]")) {
    line.classList.toggle("chosen", line.dataset.region === String(index));
  }
  for (const id of ["before", "after"]) {
    const first = byId(id).querySelector(".chosen");
    if (first) byId(id).scrollTop = first.offsetTop - byId(id).offsetTop - 40;
  }
}

function showBlock() {
  const block = data.blocks[byId("block").selectedIndex];
  if (!block) return;
  showLines(byId("before"), block.before, block, byId("only-changed").checked);
  showLines(byId("after"), block.after, block, byId("only-changed").checked);
  byId("regions").replaceChildren(
    ...block.regions.map((region, index) => {
      const names = region.modules.map((name) => name.split(".").pop()).join(", ");
      const button = element("button", region.reason ? `${region.kind}: ${region.reason}` : `${region.kind} (${names})`);
      button.style.borderLeftColor = regionColor(index, region.reason);
      button.addEventListener("click", () => chooseRegion(index));
      return button;
    }),
  );
}

function step(by) {
  const select = byId("block");
  select.selectedIndex = Math.min(Math.max(select.selectedIndex + by, 0), select.options.length - 1);
  showBlock();
}

// Histograms.
const SVG = "http://www.w3.org/2000/svg";

function draw(svg, name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  svg.append(made);
}

function showSites() {
  const kind = byId("site-kind").value;
  fill(byId("site"), data.sites.filter((site) => site.kind === kind).map((site) => site.name));
  showHistogram();
}

function showHistogram() {
  const site = data.sites.find((other) => other.name === byId("site").value);
  if (!site.counts.length) {
    byId("histogram").replaceChildren(element("p", `${site.name}: every entry was zero`));
    return;
  }
  const [width, height, left, bottom] = [900, 300, 60, 40];
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("width", width);
  // Bins are of unequal width on this axis: what is drawn is entries per octave.
  const perOctave = site.counts.map((count, index) => count / Math.log2(site.edges[index + 1] / site.edges[index]));
  const heights = byId("log-counts").checked ? perOctave.map(Math.log1p) : perOctave;
  const most = Math.max(...heights);
  const [low, high] = [Math.log(site.edges[0]), Math.log(site.edges.at(-1))];
  const x = (magnitude) => left + ((Math.log(magnitude) - low) / (high - low)) * (width - left - 10);
  heights.forEach((value, index) => {
    const [from, to] = [site.edges[index], site.edges[index + 1]];
    const tall = (value / most) * (height - bottom - 30);
    draw(svg, "rect", {
      x: x(from), y: height - bottom - tall, width: Math.max(x(to) - x(from) - 1, 0.5), height: tall,
      class: (from + to) / 2 < site.threshold ? "inactive" : "active",
    });
  });
  draw(svg, "line", { x1: left, x2: width - 10, y1: height - bottom, y2: height - bottom, class: "axis" });
  for (let power = Math.ceil(low / Math.LN10); power <= high / Math.LN10; power++) {
    draw(svg, "text", { x: x(10 ** power), y: height - bottom + 16, "text-anchor": "middle" }, `1e${power}`);
  }
  draw(svg, "text", { x: width / 2, y: height - 6, "text-anchor": "middle" }, "magnitude of an input entry");
  if (site.threshold > site.edges[0]) {
    draw(svg, "line", { x1: x(site.threshold), x2: x(site.threshold), y1: 16, y2: height - bottom, class: "threshold" });
  }
  const target = site.target_sparsity === null ? "not known" : `${(100 * site.target_sparsity).toFixed(1)} %`;
  const realized = `${(100 * site.realized_sparsity).toFixed(1)} %`;
  draw(svg, "text", { x: left, y: 12 }, `${site.name}: threshold ${site.threshold.toPrecision(3)}, target ${target}, realized ${realized}`);
  byId("histogram").replaceChildren(svg);
}

byId("layer-filter").addEventListener("input", filterLayers);
filterLayers();
fill(byId("block"), data.blocks.map((block) => block.name));
const mostRegions = Math.max(...data.blocks.map((block) => block.regions.length));
byId("block").selectedIndex = data.blocks.findIndex((block) => block.regions.length === mostRegions);
byId("block").addEventListener("change", showBlock);
byId("only-changed").addEventListener("change", showBlock);
byId("block-previous").addEventListener("click", () => step(-1));
byId("block-next").addEventListener("click", () => step(1));
showBlock();
if (data.sites.length) {
  fill(byId("site-kind"), [...new Set(data.sites.map((site) => site.kind))]);
  byId("site-kind").addEventListener("change", showSites);
  byId("site").addEventListener("change", showHistogram);
  byId("log-counts").addEventListener("change", showHistogram);
  showSites();
}
