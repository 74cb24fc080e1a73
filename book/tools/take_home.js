// Run in a page of the built site: makes of it what a book without scripts can hold. Returns the article's HTML.
// `slug` names the page, `slugs` the pages of the book by their address on the site, `pictures` the files that stand for
// figures and widgets, in the order of the page, each with its words.
({ slug, slugs, pictures }) => {
  const article = document.querySelector("article.bd-article").cloneNode(true);
  const all = (selector) => [...article.querySelectorAll(selector)];
  const make = (tag, ...children) => {
    const node = document.createElement(tag);
    node.append(...children);
    return node;
  };

  // Figures and widgets
  all("[data-picture]").forEach((figure) => {
    const { file, words, caption } = pictures[figure.dataset.picture];
    const image = make("img");
    image.src = file;
    image.alt = words;
    figure.replaceWith(make("figure", image, make("figcaption", caption)));
  });

  // Formulas: what MathJax keeps for screen readers
  all("mjx-container").forEach((container) => {
    const math = container.querySelector("mjx-assistive-mml math");
    if (container.getAttribute("display") === "true") math.setAttribute("display", "block");
    container.replaceWith(container.closest("h1, h2, h3, h4") ? math.textContent : math); // no formulas in the contents
  });

  // Code: its text, and the language where it is Python
  all("div[class*=highlight-] pre").forEach((pre) => {
    const shell = pre.closest("div[class*=highlight-]");
    const text = make("pre", make("code", pre.textContent.replace(/\n$/, "")));
    if (/python/.test(shell.className)) text.className = "python";
    shell.replaceWith(text);
  });

  // What opens and closes: its name stands above what it hides
  all("details").forEach((details) => {
    const name = details.querySelector("summary .collapsed, summary").textContent.trim();
    details.querySelector("summary").remove();
    const shown = /^(Show|Hide)/.test(name) ? [] : [make("p", make("strong", name))];
    details.replaceWith(...shown, ...details.childNodes);
  });
  all(".quiz fieldset").forEach((question) => {
    const choices = make("ul", ...[...question.querySelectorAll("label span")].map((span) => make("li", span.textContent)));
    question.querySelectorAll("label, .quiz-reason").forEach((part) => part.remove());
    const legend = question.querySelector("legend");
    question.replaceWith(make("p", make("strong", legend.textContent)), choices, ...[...question.childNodes].filter((n) => n !== legend));
  });

  all(
    "script, style, button, form, input, svg, nav, .headerlink, .copybtn, .visually-hidden, .loop-map, .quiz-end, " +
      ".exercise-effort, .prev-next-area, [hidden], .your-run",
  ).forEach((part) => part.remove());

  // Sections are what their headings say; pandoc keeps the anchors of headings, spans and boxes alone
  all("section").reverse().forEach((section) => {
    const heading = section.querySelector(":scope > :is(h1, h2, h3, h4)");
    const anchors = [section, heading].filter((part) => part?.id).map((part) => part.id);
    if (heading && anchors.length) {
      heading.id = anchors.shift();
      heading.append(...anchors.map((id) => Object.assign(make("span"), { id })));
    }
    section.replaceWith(...section.childNodes);
  });
  all("[id]:not(h1, h2, h3, h4, span, div)").forEach((part) => {
    if (/^(DT|DD|LI|P|TD|TH|FIGCAPTION)$/.test(part.tagName)) part.prepend(Object.assign(make("span"), { id: part.id }));
    part.removeAttribute("id");
  });

  // Anchors are told apart by their page; links within the book lead there, all others stay
  all("[id]").forEach((part) => (part.id = `${slug}--${part.id}`));
  article.querySelector("h1").id = slug;
  all("a").forEach((link) => {
    const written = link.getAttribute("href");
    if (!written) return;
    const address = new URL(written, document.baseURI);
    const to = slugs[address.pathname];
    if (to) link.setAttribute("href", "#" + (address.hash ? `${to}--${decodeURIComponent(address.hash.slice(1))}` : to));
    else if (address.protocol === "file:") link.replaceWith(...link.childNodes);
  });
  return { html: article.innerHTML, ids: all("[id]").map((part) => part.id) };
}
