// Runs after require.js and before the widget manager: everything the manager may ask for lies below vendor/,
// so that it never looks on another machine.
(function () {
  const script = document.currentScript;
  const vendor = new URL("vendor/", script.src).href;
  script.setAttribute("data-jupyter-widgets-cdn", vendor);
  window.requirejs.config({ baseUrl: vendor });
})();
