// The questions at a chapter's end, and on the front page how many were right.
// Answers stay in this browser's storage, a key for each chapter; where it is closed, they last as long as the page.
document.addEventListener("DOMContentLoaded", function () {
  const keyOf = (chapter) => "ppo-book/quiz/" + chapter;

  // What is stored of a chapter: {answers: [value, …], right, of}. Anything else is no answer.
  function read(chapter) {
    try {
      const stored = JSON.parse(localStorage.getItem(keyOf(chapter)));
      return stored && Array.isArray(stored.answers) ? stored : null;
    } catch {
      return null;
    }
  }

  // Whether the browser keeps it. Storage may be switched off, or full.
  function write(chapter, content) {
    try {
      if (content.answers.length) localStorage.setItem(keyOf(chapter), JSON.stringify(content));
      else localStorage.removeItem(keyOf(chapter));
      return true;
    } catch {
      return false;
    }
  }

  function ask(quiz) {
    const questions = [...quiz.querySelectorAll("fieldset")];
    const count = quiz.querySelector(".quiz-count");
    const chosen = (question) => question.querySelector("input:checked");
    const reasonFor = (question, choice) => question.querySelector(`[data-of="${choice.value}"]`);

    function show(question) {
      const choice = chosen(question);
      question.querySelectorAll("label").forEach((label) => delete label.dataset.verdict);
      const place = question.querySelector(".quiz-reason");
      place.replaceChildren();
      if (!choice) return;
      const reason = reasonFor(question, choice);
      choice.parentElement.dataset.verdict = place.dataset.verdict = reason.dataset.verdict;
      const verdict = document.createElement("strong");
      verdict.textContent = reason.dataset.verdict === "right" ? "Right. " : "Not right. ";
      place.append(verdict, reason.querySelector("span").cloneNode(true));
    }

    function tally() {
      const choices = questions.map(chosen).filter(Boolean);
      const right = questions.filter((q) => chosen(q) && reasonFor(q, chosen(q)).dataset.verdict === "right").length;
      count.textContent = choices.length ? `${right} of ${questions.length} right` : "";
      const answers = choices.map((choice) => choice.value);
      const kept = write(quiz.dataset.chapter, { answers, right, of: questions.length });
      quiz.querySelector(".quiz-kept").textContent = kept
        ? "Your answers are kept in this browser alone."
        : "This browser keeps nothing: your answers last until you leave the page.";
    }

    const stored = read(quiz.dataset.chapter);
    const answers = stored ? stored.answers : [];
    quiz.querySelectorAll("input").forEach((input) => (input.checked = answers.includes(input.value)));
    questions.forEach(function (question) {
      question.querySelector("details").hidden = true;
      show(question);
    });
    tally();
    quiz.querySelector(".quiz-end").hidden = false;
    // Read aloud from now on: what a reload brings back is not.
    quiz.querySelectorAll(".quiz-reason, .quiz-count").forEach((place) => place.setAttribute("role", "status"));

    quiz.addEventListener("change", function (event) {
      show(event.target.closest("fieldset"));
      tally();
    });
    quiz.querySelector("button").addEventListener("click", function () {
      quiz.querySelectorAll("input").forEach((input) => (input.checked = false));
      questions.forEach(show);
      tally();
      quiz.querySelector("input").focus();
    });
    // Arrow keys move and do not choose, or they would give answers away on the way; the space bar chooses.
    quiz.addEventListener("keydown", function (event) {
      event.stopPropagation(); // nor do they turn the page
      const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
      if (!step || event.target.type !== "radio") return;
      event.preventDefault();
      const inputs = [...event.target.closest("fieldset").querySelectorAll("input")];
      inputs[(inputs.indexOf(event.target) + step + inputs.length) % inputs.length].focus();
    });
  }

  // Beside each chapter of the table of contents whose questions are all answered: how many were right.
  function tell(link) {
    const stored = read(link.pathname.split("/").pop().replace(".html", ""));
    if (!stored || stored.answers.length !== stored.of) return;
    const note = document.createElement("span");
    note.className = "quiz-done";
    note.textContent = `${stored.right}/${stored.of} right`;
    link.after(" ", note);
  }

  document.querySelectorAll(".quiz").forEach(ask);
  document.querySelectorAll('.toctree-wrapper a[href*="chapters/"]').forEach(tell);
});
