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
