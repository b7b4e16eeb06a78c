const { models, families, columns } = data;
const byName = new Map(models.map((model) => [model.name, model]));
const state = { query: "", feed: "", families: new Set(), sort: "released", down: true, chosen: [] };

function swatch(family) {
  const square = make("span", { class: "swatch" });
  square.style.background = families[family];
  return square;
}

/** The layers of a model as a strip of colours, the lowest at the left. */
function strip(model) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const set = (element, values) => Object.entries(values).forEach(([k, v]) => element.setAttribute(k, v));
  set(svg, { class: "strip", viewBox: `0 0 ${model.strip.length} 10`, preserveAspectRatio: "none", role: "img" });
  const title = document.createElementNS(space, "title");
  title.textContent = model.mix;
  svg.append(title);
  model.strip.forEach((names, i) =>
    names.forEach((family, j) => {
      const rect = document.createElementNS(space, "rect");
      const height = 10 / names.length;
      set(rect, { x: i + 0.06, y: j * height, width: 0.88, height, fill: families[family] });
      svg.append(rect);
    }),
  );
  return svg;
}

function matches(model) {
  const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  return (
    words.every((word) => model.search.includes(word)) &&
    (!state.feed || (state.feed === "experts") === model.experts) &&
    [...state.families].every((family) => model.families.includes(family))
  );
}

function compare(a, b) {
  const [x, y] = [a.order[state.sort], b.order[state.sort]];
  const by = typeof x === "number" ? x - y : x.localeCompare(y);
  return (state.down ? -by : by) || a.title.localeCompare(b.title);
}

function row(model) {
  const box = make("input", {
    type: "checkbox",
    "aria-label": `Choose ${model.title}`,
    onchange: () => choose(model.name, box.checked),
  });
  box.checked = state.chosen.includes(model.name);
  const cells = columns.map(({ key, label }) => {
    if (key === "title") {
      const open = make("button", { type: "button", onclick: () => go(`model=${model.name}`) }, model.title);
      return make("td", { class: "name" }, open, make("small", {}, model.developer));
    }
    if (key === "mix") return make("td", { class: "mix" }, strip(model), model.mix);
    return make("td", { class: "number", "data-label": label }, model.cells[key]);
  });
  return make("tr", { "data-name": model.name }, make("td", { class: "pick" }, box), ...cells);
}

function render() {
  const shown = models.filter(matches).sort(compare);
  document.querySelector("#models tbody").replaceChildren(...shown.map(row));
  $("none").hidden = shown.length > 0;
  $("found").textContent = `${shown.length} of ${models.length} models`;
  for (const head of document.querySelectorAll("#models thead th[data-key]")) {
    if (head.dataset.key === state.sort) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  $("order").value = `${state.sort} ${state.down ? "down" : "up"}`;
  for (const chip of $("chips").children) {
    chip.setAttribute("aria-pressed", state.families.has(chip.dataset.family));
  }
  tray();
}

function sortBy(key) {
  const down = state.sort === key ? !state.down : typeof models[0].order[key] === "number" || key === "released";
  Object.assign(state, { sort: key, down });
  render();
}

function choose(name, on) {
  state.chosen = state.chosen.filter((other) => other !== name);
  if (on) state.chosen = [...state.chosen, name].slice(-2);
  render();
}

function tray() {
  $("tray").hidden = state.chosen.length === 0;
  $("chosen").textContent = state.chosen.map((name) => byName.get(name).title).join(" and ");
  $("compare").disabled = state.chosen.length < 2;
}

/** Shows what the address after # names; the browser's back button closes it again. */
function go(target) {
  location.hash = target;
}

/** Closes the sheet, and takes its name out of the address. */
function leave() {
  history.pushState(null, "", location.pathname + location.search);
  show();
}

function drawing(model) {
  const frame = make("div", { class: "scroll" });
  frame.innerHTML = model.diagram;
  return frame;
}

function link(address, text) {
  return make("a", { href: address, rel: "noreferrer" }, text);
}

/** The source of a model's facts, in which numbers of arXiv are links, and the page of its weights. */
function source(model) {
  const line = make("p", { class: "soft" });
  for (const part of model.source.split(/(arXiv \d{4}\.\d{5})/)) {
    const number = /^arXiv (\d{4}\.\d{5})$/.exec(part)?.[1];
    line.append(number ? link(`https://arxiv.org/abs/${number}`, part) : part);
  }
  line.append("; weights ", link(`https://huggingface.co/${model.upstream}`, model.upstream));
  return line;
}

function notes(model) {
  if (!model.notes.length) return "";
  return make("ul", { class: "notes soft" }, ...model.notes.map((note) => make("li", {}, note)));
}

function sheet(model) {
  const facts = model.fields.map(([label, text]) => make("tr", {}, make("td", {}, label), make("td", {}, text)));
  const kinds = model.kinds.map((kind) => make("li", {}, kind));
  const other = make(
    "select",
    { "aria-label": "Compare with", onchange: (event) => go(`compare=${model.name},${event.target.value}`) },
    make("option", { value: "" }, "Difference to …"),
    ...models.filter((m) => m !== model).map((m) => make("option", { value: m.name }, m.title)),
  );
  return [
    source(model),
    drawing(model),
    notes(model),
    make("h3", {}, "Layers"),
    make("ul", { class: "notes" }, ...kinds),
    make("h3", {}, "Figures"),
    make("table", { class: "facts one" }, make("tbody", {}, ...facts)),
    make("p", {}, other),
  ];
}

function ratio(a, b) {
  if (typeof a !== "number" || typeof b !== "number" || a === b || !a || !b) return "";
  return `× ${(b / a).toPrecision(3)}`;
}

function difference(a, b) {
  const right = new Map(b.fields.map(([label, ...rest]) => [label, rest]));
  const rows = a.fields.map(([label, text, number]) => {
    const [other, value] = right.get(label);
    return make(
      "tr",
      { class: text === other ? "same" : "differs" },
      make("td", {}, label),
      make("td", {}, text),
      make("td", {}, other),
      make("td", { class: "ratio" }, ratio(number, value)),
    );
  });
  const only = make("input", {
    type: "checkbox",
    id: "only",
    onchange: () => rows.forEach((r) => (r.hidden = only.checked && r.className === "same")),
  });
  const head = make("tr", {}, ...["", a.title, b.title, "second / first"].map((text) => make("th", {}, text)));
  return [
    make("label", { class: "only" }, only, "only what differs"),
    make(
      "div",
      { class: "scroll" },
      make("table", { class: "facts" }, make("thead", {}, head), make("tbody", {}, ...rows)),
    ),
    make("div", { class: "pair" }, drawing(a), drawing(b)),
  ];
}

function show() {
  const [what, value = ""] = decodeURIComponent(location.hash.slice(1)).split("=");
  const found = value.split(",").map((name) => byName.get(name)).filter(Boolean);
  const dialog = $("sheet");
  if ((what === "model" && found.length === 1) || (what === "compare" && found.length === 2)) {
    $("sheet-title").textContent = found.map((model) => model.title).join(" and ");
    $("body").replaceChildren(...(found.length === 1 ? sheet(...found) : difference(...found)));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  } else if (dialog.open) dialog.close();
}

function start() {
  const heads = columns.map(({ key, label, number }) =>
    make(
      "th",
      { class: number ? "number" : "", "data-key": key, scope: "col" },
      make("button", { type: "button", onclick: () => sortBy(key) }, label),
    ),
  );
  document.querySelector("#models thead tr").append(make("th", {}), ...heads);
  for (const { key, label } of columns) {
    for (const [way, arrow] of [["down", "↓"], ["up", "↑"]]) {
      $("order").append(make("option", { value: `${key} ${way}` }, `${label} ${arrow}`));
    }
  }
  $("order").addEventListener("change", (event) => {
    const [key, way] = event.target.value.split(" ");
    Object.assign(state, { sort: key, down: way === "down" });
    render();
  });
  for (const family of Object.keys(families)) {
    if (!models.some((model) => model.families.includes(family))) continue;
    const toggle = () => {
      if (!state.families.delete(family)) state.families.add(family);
      render();
    };
    const chip = { type: "button", "data-family": family, "aria-pressed": "false", onclick: toggle };
    $("chips").append(make("button", chip, swatch(family), family));
  }
  $("search").addEventListener("input", (event) => {
    state.query = event.target.value;
    render();
  });
  $("feed").addEventListener("change", (event) => {
    state.feed = event.target.value;
    render();
  });
  $("compare").addEventListener("click", () => go(`compare=${state.chosen.join(",")}`));
  $("clear").addEventListener("click", () => {
    state.chosen = [];
    render();
  });
  $("close").addEventListener("click", leave);
  $("sheet").addEventListener("cancel", (event) => {
    event.preventDefault();
    leave();
  });
  $("sheet").addEventListener("click", (event) => {
    if (event.target === $("sheet")) leave();
  });
  window.addEventListener("hashchange", show);
  window.addEventListener("popstate", show);
  render();
  show();
}

start();
