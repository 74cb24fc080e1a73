// One or more sliders over figures drawn beforehand. State: `shared` (what all figures have in common), `frames`
// (what each adds), `controls` (label and texts of each slider), `positions` (one index per slider), `alts`, `caption`.

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

// The figure that `shared` and one frame make together. Lists of objects are merged item by item.
function merge(shared, own) {
  if (own === undefined) return structuredClone(shared);
  if (Array.isArray(shared) && isObject(own)) return shared.map((item, at) => merge(item, own[at]));
  if (!isObject(shared) || !isObject(own)) return structuredClone(own);
  const merged = {};
  for (const key of new Set([...Object.keys(shared), ...Object.keys(own)])) {
    merged[key] = key in shared ? merge(shared[key], own[key]) : structuredClone(own[key]);
  }
  return merged;
}

// Plotly from the page, or else from the kernel's own copy: nothing is fetched from elsewhere.
function findPlotly(model) {
  if (window.Plotly) return Promise.resolve(window.Plotly);
  window.ppoPlotly ??= new Promise((resolve, reject) => {
    const waiting = setInterval(() => window.Plotly && finish(window.Plotly), 50);
    const givingUp = setTimeout(() => finish(null), 20000);
    const listen = (message) => {
      if (message?.type !== "plotly") return;
      const module = { exports: {} };
      new Function("module", "exports", "define", message.code)(module, module.exports, undefined);
      window.Plotly ??= module.exports;
      finish(window.Plotly);
    };
    const finish = (plotly) => {
      clearInterval(waiting);
      clearTimeout(givingUp);
      model.off("msg:custom", listen);
      if (plotly) return resolve(plotly);
      window.ppoPlotly = undefined;
      reject(new Error("no Plotly on the page and no answer from the kernel"));
    };
    model.on("msg:custom", listen);
    model.send({ type: "plotly" });
  });
  return window.ppoPlotly;
}

const NARROW = 480;

// Text, grid and boxes in the colours that the widget has now. What a figure sets itself wins.
function themed(template, figure, narrow) {
  const { color: ink, borderTopColor: rule, backgroundColor: paper, fontFamily: family } = getComputedStyle(figure);
  const axis = { gridcolor: rule, zerolinecolor: rule, linecolor: rule, automargin: true, title: { standoff: 8 } };
  const layout = {
    ...template?.layout,
    font: { color: ink, family, size: narrow ? 12 : 13 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: narrow ? 40 : 56, r: 16, t: 48, b: 48 },
    hoverlabel: { bgcolor: paper, bordercolor: rule, font: { color: ink } },
    annotationDefaults: { font: { color: ink }, arrowcolor: ink },
    shapeDefaults: { line: { color: ink } },
    xaxis: axis,
    yaxis: axis,
  };
  return { layout };
}

// On a phone the titles of subplots, which are annotations, must not be larger than the rest.
const smaller = (annotations) =>
  annotations?.map((note) => ({ ...note, font: { ...note.font, size: Math.min(note.font?.size ?? 12, 12) } }));

// Calls `changed` whenever the page may have switched between light and dark; returns a function that stops it.
function watchTheme(changed) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const page = new MutationObserver(changed);
  const attributeFilter = ["data-theme", "theme", "data-jp-theme-light", "class"];
  for (const node of [document.documentElement, document.body]) page.observe(node, { attributeFilter });
  system.addEventListener("change", changed);
  return () => {
    page.disconnect();
    system.removeEventListener("change", changed);
  };
}

function render({ model, el }) {
  const [controls, shared, frames, alts] = ["controls", "shared", "frames", "alts"].map((name) => model.get(name));
  const { figure, finish } = makeFigure(el, model.get("caption"));
  const plot = make("div", { class: "ppo-plot", role: "img" });
  plot.style.minHeight = `${shared.layout?.height ?? 320}px`;
  const panel = make("div", { class: "ppo-controls" });
  figure.append(panel, plot);
  let plotly = null;
  let waiting = false;
  let narrow = false;

  const positions = () => [...model.get("positions")];
  const frameIndex = () => positions().reduce((index, at, slider) => index * controls[slider].texts.length + at, 0);

  function draw() {
    waiting = false;
    const index = frameIndex();
    plot.setAttribute("aria-label", alts[index] ?? alts[0]);
    if (!plotly || !plot.isConnected) return;
    const { data, layout } = merge(shared, frames[index]);
    narrow = plot.clientWidth < NARROW;
    if (narrow && layout.annotations) layout.annotations = smaller(layout.annotations);
    const own = { template: themed(layout.template, figure, narrow), autosize: true, dragmode: false };
    plotly.react(plot, data, { ...layout, ...own }, { displayModeBar: false, responsive: true });
  }
  function drawSoon() {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  }

  const sliders = controls.map(({ label, texts }, slider) =>
    makeSlider(label, texts, positions()[slider], (at) => {
      const moved = positions();
      moved[slider] = at;
      model.set("positions", moved);
      model.save_changes();
    }),
  );
  panel.append(...sliders.map(({ row }) => row));
  finish();

  const follow = () => {
    positions().forEach((at, slider) => sliders[slider].show(at));
    drawSoon();
  };
  model.on("change:positions", follow);
  const unwatch = watchTheme(drawSoon);
  const resized = new ResizeObserver(() => plot.clientWidth < NARROW !== narrow && drawSoon());
  resized.observe(plot);
  drawSoon();
  findPlotly(model).then(
    (found) => {
      plotly = found;
      drawSoon();
    },
    () => plot.replaceChildren(make("p", {}, `The plot cannot be drawn here (no Plotly). It shows: ${alts[0]}`)),
  );
  return () => {
    model.off("change:positions", follow);
    unwatch();
    resized.disconnect();
    plotly?.purge(plot);
  };
}

export default { render };
