// The state of the page in its address: what is after `#` reopens the same view.
"use strict";
{
  const list = (text) => (text ? text.split(",").map(decodeURIComponent) : []);
  const joined = (keys) => [...keys].map((key) => encodeURIComponent(key)).join(",");

  /** The fragment for a state; what is as it was at first is left out. */
  function write(state, first) {
    const rows = [["pass", String(state.pass), String(first.pass)]];
    for (const key of ["color", "at", "theme", "q"]) rows.push([key, state[key], first[key]]);
    rows.push(["split", state.split ? "1" : "", ""], ["side", state.side, "after"], ["sel", state.selected || "", ""]);
    const shown = rows
      .filter(([, value, was]) => value !== was)
      .map(([key, value]) => `${key}=${encodeURIComponent(value)}`);
    const toggled = [...state.toggled];
    const lists = [
      ["open", toggled.filter(([, open]) => open).map(([key]) => key)],
      ["shut", toggled.filter(([, open]) => !open).map(([key]) => key)],
      ["unfold", [...state.unfolded]],
    ];
    for (const [key, keys] of lists) if (keys.length) shown.push(`${key}=${joined(keys)}`);
    return shown.length ? `#${shown.join("&")}` : "";
  }

  /** The state that a fragment stands for; what it does not name is as in `first`. Nonsense is left out. */
  function read(fragment, first, { passes, colors, workloads }) {
    const given = new Map(
      fragment
        .replace(/^#/, "")
        .split("&")
        .filter(Boolean)
        .map((part) => {
          const cut = part.indexOf("=");
          return [part.slice(0, cut), part.slice(cut + 1)];
        }),
    );
    const word = (key, among, otherwise) => {
      const value = plain(given.get(key));
      return among.includes(value) ? value : otherwise;
    };
    const pass = Number.parseInt(given.get("pass") ?? first.pass, 10);
    return {
      ...first,
      pass: pass >= 0 && pass <= passes ? pass : first.pass,
      color: word("color", colors, first.color),
      at: word("at", workloads, first.at),
      theme: word("theme", ["auto", "light", "dark"], first.theme),
      side: word("side", ["before", "after"], "after"),
      split: given.get("split") === "1",
      q: plain(given.get("q")) || "",
      selected: plain(given.get("sel")) || null,
      toggled: new Map([
        ...safeList(given.get("open")).map((k) => [k, true]),
        ...safeList(given.get("shut")).map((k) => [k, false]),
      ]),
      unfolded: new Set(safeList(given.get("unfold"))),
    };
  }

  function plain(text) {
    try {
      return decodeURIComponent(text || "");
    } catch {
      return "";
    }
  }

  function safeList(text) {
    try {
      return list(text);
    } catch {
      return [];
    }
  }

  Object.assign(irloom, { address: { write, read } });
}
