// The methods in the plots, the samples of a checkpoint, the samples side by side, and the files to save.
(() => {
  "use strict";

  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const comparison = read("comparison");
  const look = read("look");
  const $ = (id) => document.getElementById(id);
  const PAGE = 20; // prompts, or samples of a checkpoint, that are shown at a time
  const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]|\p{Cs}/gu;

  // As `html.visible`: every control character replaced by a mark that can be seen.
  function visible(text) {
    return text.replaceAll("\r\n", "\n").replace(CONTROL, (character) => {
      const code = character.codePointAt(0);
      if (code < 0x20) return String.fromCodePoint(0x2400 + code);
      return code === 0x7f ? "\u2421" : `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
    });
  }

  // An element with text and children; texts of models only ever come in as text.
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  const label = (method) => visible(Object.hasOwn(look.labels, method) ? look.labels[method] : method);
  const paint = (method) =>
    Object.hasOwn(look.colours, method) ? { style: `--paint: var(--${look.colours[method]})` } : {};
  const told = (value) => (value === null || value === undefined ? "–" : String(value));
  const reward = (value) => (typeof value === "number" ? value.toFixed(3).replace("-", "\u2212") : "–");
  const origin = (row) => [
    ...(row.beta === null || row.beta === undefined ? [] : [`beta ${row.beta}`]), `seed ${row.seed ?? 0}`, `step ${row.step ?? 0}`,
  ].join(", ");
  const keyOf = (row) => JSON.stringify([row.method, row.seed ?? 0, row.beta ?? null, row.step ?? 0]);

  for (const part of document.querySelectorAll(".scripted")) part.hidden = false;

  // The methods in the plots.

  const charts = [...document.querySelectorAll(".chart")];
  const boxes = [...document.querySelectorAll(".chips input")];
  const frontier = document.querySelector("#frontier-plot ~ .chart");

  function show(chart) {
    if (!chart.data) return; // not drawn yet
    const off = new Set(boxes.filter((box) => !box.checked).map((box) => Number(box.dataset.place)));
    const places = chart.data.flatMap((trace, place) => (typeof trace.meta === "number" ? [place] : []));
    if (!places.some((place) => (chart.data[place].visible ?? true) === off.has(chart.data[place].meta))) return;
    Plotly.restyle(chart, { visible: places.map((place) => !off.has(chart.data[place].meta)) }, places);
  }
  const showAll = () => charts.forEach(show);

  function axis() {
    const log = $("kl-axis").value === "log";
    const update = { "xaxis.type": log ? "log" : "linear", "xaxis.autorange": !log };
    const kls = frontier.data.flatMap((trace) => (trace.customdata ? trace.x : [])).filter((kl) => kl > 0);
    if (log && kls.length) { // by hand, as plotly finds no range when all methods are switched off
      const high = Math.max(...kls);
      update["xaxis.range"] = [Math.log10(Math.max(Math.min(...kls), high / 1000)) - 0.1, Math.log10(high) + 0.1];
    }
    const limit = frontier.layout.shapes?.[0]?.x0;
    if (limit !== undefined) update["annotations[0].x"] = log ? Math.log10(limit) : limit; // an annotation wants the logarithm
    Plotly.relayout(frontier, update);
  }

  if (frontier) {
    for (const box of boxes) box.addEventListener("change", showAll);
    for (const [id, on] of [["all-methods", true], ["no-methods", false]]) {
      $(id).addEventListener("click", () => {
        for (const box of boxes) box.checked = on;
        showAll();
      });
    }
    $("kl-axis").addEventListener("change", axis);
  }
  document.addEventListener("drawn", ({ target }) => { // a plot is drawn anew when the scheme changes
    show(target);
    if (target === frontier && $("kl-axis").value === "log") axis();
  });
  for (const details of document.querySelectorAll("details.histories")) {
    details.addEventListener("toggle", () => exoalign.draw(details));
  }

  // The samples of a checkpoint.

  const samples = comparison.samples ?? [];
  const ofCheckpoint = new Map();
  for (const sample of samples) {
    for (const row of sample.rows ?? []) {
      if (!ofCheckpoint.has(keyOf(row))) ofCheckpoint.set(keyOf(row), []);
      ofCheckpoint.get(keyOf(row)).push({ prompt: sample.prompt, row });
    }
  }

  function showCheckpoint(run, point) {
    const panel = $("checkpoint");
    const row = { ...run, step: point.step };
    const found = ofCheckpoint.get(keyOf(row)) ?? [];
    panel.style.setProperty("--paint", `var(--${look.colours[run.method]})`);
    const kl = point.kl_exact ?? point.kl;
    const numbers = `reward ${reward(point.reward?.mean)}, KL ${reward(kl?.mean)}`;
    const list = element("ol");
    const more = element("button", { type: "button", class: "more" }, "More samples");
    let shown = 0;
    const add = () => {
      for (const one of found.slice(shown, shown + PAGE)) {
        list.append(element("li", {},
          element("span", { class: "reward" }, reward(one.row.reward)),
          element("div", { class: "text asked", dir: "auto" }, visible(one.prompt)),
          element("div", { class: "text", dir: "auto" }, visible(one.row.text.replace(/^ /, "")))));
      }
      shown += PAGE;
      more.hidden = shown >= found.length;
    };
    more.addEventListener("click", add);
    add();
    panel.replaceChildren(
      element("h3", {}, `${label(run.method)}, ${origin(row)}: ${numbers}`),
      ...(found.length ? [list, more] : [element("p", { class: "none" }, "This page holds no samples of this checkpoint.")]),
    );
  }

  if (frontier) {
    const choice = $("checkpoint-choice");
    comparison.runs.forEach((run, place) => (run.points ?? []).forEach((point, at) => {
      const text = `${label(run.method)}, ${origin({ ...run, step: point.step })}`;
      choice.append(element("option", { value: `${place}/${at}` }, text));
    }));
    const choose = (place, at) => {
      const run = comparison.runs[place];
      showCheckpoint(run, run.points[at]);
    };
    choice.addEventListener("change", () => {
      if (choice.value) choose(...choice.value.split("/").map(Number));
      else $("checkpoint").replaceChildren();
    });
    frontier.on("plotly_click", (event) => {
      const found = event.points[0].customdata;
      if (!found) return;
      const [place, at] = found.slice(-2);
      choice.value = `${place}/${at}`;
      choose(place, at);
    });
  }

  // The samples side by side.

  if ($("prompts")) {
    const rows = samples.flatMap((sample) => sample.rows ?? []);
    const last = new Map(); // of each run the last step with samples
    const runOf = (row) => keyOf({ ...row, step: 0 });
    for (const row of rows) last.set(runOf(row), Math.max(last.get(runOf(row)) ?? 0, row.step ?? 0));
    const lower = new Map(); // a text in lower case, made when the first search asks for it
    const words = (text) => {
      if (!lower.has(text)) lower.set(text, text.toLowerCase());
      return lower.get(text);
    };
    const order = Object.keys(look.labels);
    const filters = {
      method: (a, b) => order.indexOf(a) - order.indexOf(b), beta: (a, b) => a - b, seed: (a, b) => a - b, step: (a, b) => a - b,
    };
    for (const [key, compare] of Object.entries(filters)) {
      const values = [...new Set(rows.map((row) => row[key] ?? null))].filter((value) => value !== null).sort(compare);
      for (const value of values) {
        const text = key === "method" ? label(value) : String(value);
        $(`of-${key}`).append(element("option", { value: JSON.stringify(value) }, text));
      }
    }

    let found = [];
    let shown = 0;

    function passing(row) {
      for (const key of Object.keys(filters)) {
        const wanted = $(`of-${key}`).value;
        if (wanted === "last") {
          if ((row.step ?? 0) !== last.get(runOf(row))) return false;
        } else if (wanted !== "" && JSON.stringify(row[key] ?? null) !== wanted) return false;
      }
      return true;
    }

    function marked(text, wanted) {
      const shownText = visible(text);
      if (wanted === "") return [shownText];
      const parts = [];
      const small = shownText.toLowerCase();
      let from = 0;
      if (small.length !== shownText.length) return [shownText]; // some letters grow when they become small
      for (let at = small.indexOf(wanted); at >= 0; at = small.indexOf(wanted, from)) {
        parts.push(shownText.slice(from, at), element("mark", {}, shownText.slice(at, at + wanted.length)));
        from = at + wanted.length;
      }
      return [...parts, shownText.slice(from)];
    }

    function fill(item, details) {
      if (details.childElementCount > 1) return;
      const wanted = $("words").value.toLowerCase();
      details.append(
        element("div", { class: "prompt text", dir: "auto" }, ...marked(item.sample.prompt, wanted)),
        element("div", { class: "replies" }, ...item.rows.map((row) =>
          element("section", { class: "reply", ...paint(row.method) },
            element("h3", {}, label(row.method),
              element("span", { class: "reward" }, element("span", { class: "unseen" }, "reward "), reward(row.reward)),
              element("span", { class: "from" }, origin(row))),
            element("div", { class: "text", dir: "auto" }, ...marked(row.text.replace(/^ /, ""), wanted)))),
        ),
      );
    }

    function add() {
      for (const item of found.slice(shown, shown + PAGE)) {
        const count = `${item.rows.length} ${item.rows.length === 1 ? "reply" : "replies"}`;
        const range = item.high === -Infinity ? count : `${count}, ${reward(item.low)} to ${reward(item.high)}`;
        const preview = visible(item.sample.prompt.replace(/\s+/g, " ").slice(0, 160)) || "(empty prompt)";
        const details = element("details", { class: "sample" },
          element("summary", {},
            element("span", { class: "index" }, String(item.place + 1)),
            element("span", { class: "preview", dir: "auto" }, preview),
            element("span", { class: "change" }, range)));
        details.addEventListener("toggle", () => details.open && fill(item, details));
        $("prompts").append(details);
      }
      shown = Math.min(shown + PAGE, found.length);
      $("more-prompts").hidden = shown >= found.length;
    }

    const known = (value) => typeof value === "number";
    const RANKS = {
      prompt: () => 0,
      high: (item) => -item.high,
      low: (item) => item.low,
      spread: (item) => item.low - item.high,
    };

    function apply() {
      const wanted = $("words").value.toLowerCase();
      const sort = $("sort").value;
      found = samples.map((sample, place) => {
        const whole = wanted === "" || words(sample.prompt).includes(wanted);
        const kept = (sample.rows ?? []).filter((row) => passing(row) && (whole || words(row.text).includes(wanted)));
        const rewards = kept.map((row) => row.reward).filter(known);
        if (sort === "high" || sort === "low") {
          const sign = sort === "high" ? -1 : 1;
          const value = (row) => (known(row.reward) ? sign * row.reward : Infinity);
          kept.sort((a, b) => (value(a) === value(b) ? 0 : value(a) - value(b)));
        }
        return { sample, place, rows: kept, low: Math.min(...rewards), high: Math.max(...rewards) };
      }).filter((item) => item.rows.length);
      const rank = (item) => (item.high === -Infinity ? Infinity : RANKS[sort](item)); // no reward known: last
      found.sort((a, b) => (rank(a) === rank(b) ? a.place - b.place : rank(a) - rank(b)));
      const replies = found.reduce((sum, item) => sum + item.rows.length, 0);
      $("count").textContent = `${replies} of ${rows.length} replies to ${found.length} of ${samples.length} prompts`;
      $("prompts").replaceChildren();
      shown = 0;
      add();
      const first = $("prompts").firstElementChild;
      if (first) first.open = true;
    }

    $("words").addEventListener("input", apply);
    for (const id of ["sort", ...Object.keys(filters).map((key) => `of-${key}`)]) $(id).addEventListener("change", apply);
    $("more-prompts").addEventListener("click", add);
    apply();
  }

  // Files to save.

  function save(name, blob) {
    const url = URL.createObjectURL(blob);
    element("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  $("save-json").addEventListener("click", () => {
    save("comparison.json", new Blob([JSON.stringify(comparison, null, 1)], { type: "application/json" }));
  });

  const QUANTITIES = ["reward", "kl", "kl_exact", "kl_k3", "length", "distinct_2", "self_bleu"];
  const ENDS = ["mean", "low", "high"];

  function csv() {
    const cell = (value) => {
      const text = value === null || value === undefined ? "" : String(value);
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const lines = [["method", "beta", "seed", "step", "seconds", "tokens",
      ...QUANTITIES.flatMap((name) => ENDS.map((end) => `${name}_${end}`))]];
    for (const run of comparison.runs) {
      for (const point of run.points ?? []) {
        lines.push([run.method, run.beta, run.seed ?? 0, point.step, point.seconds, point.tokens,
          ...QUANTITIES.flatMap((name) => ENDS.map((end) => point[name]?.[end]))]);
      }
    }
    return lines.map((line) => `${line.map(cell).join(",")}\n`).join("");
  }

  $("save-csv").addEventListener("click", () => save("points.csv", new Blob([csv()], { type: "text/csv" })));

  // A figure for a paper: the light colours on white, larger letters, and the methods that are switched on in a legend.
  async function picture(chart, format) {
    const spec = JSON.parse(chart.nextElementSibling.textContent);
    const { data, layout } = exoalign.resolved(spec, getComputedStyle(document.querySelector(".paper")));
    data.forEach((trace, place) => { trace.visible = chart.data[place].visible ?? true; });
    const several = data.filter((trace) => trace.showlegend !== false && typeof trace.meta === "number").length > 1;
    Object.assign(layout, {
      paper_bgcolor: "#ffffff", plot_bgcolor: "#ffffff", showlegend: several,
      font: { ...layout.font, size: 15 },
      legend: { orientation: "h", x: 0, y: -0.16, yanchor: "top" },
      margin: { l: 70, r: 24, t: 30, b: 60 },
    });
    if (chart === frontier) {
      layout.xaxis.type = chart.layout.xaxis.type;
      layout.annotations = chart.layout.annotations?.map((note, place) => ({ ...layout.annotations[place], x: note.x }));
    }
    const wide = chart.clientWidth > 700;
    const size = { width: wide ? 1000 : 640, height: wide ? 680 : several ? 560 : 460 };
    const url = await Plotly.toImage({ data, layout }, { format, scale: format === "png" ? 3 : 1, ...size });
    const [head, body] = [url.slice(0, url.indexOf(",")), url.slice(url.indexOf(",") + 1)];
    const bytes = head.endsWith("base64")
      ? Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0))
      : new TextEncoder().encode(decodeURIComponent(body));
    return new Blob([bytes], { type: head.slice(5).split(";")[0] });
  }

  for (const chart of charts) {
    const name = chart.getAttribute("aria-labelledby");
    const heading = $(name).textContent;
    const buttons = ["png", "svg"].map((format) => {
      const said = `Save “${heading}” as ${format.toUpperCase()}`;
      const button = element("button", { type: "button", "aria-label": said }, format.toUpperCase());
      button.addEventListener("click", async () => save(`${name}.${format}`, await picture(chart, format)));
      return button;
    });
    chart.closest("figure").append(element("p", { class: "save" }, ...buttons));
  }
})();
