// What both widgets share: building elements, a labelled slider, numbers as text.

const makeId = () => "ppo-" + Math.random().toString(36).slice(2, 10);

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// A native range input over `texts`, with a label and the current text beside it. `moved(index)` is called on input.
function makeSlider(label, texts, index, moved) {
  const id = makeId();
  const input = make("input", { type: "range", id, min: 0, max: texts.length - 1, step: 1 });
  const output = make("output", { for: id });
  const show = (at) => {
    input.value = at;
    input.setAttribute("aria-valuetext", texts[at]);
    output.textContent = texts[at];
  };
  input.addEventListener("input", () => {
    show(Number(input.value));
    moved(Number(input.value));
  });
  const longest = Math.max(...texts.map((text) => text.length));
  output.style.minWidth = `min(${longest}ch, 40vw)`; // long texts break on a phone
  show(index);
  return { row: make("div", { class: "ppo-control" }, make("label", { for: id }, label), input, output), show };
}

function makeSelect(label, texts, index, chosen) {
  const id = makeId();
  const select = make("select", { id });
  texts.forEach((text, at) => select.append(make("option", { value: at }, text)));
  select.value = index;
  select.addEventListener("change", () => chosen(Number(select.value)));
  return { row: make("div", { class: "ppo-control" }, make("label", { for: id }, label), select), select };
}

// The outer figure. Keys pressed inside stay inside: an arrow key must not move the notebook's cell selection.
function makeFigure(el, caption) {
  const figure = make("figure", { class: "ppo-widget", "data-lm-suppress-shortcuts": "true" });
  figure.addEventListener("keydown", (event) => event.stopPropagation());
  el.append(figure);
  const finish = () => caption && figure.append(make("figcaption", {}, caption));
  return { figure, finish };
}

// Three significant digits, with a true minus sign; "–" where there is no number.
function asText(number) {
  if (number === null || number === undefined) return "–";
  const size = Math.abs(number);
  const digits = size < 0.0001 || size >= 10000 ? number.toExponential(1) : String(Number(number.toPrecision(3)));
  return (size === 0 ? "0" : digits).replaceAll("-", "−").replace("e+", "e");
}
