// Real responses, token by token, coloured by a quantity. State: `view` (prompts, quantities, steps; see
// `microscope.py`), `step`, `response` and `quantity` (indices), `caption`.

const closer = (number, from, to) => Math.min(Math.max(number, from), to);

// How far `value` stands from the quantity's centre, between −1 and 1. Ratios are measured on a log scale.
function intensity(value, { centre, extent, log }) {
  if (value === null) return 0;
  const distance = log ? Math.log(Math.max(value, 1e-9) / centre) : value - centre;
  return closer(distance / (log ? Math.log(extent) : extent), -1, 1);
}

// The numbers at the ends of the colour scale; a side that no value reaches is left out.
function legendEnds({ centre, extent, log, low, high }) {
  const below = log ? centre / extent : centre - extent;
  const above = log ? centre * extent : centre + extent;
  return [
    low < centre ? { side: "low", text: (low < below ? "≤ " : "") + asText(below) } : null,
    high > centre ? { side: "high", text: (high > above ? "≥ " : "") + asText(above) } : null,
  ];
}

function makeLegend(quantity) {
  const name = make("span", {}, `${quantity.label}: `);
  if (quantity.flag) {
    const yes = make("span", { class: "ppo-swatch ppo-flag" }, quantity.flag[1]);
    yes.style.setProperty("--share", 1);
    return [name, make("span", { class: "ppo-swatch" }, quantity.flag[0]), " ", yes];
  }
  const [low, high] = legendEnds(quantity);
  const sides = [low && "var(--ppo-low)", "var(--ppo-paper)", high && "var(--ppo-high)"].filter(Boolean);
  const ramp = make("span", { class: "ppo-ramp", "aria-hidden": "true" });
  ramp.style.background = `linear-gradient(to right, ${sides.join(", ")})`;
  return [name, (low ?? { text: asText(quantity.centre) }).text, ramp, (high ?? { text: asText(quantity.centre) }).text];
}

function render({ model, el }) {
  const { prompts, quantities, steps, step_label: stepLabel } = model.get("view");
  const { figure, finish } = makeFigure(el, model.get("caption"));
  const panel = make("div", { class: "ppo-controls" });
  const summary = make("p", { class: "ppo-summary" });
  const text = make("div", { class: "ppo-tokens", role: "group", "aria-label": "Tokens; arrow keys move between them" });
  const legend = make("p", { class: "ppo-legend" });
  const note = make("p", { class: "ppo-note" });
  const readout = make("dl", { class: "ppo-readout", id: makeId() });
  const place = make("p", { class: "ppo-place", id: makeId() });
  figure.append(panel, legend, text, summary, place, readout, note);
  let current = null; // index of the token the readout speaks of

  const set = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const state = () => {
    const step = steps[model.get("step")];
    const at = closer(model.get("response"), 0, step.responses.length - 1);
    return { step, at, response: step.responses[at], chosen: model.get("quantity"), quantity: quantities[model.get("quantity")] };
  };
  const valueText = (value, { flag }) => (flag && value !== null ? flag[value ? 1 : 0] : asText(value));

  function describe() {
    const { response, chosen } = state();
    place.textContent = `Token ${current + 1} of ${response.tokens.length}: “${response.tokens[current]}”`;
    readout.replaceChildren(
      ...quantities.map((quantity, index) => {
        const value = response.values[index]?.[current] ?? null;
        const row = make("div", {}, make("dt", {}, quantity.label), make("dd", {}, valueText(value, quantity)));
        row.classList.toggle("ppo-chosen", index === chosen);
        return row;
      }),
    );
  }

  function choose(index, focus) {
    const buttons = text.querySelectorAll("button");
    current = closer(index, 0, buttons.length - 1);
    buttons.forEach((button, at) => {
      button.tabIndex = at === current ? 0 : -1;
      button.classList.toggle("ppo-current", at === current);
    });
    if (focus) buttons[current].focus();
    describe();
  }

  function makeToken(token, index, response, chosen, quantity) {
    const value = response.values[chosen]?.[index] ?? null;
    const share = intensity(value, quantity);
    const shown = token === "" ? "·" : token.replaceAll("\n", "⏎");
    const number = make("span", { class: "ppo-number" }, ` ${valueText(value, quantity)}`);
    const button = make("button", { type: "button", class: "ppo-token" }, make("span", { class: "ppo-text" }, shown), number);
    button.setAttribute("aria-describedby", `${place.id} ${readout.id}`);
    button.style.setProperty("--share", Math.abs(share).toFixed(3));
    if (share < 0) button.classList.add("ppo-below");
    if (quantity.flag && value) button.classList.add("ppo-flag");
    for (const event of ["pointerenter", "focus", "click"]) {
      button.addEventListener(event, () => current !== index && choose(index, false));
    }
    return button;
  }

  function draw() {
    const { response, chosen, quantity } = state();
    const values = (response.values[chosen] ?? []).filter((value) => value !== null);
    const sum = values.reduce((total, value) => total + value, 0);
    const total = quantity.total === "sum" ? sum : sum / values.length;
    const hadFocus = text.contains(document.activeElement);
    text.replaceChildren(make("span", { class: "ppo-prompt" }, prompts[response.prompt]));
    response.tokens.forEach((token, index) => text.append(makeToken(token, index, response, chosen, quantity)));
    if (!response.ended) text.append(make("span", { class: "ppo-prompt" }, " … (cut off)"));
    summary.textContent = [
      response.score === null ? null : `score ${asText(response.score)}`,
      values.length ? `${quantity.total} of ${quantity.label} ${asText(total)}` : `${quantity.label}: not known at this step`,
    ].filter(Boolean).join(" · ");
    legend.replaceChildren(...makeLegend(quantity));
    note.textContent = quantity.note;
    const strongest = values.reduce((best, value, at) =>
      Math.abs(intensity(value, quantity)) > Math.abs(intensity(values[best], quantity)) ? at : best, 0);
    choose(current ?? strongest, hadFocus);
  }

  const controls = [];
  if (steps.length > 1) {
    const slider = makeSlider(stepLabel, steps.map(({ step }) => String(step)), model.get("step"), (at) => set("step", at));
    model.on("change:step", () => slider.show(model.get("step")));
    controls.push(slider.row);
  }
  const most = Math.max(...steps.map(({ responses }) => responses.length));
  const responseTexts = Array.from({ length: most }, (_, at) => `${at + 1} of ${most}`);
  const responseSelect = makeSelect("response", responseTexts, state().at, (at) => set("response", at));
  if (most > 1) controls.push(responseSelect.row);
  const quantitySelect = makeSelect("colour", quantities.map(({ label }) => label), model.get("quantity"), (at) => set("quantity", at));
  if (quantities.length > 1) controls.push(quantitySelect.row);
  const numbersId = makeId();
  const numbers = make("input", { type: "checkbox", id: numbersId });
  numbers.addEventListener("change", () => figure.classList.toggle("ppo-numbers", numbers.checked));
  controls.push(make("div", { class: "ppo-control" }, numbers, make("label", { for: numbersId }, "numbers under the tokens")));
  panel.append(...controls);
  finish();

  text.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: Infinity };
    if (!(event.key in moves)) return;
    event.preventDefault();
    choose(moves[event.key], true);
  });
  const follow = () => {
    current = null;
    responseSelect.select.value = state().at;
    draw();
  };
  const recolour = () => {
    quantitySelect.select.value = model.get("quantity");
    draw();
  };
  model.on("change:step", follow);
  model.on("change:response", follow);
  model.on("change:quantity", recolour);
  draw();
}

export default { render };
