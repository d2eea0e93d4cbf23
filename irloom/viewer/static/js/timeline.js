// The passes as a row of steps with a slider over them; the height of a bar is how much a pass changed.
"use strict";
{
  const { data, h } = irloom;

  class Timeline {
    constructor(slider, ticks, label, on) {
      Object.assign(this, { slider, ticks, label });
      slider.max = data.steps.length;
      slider.disabled = data.steps.length === 0;
      slider.addEventListener("input", () => on.pass(Number(slider.value)));
      const most = Math.max(1, ...data.steps.map((s) => s.changes.length));
      const tick = (at, name, changes, near) =>
        h(
          "button",
          {
            type: "button",
            class: "tick",
            tabindex: "-1",
            title: `${name}: ${changes} changes${near ? `, ${near} near misses` : ""}`,
            onclick: () => on.pass(at),
          },
          h("span", {
            class: "bar",
            style: `height:${changes ? 4 + (20 * Math.log1p(changes)) / Math.log1p(most) : 2}px`,
          }),
          h("span", { class: "name" }, name),
        );
      ticks.replaceChildren(
        tick(0, data.steps.length ? "trace" : "program", 0, 0),
        ...data.steps.map((s, i) => tick(i + 1, s.name, s.changes.length, s.near.length)),
      );
    }

    show(pass) {
      this.slider.value = pass;
      const step = data.steps[pass - 1],
        count = data.states[pass].nodes;
      const words = step
        ? `after ${step.text}: ${step.changes.length} changes, ${step.near.length} near misses, ${count.toLocaleString("en")} nodes`
        : `${data.steps.length ? "as traced" : "the program"}: ${count.toLocaleString("en")} nodes`;
      this.label.textContent = words;
      this.slider.setAttribute("aria-valuetext", words);
      [...this.ticks.children].forEach((tick, i) => tick.classList.toggle("here", i === pass));
      const here = this.ticks.children[pass];
      this.ticks.scrollLeft = here.offsetLeft - this.ticks.clientWidth / 2;
    }
  }

  irloom.Timeline = Timeline;
}
