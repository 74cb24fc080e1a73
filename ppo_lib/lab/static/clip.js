// The clipped surrogate to play with: drag the ratio and the advantage, watch value and gradient. State: `ratio`,
// `advantage`, `cliprange`, `caption`.

const SVG = "http://www.w3.org/2000/svg";
const RATIOS = Array.from({ length: 101 }, (_, at) => at / 50); // 0, 0.02 … 2
const ADVANTAGES = Array.from({ length: 31 }, (_, at) => (at - 15) / 10); // −1.5 … 1.5
const RANGES = [0.05, 0.1, 0.2, 0.3, 0.5, 0.8];
const HIGHEST = 3.2; // of the surrogate's axis
const NEAR = 1e-9; // a ratio on the edge of the band still has its gradient

const nearest = (values, wanted) =>
  values.reduce((best, value, at) => (Math.abs(value - wanted) < Math.abs(values[best] - wanted) ? at : best), 0);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// What one token contributes: the smaller of two products, and its slope by the ratio.
function surrogate(ratio, advantage, range) {
  const clipped = clamp(ratio, 1 - range, 1 + range) * advantage;
  const stopped = advantage > 0 ? ratio > 1 + range + NEAR : ratio < 1 - range - NEAR;
  return { plain: ratio * advantage, clipped, value: Math.min(ratio * advantage, clipped), slope: stopped ? 0 : advantage };
}

function inWords(ratio, advantage, range) {
  if (advantage === 0) return "The token did as well as expected. There is nothing to learn from it.";
  const aim = advantage > 0 ? "more likely" : "less likely";
  const now = ratio > 1 ? "more likely" : "less likely";
  const outside = ratio > 1 + range + NEAR || ratio < 1 - range - NEAR;
  if (!outside) return `Inside the band the clip does nothing. The token is made ${aim}.`;
  if (now === aim) return `The token should become ${aim}, and it has gone far enough. No gradient.`;
  return `The token should become ${aim}, but its neighbours made it ${now}. It keeps its gradient and can come back.`;
}

function render({ model, el }) {
  const { figure, finish } = makeFigure(el, model.get("caption"));
  const panel = make("div", { class: "ppo-controls" });
  const readout = make("dl", { class: "ppo-readout" });
  const status = make("p", { class: "ppo-place", role: "status" });
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("role", "img");
  svg.setAttribute("class", "ppo-clip");
  const set = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const slider = (label, name, values) =>
    makeSlider(label, values.map(asText), nearest(values, model.get(name)), (at) => set(name, values[at]));
  const ranges = [...new Set([...RANGES, model.get("cliprange")])].sort((a, b) => a - b);
  const sliders = {
    ratio: [slider("ratio", "ratio", RATIOS), RATIOS],
    advantage: [slider("advantage A", "advantage", ADVANTAGES), ADVANTAGES],
    cliprange: [slider("ε", "cliprange", ranges), ranges],
  };
  panel.append(...Object.values(sliders).map(([{ row }]) => row));
  figure.append(panel, svg, status, readout);
  finish();

  const node = (tag, attributes, text) => {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text) made.textContent = text;
    svg.append(made);
    return made;
  };
  let width = 0;
  const [left, right, top, height, gap, second, foot] = [46, 14, 10, 230, 34, 90, 44];
  const x = (ratio) => left + (ratio / 2) * (width - left - right);
  const y = (value) => top + ((HIGHEST - value) / (2 * HIGHEST)) * height;
  const y2 = (slope) => top + height + gap + ((1.7 - slope) / 3.4) * second;
  const path = (points) => points.map(([px, py], at) => `${at ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");

  function axes(range) {
    const bottom = top + height + gap + second;
    node("rect", { x: x(1 - range), y: top, width: x(1 + range) - x(1 - range), height: bottom - top, class: "ppo-clip-band" });
    for (const [place, from, to, title, ticks] of [
      [y, top, top + height, "surrogate", [-3, -2, -1, 0, 1, 2, 3]],
      [y2, top + height + gap, bottom, "gradient", [-1, 0, 1]],
    ]) {
      for (const tick of ticks) {
        node("line", { x1: left, x2: width - right, y1: place(tick), y2: place(tick), class: tick ? "ppo-clip-grid" : "ppo-clip-zero" });
        node("text", { x: left - 6, y: place(tick) + 4, class: "ppo-clip-tick", "text-anchor": "end" }, asText(tick));
      }
      const middle = (from + to) / 2;
      node("text", { x: 12, y: middle, class: "ppo-clip-title", "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, title);
    }
    for (const tick of [0, 0.5, 1, 1.5, 2]) {
      node("text", { x: x(tick), y: bottom + 16, class: "ppo-clip-tick", "text-anchor": "middle" }, asText(tick));
    }
    node("text", { x: x(1), y: bottom + 36, class: "ppo-clip-title", "text-anchor": "middle" }, "ratio");
    node("text", { x: x(1), y: top + 12, class: "ppo-clip-tick", "text-anchor": "middle" }, range > 0.15 ? "1 − ε to 1 + ε" : "band");
  }

  const drags = {
    ratio: (px) => set("ratio", RATIOS[nearest(RATIOS, ((px - left) / (width - left - right)) * 2)]),
    advantage: (_, py) => set("advantage", ADVANTAGES[nearest(ADVANTAGES, HIGHEST - ((py - top) / height) * 2 * HIGHEST)]),
  };

  // A dot to drag. Where the two lie on each other, the direction of the drag says which one is meant.
  function handle(px, py, kind, overlapping) {
    node("circle", { cx: px, cy: py, r: 8, class: `ppo-clip-point ppo-clip-${kind}` });
    const grip = node("circle", { cx: px, cy: py, r: 22, class: `ppo-clip-grip ppo-clip-grip-${kind}` });
    grip.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      svg.setPointerCapture(event.pointerId);
      let meant = overlapping ? null : kind;
      const follow = (move) => {
        const [dx, dy] = [Math.abs(move.clientX - event.clientX), Math.abs(move.clientY - event.clientY)];
        if (!meant && Math.max(dx, dy) > 4) meant = dx > dy ? "ratio" : "advantage";
        const box = svg.getBoundingClientRect();
        if (meant) drags[meant](((move.clientX - box.left) / box.width) * width, move.clientY - box.top);
      };
      const end = () => svg.removeEventListener("pointermove", follow);
      svg.addEventListener("pointermove", follow);
      for (const over of ["pointerup", "pointercancel"]) svg.addEventListener(over, end, { once: true });
    });
  }

  function draw() {
    const [ratio, advantage, range] = ["ratio", "advantage", "cliprange"].map((name) => model.get(name));
    for (const [name, [made, values]] of Object.entries(sliders)) made.show(nearest(values, model.get(name)));
    const now = surrogate(ratio, advantage, range);
    status.textContent = inWords(ratio, advantage, range);
    const numbers = {
      "ratio · A": now.plain, "clipped ratio · A": now.clipped, "the smaller, which counts": now.value,
      "its gradient by the ratio": now.slope,
    };
    readout.replaceChildren(
      ...Object.entries(numbers).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, asText(value)))),
    );
    svg.setAttribute(
      "aria-label",
      `The clipped surrogate against the ratio for an advantage of ${asText(advantage)} and ε of ${asText(range)}. ` +
        `At a ratio of ${asText(ratio)} its value is ${asText(now.value)} and its gradient ${asText(now.slope)}. ${status.textContent}`,
    );
    if (!width) return;
    svg.setAttribute("viewBox", `0 0 ${width} ${top + height + gap + second + foot}`);
    svg.style.height = `${top + height + gap + second + foot}px`;
    for (const old of [...svg.childNodes]) old.remove();
    axes(range);
    const line = (of, class_) => node("path", { d: path(RATIOS.map((r) => [x(r), y(of(surrogate(r, advantage, range)))])), class: class_ });
    line(({ plain }) => plain, "ppo-clip-plain");
    line(({ clipped }) => clipped, "ppo-clip-clipped");
    line(({ value }) => value, "ppo-clip-value");
    const edge = advantage > 0 ? 1 + range : 1 - range;
    const steps = advantage > 0 ? [[0, advantage], [edge, advantage], [edge, 0], [2, 0]] : [[0, 0], [edge, 0], [edge, advantage], [2, advantage]];
    node("path", { d: path(steps.map(([r, slope]) => [x(r), y2(slope)])), class: "ppo-clip-value" });
    node("line", { x1: x(ratio), x2: x(ratio), y1: y(now.value), y2: y2(now.slope), class: "ppo-clip-drop" });
    node("circle", { cx: x(ratio), cy: y2(now.slope), r: 5, class: "ppo-clip-point ppo-clip-ratio" });
    if (now.slope) {
      const towards = Math.sign(now.slope);
      const [from, to] = [x(ratio) + 12 * towards, x(ratio) + (16 + 26 * Math.abs(now.slope)) * towards];
      const tip = clamp(to, left, width - right);
      const at = y(now.value);
      node("path", { d: `M${from} ${at}H${tip}M${tip - 7 * towards} ${at - 5}L${tip} ${at}L${tip - 7 * towards} ${at + 5}`, class: "ppo-clip-push" });
    }
    const overlapping = Math.hypot(x(ratio) - x(1), y(now.value) - y(advantage)) < 40;
    handle(x(1), y(advantage), "advantage", overlapping);
    handle(x(ratio), y(now.value), "ratio", overlapping);
  }

  const resized = new ResizeObserver(() => {
    const box = figure.clientWidth - 24;
    if (box > 0 && box !== width) {
      width = Math.min(box, 640);
      svg.style.width = `${width}px`;
      draw();
    }
  });
  resized.observe(figure);
  model.on("change:ratio change:advantage change:cliprange", draw);
  draw();
  return () => {
    resized.disconnect();
    model.off("change:ratio change:advantage change:cliprange", draw);
  };
}

export default { render };
