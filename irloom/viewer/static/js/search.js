// Search in a scene: `op:linear attr:eps=1e-06 -pass:frontend norm`; every term must hold.
"use strict";
{
  const { ops, attrs, text, typeText } = irloom;
  const FIELDS = {
    op: (leaf) => [ops[leaf.row[1]].name],
    name: (leaf) => leaf.row[4].map((r) => text(r[0])),
    attr: (leaf) => attrs[leaf.row[3]].flatMap(([key, value, isDefault]) => (isDefault ? [] : [`${key}=${value}`])),
    type: (leaf) => [
      ...leaf.row[4].map((r) => typeText(r[1])),
      ...leaf.args.filter((a) => a.weight).map((a) => typeText(a.weight[1])),
    ],
    weight: (leaf) => leaf.args.filter((a) => a.weight).flatMap((a) => [a.name, text(a.weight[3])]),
    path: (leaf) => [text(leaf.row[5])],
    line: (leaf) => [text(leaf.row[6])],
    pass: (leaf) => [irloom.madeBy(leaf)],
    func: (leaf) => [leaf.fn],
  };
  const ANY = ["op", "name", "attr", "path", "weight", "line"];

  /** Terms of a query; quotes hold words together. */
  function terms(query) {
    return [...query.matchAll(/(-?)(?:(\w+):)?(?:"([^"]*)"?|(\S+))/g)].map(([, not, field, quoted, word]) => {
      const known = field && FIELDS[field.toLowerCase()];
      const wanted = (quoted ?? word).toLowerCase();
      return {
        not: Boolean(not),
        field: known ? field.toLowerCase() : null,
        wanted: known || !field ? wanted : `${field}:${wanted}`,
      };
    });
  }

  function holds(leaf, { not, field, wanted }) {
    const exact = field === "op" || field === "pass" || field === "func";
    const fields = field ? [field] : ANY;
    const found = fields.some((f) =>
      FIELDS[f](leaf).some((value) => {
        const low = value.toLowerCase();
        return exact
          ? low === wanted || (wanted.endsWith("*") && low.startsWith(wanted.slice(0, -1)))
          : low.includes(wanted);
      }),
    );
    return found !== not;
  }

  /** Leaves that match, each with how many alike ones in other layers match too. */
  function search(scene, query, representative) {
    const wanted = terms(query);
    if (!wanted.length) return [];
    const found = new Map();
    for (const leaf of scene.leaves) {
      if (!leaf.row || !wanted.every((term) => holds(leaf, term))) continue;
      const first = representative(leaf);
      if (!found.has(first)) found.set(first, { leaf, count: 0 });
      found.get(first).count += 1;
    }
    return [...found.values()];
  }

  Object.assign(irloom, { search, searchFields: Object.keys(FIELDS) });
}
