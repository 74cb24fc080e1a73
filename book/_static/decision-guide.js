// The decision guide: asks the questions that are still open, and shows the answers that are still possible.
// Without it the form stays hidden and every answer is on the page.
document.addEventListener("DOMContentLoaded", function () {
  const form = document.querySelector("form.decision-guide");
  const asked = [...form.querySelectorAll("fieldset")];
  const status = form.querySelector("[role=status]");
  const answers = new Map();
  form.querySelectorAll("[data-answers]").forEach(function (choice) {
    choice.dataset.answers.split(" ").forEach(function (name) {
      answers.set(name, document.getElementById(name).closest("section"));
    });
  });

  function update() {
    let last = null;
    let reached = "";
    asked.forEach(function (question) {
      question.hidden = Boolean(question.dataset.after) && question.dataset.after !== reached;
      const choice = question.hidden ? null : question.querySelector("input:checked");
      reached = choice ? choice.value : "";
      last = choice || last;
    });
    const possible = last ? last.dataset.answers.split(" ") : [...answers.keys()];
    answers.forEach(function (section, name) {
      section.hidden = !possible.includes(name);
    });
    status.textContent = last ? possible.length + " answers are left: the next question is above." : "";
    if (last && possible.length === 1) {
      const link = document.createElement("a");
      link.href = "#" + possible[0];
      link.textContent = answers.get(possible[0]).querySelector("h2").firstChild.textContent;
      status.replaceChildren("The answer: ", link);
    }
  }

  // A link to an answer that is hidden shows all of them again.
  function follow() {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.closest("section[hidden]")) {
      form.reset();
      update();
      target.scrollIntoView();
    }
  }

  form.addEventListener("change", update);
  form.addEventListener("reset", function () {
    setTimeout(update); // the choices are cleared after this event
  });
  form.addEventListener("keydown", function (event) {
    event.stopPropagation(); // arrow keys move between choices, not between pages
  });
  window.addEventListener("hashchange", follow);
  form.hidden = false;
  update();
});
