// The scene of the front page: plays the stored run whose end the page shows. Nothing is computed and nothing is asked for.
document.addEventListener("DOMContentLoaded", function () {
  const scene = document.querySelector("figure.scene");
  const run = JSON.parse(scene.querySelector("script").textContent);
  const last = run.updates.length - 1;
  const play = scene.querySelector(".play");
  const step = scene.querySelector(".step");
  const range = scene.querySelector("input[type=range]");
  const prompt = scene.querySelector("select");
  const said = scene.querySelector(".said");
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  const PACE = 450; // milliseconds an update
  const LEAP = 5; // updates a press of Train, for readers who want no motion
  let update = last;
  let timer = null;

  const number = (value) => value.toFixed(2).replace("-", "\u2212");
  const put = (name, text) =>
    scene.querySelectorAll(`[data-show=${name}]`).forEach((place) => (place.textContent = text));

  function surprise(score, guess) {
    const above = Number((score - guess).toFixed(2));
    if (above === 0) return "As guessed";
    return `${number(Math.abs(above))} ${above > 0 ? "above" : "below"} guess`;
  }

  // The text, each word that was not in the one before marked as new.
  function write(place, text, old) {
    const known = new Set(old.split(" "));
    place.replaceChildren(
      ...text.split(/(?= )/).map(function (word) {
        const piece = document.createElement("span");
        piece.textContent = word;
        if (!known.has(word.trim())) piece.className = "new";
        return piece;
      })
    );
  }

  function fill(block, words, look, old) {
    block.querySelector("i").textContent = words;
    write(block.querySelector("q"), look[0], old);
    block.querySelector(".score b").textContent = number(look[1]);
  }

  function show(at) {
    const looks = run.answers[prompt.value];
    const [text, score, guess] = looks[at];
    const [mean, kl] = run.updates[at];
    const old = scene.querySelector(".now q").textContent;
    fill(scene.querySelector(".before"), prompt.value, looks[0], looks[0][0]);
    fill(scene.querySelector(".now"), prompt.value, looks[at], old);
    scene.querySelector(".now .when").textContent = at === last ? `After ${last} updates` : `Update ${at} of ${last}`;
    put("score", number(score));
    put("guess", number(guess));
    put("surprise", surprise(score, guess));
    put("kl", kl.toFixed(1));
    put("mean", number(mean));
    const { lowest, highest, drift } = run.scale;
    const look = {
      mood: Math.max(-1, Math.min(1, score / highest)),
      slack: 1 - kl / drift,
      at: at / last,
      height: (mean - lowest) / (highest - lowest),
    };
    for (const [name, value] of Object.entries(look)) scene.style.setProperty(`--${name}`, value.toFixed(3));
    range.value = at;
    range.setAttribute("aria-valuetext", `${at} of ${last}`);
    update = at;
    name();
  }

  function name() {
    play.textContent = timer ? "Pause" : update === 0 || update === last ? "Train" : "Go on";
  }

  // Said once the scene stands still: thirty updates in a row are too much to listen to.
  function say() {
    const [text, score] = run.answers[prompt.value][update];
    const [mean, kl] = run.updates[update];
    said.textContent =
      `Update ${update} of ${last}: "${prompt.value}${text}", score ${number(score)}. ` +
      `Mean score ${number(mean)}, KL ${kl.toFixed(1)}.`;
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    name();
  }

  function goTo(at) {
    stop();
    show(at);
    say();
  }

  function train() {
    if (timer) return goTo(update);
    const from = update === last ? 0 : update;
    if (calm.matches) return goTo(update === last ? 0 : Math.min(last, from + LEAP));
    said.textContent = "";
    timer = setInterval(function () {
      if (update < last) show(update + 1);
      if (update === last) goTo(last);
    }, PACE);
    show(from);
  }

  play.addEventListener("click", train);
  step.addEventListener("click", () => goTo(update === last ? 0 : update + 1));
  range.addEventListener("input", () => goTo(Number(range.value)));
  prompt.addEventListener("change", function () {
    show(update);
    if (!timer) say();
  });
  calm.addEventListener("change", () => timer && goTo(update));
  // Arrow keys move the slider and the list, and turn no page.
  scene.addEventListener("keydown", (event) => event.stopPropagation());
  show(last);
  scene.classList.add("ready");
});
