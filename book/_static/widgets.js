// Runs after require.js and before the widget manager: says where the local copy of anywidget lies,
// so that the manager never looks for it elsewhere.
(function () {
  const vendor = new URL("vendor/", document.currentScript.src);
  window.__jupyter_widgets_assets_path__ = vendor.href;
  window.requirejs.config({ paths: { anywidget: new URL("anywidget", vendor).href } });
})();
