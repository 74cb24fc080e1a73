// Draws the page's Plotly figures from the JSON beside them, in the colours of the page's theme, at the page's width.
// What a figure sets itself (a trace's colour, a height) wins over what is set here.
(function () {
  const NARROW = 500;
  // Okabe and Ito's colours, told apart by colour-blind readers; a lighter set where the page is dark.
  const COLOURS = {
    light: ["#0072b2", "#c04f00", "#00795a", "#a8447f", "#7a5c00", "#2b7bba", "#555555"],
    dark: ["#56b4e9", "#e69f00", "#2bc49a", "#e78ac3", "#f0e442", "#9ecae1", "#cccccc"],
  };

  function theme() {
    const root = document.documentElement;
    return root.dataset.theme === "dark" ? "dark" : "light";
  }

  function template(narrow) {
    const dark = theme() === "dark";
    const ink = dark ? "#e6e6e6" : "#1f2328";
    const grid = dark ? "#4a4f57" : "#d5d9de";
    const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true, title: { standoff: 8 } };
    const box = dark ? "#24282e" : "#ffffff";
    const layout = {
      autosize: true,
      height: narrow ? 360 : 400,
      margin: { l: 56, r: 16, t: 48, b: 48 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: "system-ui, sans-serif", size: narrow ? 12 : 13 },
      title: { x: 0.01, xanchor: "left", font: { size: narrow ? 13 : 15 } },
      colorway: COLOURS[dark ? "dark" : "light"],
      hoverlabel: { bgcolor: box, bordercolor: grid, font: { color: ink } },
      legend: { bgcolor: "rgba(0,0,0,0)" },
      xaxis: axis,
      yaxis: axis,
      sliderDefaults: { bordercolor: grid, bgcolor: box, activebgcolor: grid, tickcolor: ink, font: { color: ink } },
      updatemenuDefaults: { bordercolor: grid, bgcolor: box, font: { color: ink } },
      annotationDefaults: { font: { color: ink } },
      shapeDefaults: { line: { color: ink } },
    };
    const trace = { colorbar: { outlinewidth: 0, ticks: "" } };
    return { layout: layout, data: { heatmap: [trace], contour: [trace] } };
  }

  function layoutFor(spec, plot) {
    const narrow = plot.clientWidth < NARROW;
    const layout = JSON.parse(JSON.stringify(spec.layout));
    delete layout.width;
    layout.template = template(narrow);
    if (narrow) {
      // A phone: the legend goes below the plot, and a finger on the plot scrolls the page.
      layout.legend = Object.assign({}, layout.legend, { orientation: "h", x: 0, xanchor: "left", y: -0.25, yanchor: "top" });
      layout.dragmode = false;
    }
    return layout;
  }

  function draw(figure) {
    const plot = figure.querySelector(".plotly-plot");
    const specOf = () => JSON.parse(figure.querySelector("script").textContent);
    const spec = specOf();
    const config = { responsive: true, displayModeBar: false };
    window.Plotly.newPlot(plot, spec.data, layoutFor(spec, plot), config).then(function () {
      if (spec.frames.length) window.Plotly.addFrames(plot, spec.frames);
      figure.dataset.drawn = theme();
    });
    if (figure.dataset.watched) return;
    figure.dataset.watched = true;
    let narrow = plot.clientWidth < NARROW;
    function redraw() {
      window.Plotly.relayout(plot, { template: template(narrow) }).then(function () {
        figure.dataset.drawn = theme();
      });
    }
    new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    new ResizeObserver(function () {
      if (plot.clientWidth < NARROW !== narrow) {
        narrow = plot.clientWidth < NARROW;
        window.Plotly.relayout(plot, layoutFor(specOf(), plot));
      }
    }).observe(plot);
  }

  function drawAll() {
    document.querySelectorAll("figure.plotly-figure").forEach(draw);
  }
  // A script that fills or changes a figure says so with this event.
  document.addEventListener("plotly-figure", (event) => draw(event.target));
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", drawAll);
  else drawAll();
})();
