// Drawing: the panes, and the panels around them, as the store says.
"use strict";
{
  const { data, h, store, Pane, Outline, Timeline } = irloom;
  const $ = (id) => document.getElementById(id);
  let [busy, drawn, problem, silence] = [0, Promise.resolve(), null, 0];
  let panes, outline, timeline;

  /** Make the panes and panels; `on` is what they do when something is clicked. */
  function make(on) {
    const sided = (side) => ({ select: (key) => on.select(key, side), toggle: on.toggle });
    panes = {
      after: new Pane($("after"), "after", sided("after")),
      before: new Pane($("before"), "before", sided("before")),
    };
    outline = new Outline($("outline"), on);
    timeline = new Timeline($("slider"), $("ticks"), $("step"), on);
    irloom.panes = panes;
    irloom.on = on;
  }

  /** Change the state and draw what follows. `anchor` stays where it is, `reveal` comes into view. */
  function update(change, { quiet = false, ...how } = {}) {
    const before = store.state;
    store.change(change, quiet);
    return draw(before, how);
  }

  const shape = ({ pass, split, toggled, unfolded }) => JSON.stringify([pass, split, [...toggled], [...unfolded]]);

  /** Draw what the change from the state `before` asks for, after what is being drawn now. */
  function draw(before, { anchor = null, reveal = null } = {}) {
    busy += 1;
    drawn = drawn
      .then(() => drawNow(before, anchor, reveal))
      .catch((error) => {
        problem = String(error.stack || error);
        say(`this view could not be drawn: ${error.message}`);
      })
      .finally(() => {
        busy -= 1;
      });
    return drawn;
  }

  async function drawNow(before, anchor, reveal) {
    const { state } = store;
    const whole = !before || shape(before) !== shape(state);
    document.documentElement.dataset.theme = store.theme;
    document.body.classList.toggle("split", store.isSplit);
    for (const side of store.sides) {
      const pane = panes[side];
      const look = { step: store.step, mode: state.color, workload: store.NAMES.indexOf(state.at), theme: store.theme };
      const how = { ...look, selected: store.selectedIn(side) };
      if (before && before.split !== state.split) pane.shown = null;
      if (whole || !pane.shown) {
        const scene = store.sceneOf(side);
        await pane.show(scene, { ...how, open: store.openIn(scene), unfolded: state.unfolded, anchor });
      } else if (Object.keys(look).some((key) => look[key] !== pane.how[key])) pane.recolour(how);
      else pane.highlight(how.selected);
      const wanted = reveal ? how.selected || reveal : whole ? null : how.selected;
      if (wanted && (reveal || !pane.isInView(wanted))) pane.reveal(nearest(pane, wanted));
    }
    panels();
  }

  /** The key itself, or that of the closest group around it that a pane shows. */
  function nearest(pane, key) {
    let item = store.scene.byKey.get(key);
    while (item && !pane.shown.boxes.has(item.key)) item = item.parent;
    return item && item.parent ? item.key : key;
  }

  function panels() {
    const { state, side, step, scene } = store;
    const pane = panes[side];
    const item = state.selected && scene.byKey.get(state.selected);
    const context = { scene, shown: pane.shown, side, pass: state.pass, step, on: irloom.on };
    const panel = !item ? irloom.programPanel : item.isGroup ? irloom.groupPanel : irloom.leafPanel;
    $("details").replaceChildren(...panel(context, item).filter(Boolean));
    outline.show(pane);
    timeline.show(state.pass);
    legend(pane);
    results(pane);
    for (const id of ["color", "at"]) $(id).value = state[id];
    $("split").setAttribute("aria-pressed", String(store.isSplit));
    $("split").disabled = state.pass === 0;
    $("theme").textContent = { auto: "Auto", light: "Light", dark: "Dark" }[state.theme];
    const name = step >= 0 ? data.steps[step].name : "";
    $("before-name").textContent = name && `before ${name}`;
    $("after-name").textContent = name ? `after ${name}` : data.steps.length ? "as traced" : "";
  }

  function legend(pane) {
    const { note, rows, ramp } = irloom.legend({ ...pane.how, shown: pane.shown });
    const sides = store.sides.map((side) => panes[side]).reverse();
    const counts = sides.map((each) => irloom.marks(each.shown, each.scene.root, store.step, each.side));
    const marks = Object.entries(Object.assign({}, ...counts));
    const row = ([{ fill, border }, words]) =>
      h("li", {}, h("span", { class: "swatch", style: `background:${fill};border-color:${border}` }), words);
    const mark = ([kind, n]) =>
      h("li", { class: kind }, h("span", { class: "swatch mark" }), `${irloom.SIGNS[kind]} ${n} ${kind}`);
    const parts = [
      note && h("p", {}, note),
      rows.length && h("ul", { class: ramp ? "ramp" : "" }, rows.map(row)),
      marks.length && h("ul", {}, marks.map(mark)),
    ];
    $("legend").replaceChildren(...parts.filter(Boolean));
  }

  function results(pane) {
    const { q, selected } = store.state;
    const wanted = q.trim() !== "";
    $("results").hidden = !wanted;
    $("outline").hidden = wanted;
    if ($("search").value !== q) $("search").value = q;
    const found = wanted ? irloom.search(pane.scene, q, (leaf) => pane.shown.representative(leaf)) : [];
    const all = found.reduce((n, result) => n + result.count, 0);
    const counted = `${all.toLocaleString("en")} nodes, ${found.length.toLocaleString("en")} places`;
    $("found").textContent = !wanted ? "" : all ? counted : "nothing found";
    const row = ({ leaf, count }) =>
      h(
        "button",
        {
          type: "button",
          class: "result",
          "data-key": leaf.key,
          "aria-current": leaf.key === selected ? "true" : null,
          onclick: () => irloom.on.jump(leaf.key, true),
        },
        h("b", {}, leaf.label),
        ` ${leaf.name}`,
        count > 1 && h("span", { class: "times" }, `×${count}`),
        h("span", { class: "path" }, irloom.text(leaf.row[5]) || leaf.fn),
      );
    $("results").replaceChildren(...found.slice(0, 300).map(row));
  }

  /** A sentence that goes away by itself. */
  function say(words) {
    $("said").textContent = words;
    clearTimeout(silence);
    silence = setTimeout(() => ($("said").textContent = ""), 5000);
  }

  /** Once nothing is being drawn any more. */
  async function idle() {
    while (busy) await Promise.all([drawn, new Promise((done) => setTimeout(done, 5))]);
  }

  Object.assign(irloom, { make, update, draw, say, idle, drawing: () => ({ ready: busy === 0, problem }) });
}
