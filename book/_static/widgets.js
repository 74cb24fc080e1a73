// Draws the page's widgets from their saved state, with no kernel behind them.
// An anywidget needs little: its state, its module, an element to draw in. A page that shows any other kind of widget
// gets Jupyter's own manager instead (1 MB more); all that the manager asks for lies below vendor/ as well.
(function () {
  const vendor = new URL("vendor/", document.currentScript.src).href;
  const STATE = 'script[type="application/vnd.jupyter.widget-state+json"]';
  const VIEW = 'script[type="application/vnd.jupyter.widget-view+json"]';

  // What a widget's module may ask of its model; changes stay on the page.
  class Model {
    constructor(saved) {
      this.state = saved.state;
      this.listeners = [];
      for (const buffer of saved.buffers || []) {
        const bytes = Uint8Array.from(atob(buffer.data), (character) => character.charCodeAt(0));
        const owner = buffer.path.slice(0, -1).reduce((value, key) => value[key], this.state);
        owner[buffer.path[buffer.path.length - 1]] = new DataView(bytes.buffer);
      }
    }
    get(name) {
      return this.state[name];
    }
    set(name, value) {
      const changes = typeof name === "string" ? { [name]: value } : name;
      const changed = Object.keys(changes).filter((key) => this.state[key] !== changes[key]);
      Object.assign(this.state, changes);
      for (const key of changed) this.emit("change:" + key, this.state[key]);
      if (changed.length) this.emit("change");
    }
    on(names, callback) {
      for (const name of names.split(" ")) this.listeners.push({ name, callback });
    }
    off(names, callback) {
      const kept = ({ name, callback: known }) =>
        (names && !names.split(" ").includes(name)) || (callback && callback !== known);
      this.listeners = this.listeners.filter(kept);
    }
    emit(name, value) {
      const called = this.listeners.filter((listener) => listener.name === name);
      for (const { callback } of called) callback.call(null, this, value);
    }
    save_changes() {}
    send() {}
  }

  const definitions = new Map(); // a module's source → what it exports, so that its code is read once
  function definitionOf(source) {
    if (!definitions.has(source)) {
      const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
      const loaded = import(address).then(async (module) => {
        const definition = module.default || module;
        return typeof definition === "function" ? definition() : definition;
      });
      definitions.set(source, loaded);
    }
    return definitions.get(source);
  }

  const models = new Map(); // a model's id → the model, initialised
  function modelOf(id, saved) {
    if (!models.has(id)) {
      const model = new Model(saved);
      const ready = definitionOf(model.get("_esm")).then(async (definition) => {
        if (model.get("_css")) {
          const style = document.createElement("style");
          style.textContent = model.get("_css");
          document.head.append(style);
        }
        if (definition.initialize) await definition.initialize({ model });
        return model;
      });
      models.set(id, ready);
    }
    return models.get(id);
  }

  async function draw(view, id, saved) {
    const element = document.createElement("div");
    element.className = "jupyter-widgets";
    const area = document.createElement("div");
    area.className = "widget-subarea";
    area.append(element);
    const model = await modelOf(id, saved);
    const definition = await definitionOf(model.get("_esm"));
    await definition.render({ model, el: element });
    view.before(area);
  }

  function loadManager() {
    const first = load("require.js");
    first.onload = function () {
      window.__jupyter_widgets_assets_path__ = vendor + "@jupyter-widgets/html-manager/dist/";
      window.requirejs.config({ baseUrl: vendor });
      load("embed-amd.js").setAttribute("data-jupyter-widgets-cdn", vendor);
    };
  }
  function load(name) {
    const script = document.createElement("script");
    script.src = vendor + name;
    document.body.append(script);
    return script;
  }

  function drawAll() {
    const state = JSON.parse(document.querySelector(STATE).textContent).state;
    const views = [...document.querySelectorAll(VIEW)].map((view) => [view, JSON.parse(view.textContent).model_id]);
    if (views.every(([, id]) => state[id] && state[id].model_module === "anywidget")) {
      for (const [view, id] of views) draw(view, id, state[id]);
    } else loadManager();
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", drawAll);
  else drawAll();
})();
