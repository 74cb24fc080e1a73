// Draws a log that the reader chooses beside the stored runs, and lists its symptoms. The file goes nowhere.
document.addEventListener("DOMContentLoaded", function () {
  const LARGEST = 50; // MB: more makes the browser wait
  const NARROW = window.matchMedia("(max-width: 600px)");
  const DRAWN = 600; // points of a curve; more cannot be told apart
  const { judge, last, many, read, values } = window.runLog;
  const box = document.querySelector(".your-run");
  const stored = JSON.parse(box.querySelector("script").textContent);
  const zone = box.querySelector(".zone");
  const input = box.querySelector("input");
  const status = box.querySelector("[role=status]");
  const result = box.querySelector(".result");
  const beside = box.querySelector("select");
  let shown = null; // the run that is drawn, and its file's name
  let turn = 0;

  const number = (value) =>
    !Number.isFinite(value)
      ? "–"
      : (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)
          ? value.toExponential(1)
          : String(Number(value.toPrecision(3)))
        ).replace(/-/g, "\u2212");

  function element(name, ...content) {
    const made = document.createElement(name);
    made.append(...content);
    return made;
  }

  // What the page's table says of a symptom: its links, by the words of its first cell, whose apostrophes are curly.
  const words = (row) => row.cells[0].textContent.trim().replaceAll("\u2019", "'");
  const rows = new Map([...document.querySelectorAll("article table tr")].map((row) => [words(row), row]));
  const linksOf = (rule) => [...rows.get(rule.see).querySelectorAll("a")];

  // The place in the list of stored faults of the section that a link leads to: its heading, without the sign beside it.
  function faultOf(link) {
    const section = document.getElementById(decodeURIComponent(link.hash.slice(1)));
    const heading = section.querySelector("h3").cloneNode(true);
    heading.querySelectorAll(".headerlink").forEach((sign) => sign.remove());
    return stored.faults.findIndex((fault) => fault.title === heading.textContent.trim());
  }

  function say(text) {
    status.textContent = text;
  }

  async function take(file) {
    if (!file) return;
    const mine = (turn += 1);
    const kept = shown ? ` The picture below still is of ${shown.name}.` : "";
    if (file.size > LARGEST * 1e6) {
      const size = Math.ceil(file.size / 1e6);
      return say(
        `${file.name} has ${size} MB, and this page reads up to ${LARGEST}. Thin it out first, every tenth line say: ` +
          `awk 'NR < 3 || NR % 10 == 0' ${file.name} > thin.jsonl${kept ? "." + kept : ""}`
      );
    }
    say(`Reading ${file.name} …`);
    let run;
    try {
      const text = await file.text().catch(() => {
        throw new Error("The browser cannot read it: choose a file, not a folder, that is still there.");
      });
      if (mine !== turn) return; // another file was chosen in the meantime
      run = read(text, stored.metrics);
    } catch (error) {
      return mine === turn ? say(`${file.name}: ${error.message}${kept}`) : undefined;
    }
    shown = { name: file.name, run };
    show();
  }

  function show() {
    const { run, name } = shown;
    const { found, open } = judge(run, stored.rules);
    result.hidden = false;
    list(found);
    offer(found);
    const named = many(found.length, "symptom is named below", "symptoms are named below");
    const words = found.length ? `${named}.` : "No symptom found.";
    say(`${name}: ${many(run.updates.length, "update")}. ${[words, ...run.notes].join(" ")}`);
    const missing = open.map((rule) => `“${rule.see}”`).join(", ");
    box.querySelector(".proof").replaceChildren(
      (found.length
        ? "A symptom looks like a fault, and may have another cause. "
        : "No rule of this page holds. That is no proof of health: read some responses. ") +
        "The bounds come from a tiny model on one world, so compare shapes and directions, not heights.",
      missing ? ` Not judged, because the log is too short for them or lacks their metrics: ${missing}.` : ""
    );
    tabulate(run);
    draw();
  }

  function list(found) {
    const items = found.map(function ({ rule, numbers }) {
      const item = element("li", element("b", rule.see), ": ");
      const facts = new Map(); // a number can have two bounds
      rule.when.forEach(function ({ what, rule: bound }, at) {
        const said = `${what} is ${number(numbers[at])}`;
        facts.set(said, [...(facts.get(said) || []), bound]);
      });
      const told = [...facts].map(([said, bounds]) => `${said} (the rule: ${bounds.join(" and ")})`).join("; ");
      item.append(told + ". ", rule.but ? rule.but + " " : "", "Compare with ");
      linksOf(rule).forEach(function (link, at) {
        const copy = link.cloneNode(true);
        item.append(at ? ", " : "", copy);
      });
      item.append(".");
      return item;
    });
    box.querySelector(".symptoms").replaceChildren(...items);
  }

  // The faults to choose from, first those that its symptoms lead to. A symptom that leads to few counts more for each.
  // What was chosen stays chosen.
  function offer(found) {
    const chosen = beside.value;
    const votes = new Map();
    for (const { rule } of found) {
      const faults = linksOf(rule).map(faultOf);
      faults.forEach((fault) => votes.set(fault, (votes.get(fault) || 0) + 1 / faults.length));
    }
    const named = [...votes.keys()].sort((a, b) => votes.get(b) - votes.get(a) || a - b);
    const option = (fault) => new Option(stored.faults[fault].title, fault);
    const group = function (label, faults) {
      const made = element("optgroup", ...faults.map(option));
      made.label = label;
      return made;
    };
    const others = stored.faults.map((_, fault) => fault).filter((fault) => !votes.has(fault));
    beside.replaceChildren(
      new Option("none", ""),
      ...(named.length ? [group("its symptoms lead here", named)] : []),
      group(named.length ? "the others" : "faults", others)
    );
    beside.value = chosen;
  }

  const has = (run) => stored.panels.filter(({ metric }) => values(run, metric).length);

  function tabulate(run) {
    const lines = has(run).map(function ({ metric, label, healthy }) {
      const own = values(run, metric);
      const heading = element("th", label);
      heading.scope = "row";
      const cells = [number(own[0]), number(last(own)), healthy.map(number).join(" to ")];
      return element("tr", heading, ...cells.map((text) => element("td", text)));
    });
    box.querySelector("tbody").replaceChildren(...lines);
  }

  // Points as [share of the run in per cent, value, update].
  function own(run, metric) {
    const step = Math.ceil(run.updates.length / DRAWN);
    const end = run.updates.length - 1;
    return run.updates
      .map((row, at) => [(100 * at) / (end || 1), row[metric], row.update ?? at + 1])
      .filter(([, value], at) => Number.isFinite(value) && (at % step === 0 || at === end));
  }

  const evenly = (curve) => curve.map((value, at) => [(100 * at) / (curve.length - 1 || 1), value]);

  function traces({ metric, band, label }, axis) {
    const { run } = shown;
    const { healthy, fault, yours } = stored.colours;
    const place = { xaxis: `x${axis}`, yaxis: `y${axis}`, mode: "lines", showlegend: false };
    const line = function (points, name, look) {
      const texts = points.map(([, value, update]) => `${name}${update ? `, update ${update}` : ""}: ${number(value)}`);
      return {
        ...place, x: points.map(([x]) => x), y: points.map(([, y]) => y), text: texts, hoverinfo: "text", line: look,
      };
    };
    const edge = { color: healthy, width: 1 };
    const drawn = [line(evenly(band[0]), "healthy, lowest", edge), line(evenly(band[1]), "healthy, highest", edge)];
    Object.assign(drawn[1], { fill: "tonexty", fillcolor: healthy + "40" });
    const dotted = { color: fault, dash: "dot", width: 2 };
    const faulty = stored.faults[beside.value]?.runs || []; // none while nothing is chosen
    faulty.forEach((one, seed) => drawn.push(line(evenly(one[metric]), `with the fault, seed ${seed}`, dotted)));
    drawn.push(line(own(run, metric), "yours", { color: yours, width: 2.5 }));
    if (run.updates.length === 1) drawn[drawn.length - 1].mode = "markers";
    // On a log scale where the curves would flatten one another.
    const all = drawn.flatMap((trace) => trace.y);
    const decades = Math.log10(Math.max(...all) / Math.min(...all)); // NaN or infinite where one is not above 0
    const log = Math.min(...all) > 0 && decades > 1.7;
    const scale = log ? { type: "log", dtick: Math.ceil(decades / 4), exponentformat: "power" } : { nticks: 4 };
    return { drawn, scale, label };
  }

  function draw() {
    const panels = has(shown.run);
    box.querySelector(".picture").hidden = !panels.length;
    if (!panels.length) return;
    const columns = NARROW.matches ? 2 : 3;
    const lines = Math.ceil(panels.length / columns);
    const height = 150 * lines + 60;
    const gap = [0.3 / columns, 62 / (height - 60)];
    const layout = { height, margin: { l: 40, r: 8, t: 28, b: 32 }, annotations: [], font: { size: 11 } };
    const data = [];
    const wide = (1 - gap[0] * (columns - 1)) / columns;
    const high = (1 - gap[1] * (lines - 1)) / lines;
    panels.forEach(function (panel, at) {
      const axis = at ? at + 1 : "";
      const { drawn, scale, label } = traces(panel, axis);
      const left = (at % columns) * (wide + gap[0]);
      const top = 1 - Math.floor(at / columns) * (high + gap[1]);
      const across = { range: [0, 100], tickvals: [0, 50, 100], anchor: `y${axis}` };
      layout[`xaxis${axis}`] = { ...across, domain: [left, left + wide] };
      layout[`yaxis${axis}`] = { ...scale, domain: [Math.max(0, top - high), top], anchor: `x${axis}` };
      const corner = { xref: "paper", yref: "paper", x: left, y: top, xanchor: "left", yanchor: "bottom" };
      layout.annotations.push({ ...corner, text: label, showarrow: false, font: { size: 12 } });
      data.push(...drawn);
    });
    picture(data, layout);
  }

  function picture(data, layout) {
    const place = box.querySelector(".picture");
    if (!place.firstChild) {
      const plot = element("div");
      plot.className = "plotly-plot";
      plot.setAttribute("role", "group");
      const spec = element("script");
      spec.type = "application/json";
      const figure = element("figure", plot, spec, element("figcaption"));
      figure.className = "plotly-figure";
      place.append(figure);
    }
    const figure = place.firstChild;
    const chosen = stored.faults[beside.value];
    const fault = chosen ? ` and of stored runs with the fault “${chosen.title}”` : "";
    figure.querySelector("figcaption").textContent =
      `${shown.name} over the range of the healthy runs${fault}. ` +
      "From left to right: how much of each run is done, in per cent.";
    figure.querySelector(".plotly-plot").setAttribute(
      "aria-label",
      `Curves of ${shown.name} over the range of healthy runs${fault}. The numbers are in the table below the figure.`
    );
    figure.querySelector("script").textContent = JSON.stringify({ data, layout, frames: [] });
    figure.dispatchEvent(new Event("plotly-figure", { bubbles: true }));
    box.querySelector(".legend .fault").parentNode.hidden = !chosen;
  }

  input.addEventListener("change", function () {
    take(input.files[0]);
    input.value = ""; // so that the same file can be chosen again when the run has gone on
  });
  beside.addEventListener("change", draw);
  NARROW.addEventListener("change", () => shown && draw());
  box.addEventListener("keydown", (event) => event.stopPropagation()); // arrow keys choose a fault, and turn no page

  // A file may fall anywhere on the page: beside the zone the browser would open it in the page's place.
  const holdsFiles = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
  document.addEventListener("dragover", function (event) {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    zone.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || zone.classList.remove("over"));
  document.addEventListener("drop", function (event) {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    zone.classList.remove("over");
    take(event.dataTransfer.files[0]);
    zone.scrollIntoView({ block: "nearest" });
  });
  box.querySelector(".live").hidden = false;
});
