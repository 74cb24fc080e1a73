// Words of the glossary: their entry on a card, while the pointer or the keyboard is on them. Escape hides it.
document.addEventListener("DOMContentLoaded", function () {
  const card = document.createElement("div");
  card.id = "term-card";
  card.setAttribute("role", "tooltip");
  card.hidden = true;
  document.body.append(card);

  function show(term) {
    card.textContent = term.dataset.card;
    card.hidden = false;
    card.style.left = "0"; // or it is measured in what room the last word left it
    term.setAttribute("aria-describedby", card.id);
    const word = term.getClientRects()[0];
    const room = document.documentElement.clientWidth - card.offsetWidth - 8;
    const below = word.bottom + card.offsetHeight + 8 < window.innerHeight;
    card.style.left = `${window.scrollX + Math.max(8, Math.min(word.left, room))}px`;
    card.style.top = `${window.scrollY + (below ? word.bottom + 4 : word.top - card.offsetHeight - 4)}px`;
  }
  function hide() {
    card.hidden = true;
    document.querySelectorAll("a.term[aria-describedby]").forEach((term) => term.removeAttribute("aria-describedby"));
  }
  document.querySelectorAll("a.term").forEach(function (term) {
    for (const kind of ["mouseenter", "focus"]) term.addEventListener(kind, () => show(term));
    for (const kind of ["mouseleave", "blur"]) term.addEventListener(kind, hide);
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
});
