// Colours: of kinds of op, of passes, and a scale for shares and errors; in light and in dark.
"use strict";
{
  const { data, percent, amount } = irloom;
  const KINDS = [
    ["matmul", "products", 214, ["matmul", "experts"]],
    ["attention", "attention, state", 268, ["attention", "heads", "scores", "recurrent", "sparse", "pooling"]],
    ["norm", "norms", 158, ["norm"]],
    ["fused", "fused", 190, ["fused"]],
    ["activation", "activations", 28, ["activation"]],
    ["index", "look-ups", 330, ["index", "router"]],
    ["collective", "between ranks", 0, ["collective"]],
    ["elementwise", "elementwise", 46, ["elementwise", "reduce"]],
    ["shape", "moves", null, ["shape", "partial"]],
    ["other", "other ops", 300, []],
  ];
  const kindOf = new Map(KINDS.flatMap((kind) => kind[3].map((room) => [room, kind])));
  const SHARES = [1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3];
  const ERRORS = [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2];
  const RAMP = {
    light: ["#f5f6f8", "#fdf1de", "#fcdfb9", "#fbc583", "#f6a04f", "#e4742c", "#bf4a14", "#8a2c0b"],
    dark: ["#23272e", "#352c22", "#4f3a22", "#714b20", "#97601f", "#c47a1c", "#eb9a32", "#ffc978"],
  };
  const PLAIN = {
    light: { fill: "#ffffff", border: "#b9c0ca", ink: "#171a1f" },
    dark: { fill: "#22262d", border: "#4b525d", ink: "#eef0f3" },
  };

  function hue(h, theme) {
    if (h === null) return theme === "dark" ? { ...PLAIN.dark, fill: "#262a31" } : { ...PLAIN.light, fill: "#f3f4f6" };
    return theme === "dark"
      ? { fill: `hsl(${h}, 24%, 20%)`, border: `hsl(${h}, 38%, 46%)`, ink: "#eef0f3" }
      : { fill: `hsl(${h}, 74%, 95%)`, border: `hsl(${h}, 46%, 58%)`, ink: "#171a1f" };
  }

  function ramp(value, steps, theme) {
    const at = steps.filter((limit) => value >= limit).length,
      fill = RAMP[theme][at];
    const deep = theme === "light" ? at >= 6 : at >= 5;
    const ink = deep ? (theme === "light" ? "#ffffff" : "#14161a") : PLAIN[theme].ink;
    const border = RAMP[theme][Math.min(at + 2, 7)];
    return { fill, border: at === 0 ? PLAIN[theme].border : border, ink };
  }

  const kindOfLeaf = (leaf) => kindOf.get(irloom.ops[leaf.row[1]].room) || KINDS[KINDS.length - 1];

  /** Hues of passes, far apart for neighbours. */
  const passHue = (name) => {
    const at = ["frontend", ...new Set(data.steps.map((s) => s.name))].indexOf(name);
    return at <= 0 ? null : (at * 137) % 360;
  };

  /** How an item looks: fill, border, ink, and what its badge says. */
  function look(item, { shown, step, mode, workload, theme }) {
    const plain = { ...PLAIN[theme], badge: "" };
    if (mode === "kind") return item.row ? { ...hue(kindOfLeaf(item)[2], theme), badge: "" } : plain;
    if (mode === "pass") return item.row ? { ...hue(passHue(irloom.madeBy(item)), theme), badge: "" } : plain;
    if (item.kind === "input" || item.kind === "output") return plain;
    if (mode === "error") {
      const worst = irloom.error(item, step);
      return worst === null ? plain : { ...ramp(worst, ERRORS, theme), badge: amount(worst, "error") };
    }
    const part = irloom.share(shown, item, mode, workload);
    return { ...ramp(part, SHARES, theme), badge: part > 0 ? percent(part) : "" };
  }

  /** Rows of the legend: a colour and what it stands for; and a sentence. */
  function legend({ shown, step, mode, workload, theme }) {
    if (mode === "kind") {
      const used = new Set(shown.scene.leaves.filter((l) => l.row).map(kindOfLeaf));
      return { note: "", rows: KINDS.filter((k) => used.has(k)).map((k) => [hue(k[2], theme), k[1]]) };
    }
    if (mode === "pass") {
      const used = [...new Set(shown.scene.leaves.filter((l) => l.row).map(irloom.madeBy))];
      return {
        note: "the pass that made a node",
        rows: used.map((name) => [hue(passHue(name), theme), name]),
      };
    }
    if (mode === "error") {
      const known = step >= 0 && data.steps[step].errors;
      const note = known ? "relative error after this pass" : "no errors: this page was made without --verify";
      return { note, ramp: true, rows: known ? scale(ERRORS, theme, (x) => amount(x, "error")) : [] };
    }
    if (mode === "time" && !data.device) return { note: "no times: this page was made without --device", rows: [] };
    const all = irloom.sum(shown, shown.scene.root, workload)[mode];
    const { name } = data.workloads[workload];
    const on = mode === "time" ? `, predicted on ${data.device.name}` : "";
    return {
      ramp: true,
      note: `share of the ${amount(all, mode)} of a ${name}${on}`,
      rows: scale(SHARES, theme, percent),
    };
  }

  function scale(steps, theme, show) {
    return [0, ...steps].map((limit, i) => [ramp(limit, steps, theme), i === 0 ? "less" : show(limit)]);
  }

  Object.assign(irloom, { look, legend });
}
