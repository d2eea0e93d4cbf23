// The keyboard. `?` shows this list.
"use strict";
{
  const { actions, h } = irloom;
  const KEYS = [
    [
      "Move",
      [
        [
          "↑ ↓",
          "to what the selection reads, to what reads it",
          { ArrowUp: () => actions.walk("up"), ArrowDown: () => actions.walk("down") },
        ],
        [
          "← →",
          "to the box beside it",
          { ArrowLeft: () => actions.walk("left"), ArrowRight: () => actions.walk("right") },
        ],
        ["i", "into an open group", { i: () => actions.walk("in") }],
        ["Enter", "open or close the selected group", { Enter: () => actions.toggle() }],
        ["e", "open or close everything below it", { e: () => actions.toggleBelow() }],
        ["Esc", "clear the search, then the selection", { Escape: () => actions.clear() }],
        ["/", "search", { "/": () => actions.search() }],
      ],
    ],
    [
      "Passes",
      [
        ["[ ]", "the pass before, the next pass", { "[": () => actions.pass(-1), "]": () => actions.pass(1) }],
        [
          "n p",
          "the next, the previous change of this pass",
          { n: () => actions.nextChange(1), p: () => actions.nextChange(-1) },
        ],
        ["s", "before and after side by side", { s: () => actions.split() }],
      ],
    ],
    [
      "Look",
      [
        ["c", "the next colour scheme", { c: () => actions.color(1), C: () => actions.color(-1) }],
        ["t", "light or dark", { t: () => actions.theme() }],
        ["+ −", "zoom", { "+": () => actions.zoom(1.25), "=": () => actions.zoom(1.25), "-": () => actions.zoom(0.8) }],
        ["f", "fit the whole graph", { f: () => actions.fit() }],
        ["x", "save as SVG", { x: () => actions.save() }],
        ["?", "this list", { "?": () => actions.help() }],
      ],
    ],
  ];
  const bound = new Map(KEYS.flatMap(([, rows]) => rows.flatMap(([, , keys]) => Object.entries(keys))));

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const typing = event.target.closest("input[type=search], select, textarea");
    if (typing && event.key !== "Escape") return;
    const onButton =
      event.target.closest("button, summary, input") && (event.key === "Enter" || event.key.startsWith("Arrow"));
    const act = bound.get(event.key);
    if (!act || onButton) return;
    event.preventDefault();
    if (typing) typing.blur();
    act();
  });

  document.getElementById("keys").replaceChildren(
    ...KEYS.map(([name, rows]) =>
      h(
        "section",
        {},
        h("h3", {}, name),
        h(
          "dl",
          {},
          rows.map(([keys, words]) => [
            h(
              "dt",
              {},
              keys.split(" ").map((key) => h("kbd", {}, key)),
            ),
            h("dd", {}, words),
          ]),
        ),
      ),
    ),
  );
  document.getElementById("fields").textContent = irloom.searchFields.map((f) => `${f}:`).join(" ");
}
