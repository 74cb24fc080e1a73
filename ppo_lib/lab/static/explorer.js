// Stored runs over four settings of the replay buffer, beside tuned on-policy PPO, and the reader's own runs. State:
// `grid` (see `explorer.py`), `positions` (one index per slider), `share` (index of the threshold), `runs`, `training`,
// `failure`, `caption`.

const STATIC_NOTE =
  "The button needs Python, and none runs behind this page: open the chapter in Jupyter or on Colab and run its cells. " +
  "The sliders show stored runs and work here.";
const transparent = (colour, share) => colour + Math.round(255 * share).toString(16).padStart(2, "0");
const mean = (numbers) => numbers.reduce((sum, number) => sum + number, 0) / numbers.length;
const spaced = (number) => String(number).replace(/\B(?=(\d{3})+$)/g, ","); // 1,234

function learningCurves({ baseline, point, own, level, palette }) {
  const curve = ({ tokens, objective, low, high }, name, colour, dash) => [
    {
      x: [...tokens, ...[...tokens].reverse()], y: [...high, ...[...low].reverse()], type: "scatter", mode: "lines",
      fill: "toself", fillcolor: transparent(colour, 0.2), line: { width: 0 }, hoverinfo: "skip", showlegend: false,
    },
    { x: tokens, y: objective, name, type: "scatter", mode: "lines", line: { color: colour, width: 2.2, dash } },
  ];
  const width = Math.max(baseline.tokens.at(-1), point.tokens.at(-1));
  return [
    ...curve(baseline, "tuned on-policy PPO", palette[0], "solid"),
    ...curve(point, "replay", palette[1], "dash"),
    ...own.map(({ tokens, objective, seed }) => ({
      x: tokens, y: objective, name: `your run, seed ${seed}`, type: "scatter", mode: "lines+markers",
      line: { color: palette[2], width: 2.2 }, marker: { size: 5 },
    })),
    {
      x: [0, width], y: [level, level], name: "threshold", type: "scatter", mode: "lines", hoverinfo: "skip",
      line: { color: palette[5], width: 1.5, dash: "dot" },
    },
  ];
}

function reuseAndEfficiency({ points, point, share, palette }) {
  const [ratio, low, high] = point.until[share].ratio;
  const most = Math.max(...points.map(({ reuse }) => reuse)) + 0.5;
  const line = (y, name, dash) => ({
    x: [1, most], y, name, type: "scatter", mode: "lines", hoverinfo: "skip", line: { color: palette[5], width: 1.5, dash },
  });
  return [
    line([1, 1], "no gain", "dot"),
    line([1, most], "if reuse were efficiency", "dash"),
    {
      x: points.map(({ reuse }) => reuse), y: points.map(({ until }) => until[share].ratio[0]), name: "all settings",
      type: "scatter", mode: "markers", marker: { color: palette[5], size: 6, opacity: 0.6 },
    },
    {
      x: [point.reuse], y: [ratio], name: "this setting", type: "scatter", mode: "markers",
      marker: { color: palette[1], size: 12, symbol: "diamond" },
      error_y: { array: [high - ratio], arrayminus: [ratio - low], color: palette[1], thickness: 2 },
    },
  ];
}

function bufferHealth({ point, own, palette }) {
  const names = { ess: "effective sample size", age: "age / staleness threshold", fill: "fill" };
  const lines = (run, width, showlegend) =>
    Object.entries(names).map(([key, name], index) => ({
      x: run.tokens.slice(1), y: run[key], name, type: "scatter", mode: "lines", showlegend,
      line: { color: palette[index + 1], width, dash: ["solid", "dash", "dot"][index] },
    }));
  return [...lines(point, 2.2, true), ...own.flatMap((run) => lines(run, 1, false))];
}

function render({ model, el }) {
  const { controls, shares, levels, baseline, points, episodes, palette } = model.get("grid");
  const { figure, finish } = makeFigure(el, model.get("caption"));
  const panel = make("div", { class: "ppo-controls" });
  const note = make("p", { class: "ppo-status", role: "status", id: makeId() });
  const button = make("button", { type: "button", class: "ppo-button", disabled: "", "aria-describedby": note.id }, "train this");
  const readout = make("dl", { class: "ppo-readout" });
  const lowest = Math.min(...[baseline, ...points].flatMap(({ low }) => low));
  const highest = Math.max(...[baseline, ...points].flatMap(({ high }) => high));
  const ends = points.map(({ until }) => Math.max(...until.map(({ ratio }) => ratio[2])));
  const tallest = Math.min(Math.max(...ends, 2), 6);
  const plots = {
    curves: { title: "Learning", x: "generated tokens", y: "score − β·KL", height: 340, range: [lowest, highest], of: learningCurves },
    reuse: { title: "Efficiency beside reuse", x: "reuse: trained / generated", y: "tokens of PPO / tokens of this", height: 340, range: [0, tallest], of: reuseAndEfficiency },
    health: { title: "The buffer's health", x: "generated tokens", y: "share", height: 300, range: [0, 1.05], of: bufferHealth },
  };
  const panels = make("div", { class: "ppo-panels" });
  for (const each of Object.values(plots)) {
    each.plot = make("div", { class: "ppo-plot", role: "img" });
    each.plot.style.minHeight = `${each.height}px`;
    panels.append(make("div", { class: "ppo-panel" }, make("p", { class: "ppo-panel-title" }, each.title), each.plot));
  }
  figure.append(panel, make("div", { class: "ppo-run" }, button, note), readout, panels);
  let plotly = null;
  let waiting = false;
  let live = false;

  const set = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const indexOf = (positions) => positions.reduce((index, at, slider) => index * controls[slider].texts.length + at, 0);
  function state() {
    const index = indexOf(model.get("positions"));
    const share = model.get("share");
    const own = model.get("runs").filter(({ positions }) => indexOf(positions) === index);
    return { baseline, points, point: points[index], own, share, level: levels[share], palette };
  }

  function numbers({ point, share }) {
    const { tokens, never, runs, ratio: [ratio, low, high] } = point.until[share];
    const asked = baseline.until[share];
    const never_ = (count, of) => (count ? ` (${count} of ${of} runs never)` : "");
    return {
      "reuse: trained / generated": asText(point.reuse),
      "tokens to the threshold": spaced(tokens) + never_(never, runs),
      "tuned on-policy PPO needs": spaced(asked.tokens) + never_(asked.never, asked.runs),
      "times fewer (95 % interval)": `${asText(ratio)} (${asText(low)} to ${asText(high)})`,
      "final score − β·KL": `${asText(point.final)} (PPO ${asText(baseline.final)})`,
      "effective sample size, end": asText(mean(point.ess.slice(-3))),
    };
  }

  function describe(current) {
    readout.replaceChildren(
      ...Object.entries(numbers(current)).map(([name, value]) =>
        make("div", {}, make("dt", {}, name), make("dd", {}, value)),
      ),
    );
    const { point, own, share } = current;
    const { tokens, ratio } = point.until[share];
    plots.curves.plot.setAttribute(
      "aria-label",
      `Learning curves of replay, ending at ${asText(point.final)}, and of tuned on-policy PPO, ending at ` +
        `${asText(baseline.final)}; the threshold is ${asText(levels[share])}, replay holds it after ${spaced(tokens)} tokens.` +
        own.map(({ seed, objective }) => ` Your run, seed ${seed}, ends at ${asText(objective.at(-1))}.`).join(""),
    );
    plots.reuse.plot.setAttribute(
      "aria-label",
      `Efficiency against reuse for all ${points.length} settings. This one: reuse ${asText(point.reuse)}, ` +
        `efficiency ${asText(ratio[0])}, interval ${asText(ratio[1])} to ${asText(ratio[2])}.`,
    );
    plots.health.plot.setAttribute(
      "aria-label",
      `Effective sample size ends at ${asText(point.ess.at(-1))}, age at ${asText(point.age.at(-1))} of the staleness ` +
        `threshold, fill at ${asText(point.fill.at(-1))} of the buffer.`,
    );
  }

  function draw() {
    waiting = false;
    const current = state();
    describe(current);
    if (!plotly || !figure.isConnected) return;
    for (const { plot, of, x, y, height, range } of Object.values(plots)) {
      const narrow = plot.clientWidth < NARROW;
      const layout = {
        template: themed({}, figure, narrow), autosize: true, dragmode: false, height,
        xaxis: { title: { text: x } }, yaxis: { title: { text: y }, range },
        legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, margin: { l: 48, r: 12, t: narrow ? 76 : 56, b: 44 },
      };
      plotly.react(plot, of(current), layout, { displayModeBar: false, responsive: true });
    }
  }
  function drawSoon() {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  }

  function say() {
    const { responses, seconds } = model.get("training");
    const busy = responses !== undefined;
    button.disabled = !live || busy;
    const last = model.get("runs").at(-1);
    if (busy) note.textContent = `Training: ${responses} of ${episodes} responses, ${asText(seconds)} s …`;
    else if (model.get("failure")) note.textContent = `The run failed. ${model.get("failure")}`;
    else if (!live) note.textContent = STATIC_NOTE;
    else if (last) {
      const { tokens, held } = last.until[model.get("share")];
      const when = held ? `held the threshold after ${spaced(tokens)} tokens` : "never held the threshold";
      note.textContent = `The last run of yours took ${asText(last.seconds)} s and ${when}. Again: the next seed.`;
    } else note.textContent = `Trains this setting now, ${episodes} responses; seconds to half a minute.`;
  }

  const sliders = controls.map(({ label, texts }, slider) =>
    makeSlider(label, texts, model.get("positions")[slider], (at) => {
      const moved = [...model.get("positions")];
      moved[slider] = at;
      set("positions", moved);
    }),
  );
  const names = shares.map((share, at) => `${share} % of PPO’s gain (${asText(levels[at])})`);
  const threshold = makeSelect("threshold", names, model.get("share"), (at) => set("share", at));
  const least = (of) => points.reduce((best, point, at) => (of(point) < of(points[best]) ? at : best), 0);
  const gain = ({ until }) => until[model.get("share")].ratio[0];
  const jumps = {
    "most gain": () => least((point) => -gain(point)),
    "least gain": () => least(gain),
    "lowest end": () => least(({ low }) => low.at(-1)),
  };
  const jump = (index) => {
    const positions = [];
    for (const { texts } of [...controls].reverse()) {
      positions.unshift(index % texts.length);
      index = Math.floor(index / texts.length);
    }
    set("positions", positions);
  };
  const buttons = Object.entries(jumps).map(([name, find]) => {
    const made = make("button", { type: "button", class: "ppo-button" }, name);
    made.addEventListener("click", () => jump(find()));
    return made;
  });
  panel.append(...sliders.map(({ row }) => row), threshold.row, make("div", { class: "ppo-control" }, "go to:", ...buttons));
  finish();
  button.addEventListener("click", () => {
    button.disabled = true; // until Python says how it went
    model.send({ type: "train" });
  });

  const follow = () => {
    model.get("positions").forEach((at, slider) => sliders[slider].show(at));
    threshold.select.value = model.get("share");
    say();
    drawSoon();
  };
  const answered = (message) => {
    if (message?.type !== "here") return;
    live = true;
    say();
  };
  const heard = "change:positions change:share change:runs";
  model.on(heard, follow);
  model.on("change:training change:failure", say);
  model.on("msg:custom", answered);
  const unwatch = watchTheme(drawSoon);
  const resized = new ResizeObserver(drawSoon);
  resized.observe(figure);
  say();
  describe(state());
  drawSoon();
  model.send({ type: "hello" });
  findPlotly(model).then(
    (found) => {
      plotly = found;
      drawSoon();
    },
    () => {
      for (const { plot } of Object.values(plots)) {
        plot.replaceChildren(make("p", {}, `The plot cannot be drawn here (no Plotly). ${plot.getAttribute("aria-label")}`));
      }
    },
  );
  return () => {
    model.off(heard, follow);
    model.off("change:training change:failure", say);
    model.off("msg:custom", answered);
    unwatch();
    resized.disconnect();
    if (plotly) for (const { plot } of Object.values(plots)) plotly.purge(plot);
  };
}

export default { render };
