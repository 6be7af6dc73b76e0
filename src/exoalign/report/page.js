// Draws the plots in the colours of the current scheme, folds the stages, and filters, orders and opens the samples.
(() => {
  "use strict";

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)");

  // A copy of a figure in which each "var(--name)" has the value that the stylesheet gives it now.
  function resolved(node, style) {
    if (typeof node === "string") {
      const name = /^var\((--[a-z0-9-]+)\)$/.exec(node);
      return name ? style.getPropertyValue(name[1]).trim() : node;
    }
    if (Array.isArray(node)) return node.map((item) => resolved(item, style));
    if (node !== null && typeof node === "object") {
      return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, resolved(value, style)]));
    }
    return node;
  }

  const drawn = new Map(); // the scheme that each plot was drawn in

  function drawChart(chart) {
    if (chart.closest("details:not([open])") || drawn.get(chart) === dark.matches) return;
    drawn.set(chart, dark.matches);
    const spec = resolved(JSON.parse(chart.nextElementSibling.textContent), getComputedStyle(document.documentElement));
    if (coarse.matches) spec.layout.dragmode = false; // a finger scrolls the page, not the plot
    Plotly.react(chart, spec.data, spec.layout, {
      responsive: true,
      displaylogo: false,
      modeBarButtons: [["toImage", "resetScale2d"]],
      displayModeBar: coarse.matches ? false : "hover",
      toImageButtonOptions: { filename: chart.getAttribute("aria-labelledby"), scale: 2 },
    });
    chart.dispatchEvent(new Event("drawn", { bubbles: true }));
  }

  // Draws the plots below `root`, the first at once and the others when the browser has shown it. What is folded has no
  // size, and is drawn when it opens.
  function draw(root) {
    const waiting = [...root.querySelectorAll(".chart")];
    function next() {
      if (waiting.length) drawChart(waiting.shift());
      if (waiting.length) setTimeout(next);
    }
    next();
  }
  window.exoalign = { resolved, draw }; // for the script of a page that has more to do

  const stages = [...document.querySelectorAll("details.stage")];
  if (matchMedia("(max-width: 46rem)").matches) for (const stage of stages) stage.open = false;
  draw(document);
  dark.addEventListener("change", () => draw(document));
  for (const stage of stages) stage.addEventListener("toggle", () => draw(stage));
  addEventListener("beforeprint", () => {
    for (const stage of stages) stage.open = true;
    document.querySelectorAll(".chart").forEach(drawChart); // paper does not wait
  });

  const list = document.getElementById("list");
  if (!list) return;

  const samples = [...list.children];
  const filter = document.getElementById("filter");
  const order = document.getElementById("order");
  const toggle = document.getElementById("toggle");
  const shown = document.getElementById("shown");
  const texts = new Map(); // lower-case text of each sample, taken when the first filter asks for it

  function textOf(sample) {
    if (!texts.has(sample)) {
      const parts = [...sample.querySelectorAll(".text")].map((part) => part.textContent);
      texts.set(sample, parts.join("\n").toLowerCase());
    }
    return texts.get(sample);
  }

  function visible() {
    return samples.filter((sample) => !sample.hidden);
  }

  function label() {
    toggle.textContent = visible().some((sample) => !sample.open) ? "Open all" : "Close all";
  }

  function applyFilter() {
    const wanted = filter.value.toLowerCase();
    for (const sample of samples) sample.hidden = wanted !== "" && !textOf(sample).includes(wanted);
    const count = visible().length;
    const noun = samples.length === 1 ? "prompt" : "prompts";
    shown.textContent = wanted === "" ? `${count} ${noun}` : `${count} of ${samples.length} ${noun}`;
    label();
  }

  function applyOrder() {
    const change = (sample) => ("change" in sample.dataset ? Number(sample.dataset.change) : NaN);
    const known = samples.map(change).filter((value) => !Number.isNaN(value)).sort((a, b) => a - b);
    const half = known.length >> 1;
    const median = known.length % 2 ? known[half] : (known[half - 1] + known[half]) / 2;
    const rank = {
      prompt: () => 0,
      gain: (sample) => -change(sample),
      loss: (sample) => change(sample),
      median: (sample) => Math.abs(change(sample) - median),
    }[order.value];
    const ranked = samples.map((sample, index) => {
      const value = rank(sample);
      return { sample, index, value: Number.isNaN(value) ? Infinity : value }; // no change known: last
    });
    ranked.sort((a, b) => (a.value === b.value ? a.index - b.index : a.value - b.value));
    list.append(...ranked.map((item) => item.sample));
  }

  function openLinked() {
    const sample = document.getElementById(location.hash.slice(1));
    if (!samples.includes(sample)) return;
    if (sample.hidden) {
      filter.value = "";
      applyFilter();
    }
    sample.open = true;
    sample.scrollIntoView();
  }

  filter.addEventListener("input", applyFilter);
  order.addEventListener("change", applyOrder);
  toggle.addEventListener("click", () => {
    const open = toggle.textContent === "Open all";
    for (const sample of visible()) sample.open = open;
    label();
  });
  list.addEventListener("toggle", label, true);
  addEventListener("hashchange", openLinked);
  document.querySelector(".picks")?.addEventListener("click", () => setTimeout(openLinked)); // also when the hash stays
  document.querySelector(".controls").hidden = false;
  label();
  openLinked();
})();
