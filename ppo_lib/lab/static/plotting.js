// What the widgets with Plotly figures share: finding Plotly, the page's colours, the change between light and dark.

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
