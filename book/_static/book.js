// Small repairs to what the theme and the notebook renderer put on a page, for readers who use a keyboard or a screen reader.
document.addEventListener("DOMContentLoaded", function () {
  // The label "Toggle hidden content" hides the visible words ("Show code") from speech control.
  document.querySelectorAll("div.cell details > summary[aria-label]").forEach(function (summary) {
    summary.removeAttribute("aria-label");
  });
  // The role "doc-biblioentry" is no longer part of the standard; an entry of a list is a list item.
  document.querySelectorAll(".citation-list > [role=doc-biblioentry]").forEach(function (entry) {
    entry.setAttribute("role", "listitem");
  });
  // The empty corner of a table is no header of anything.
  document.querySelectorAll("article th").forEach(function (header) {
    if (header.textContent.trim() === "") header.outerHTML = "<td></td>";
  });
  // Code and output wider than the page scroll; the keyboard must reach them to scroll them.
  function reachable() {
    document.querySelectorAll("article pre, article .cell_output, article .output").forEach(function (box) {
      if (box.scrollWidth > box.clientWidth + 1 && !box.hasAttribute("tabindex")) box.tabIndex = 0;
    });
  }
  reachable();
  window.addEventListener("resize", reachable);
});
