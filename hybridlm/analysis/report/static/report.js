/** Saves a text as a file of the reader's. */
function download(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = make("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

for (const button of document.querySelectorAll("button[data-csv]")) {
  const name = button.dataset.csv;
  const text = () => (Array.isArray(data.csv[name]) ? data.csv[data.csv[name][0]] : data.csv[name]);
  button.addEventListener("click", () => download(`${name}.csv`, text(), "text/csv"));
}

for (const button of document.querySelectorAll("button[data-svg]")) {
  const name = button.dataset.svg;
  button.addEventListener("click", () => {
    const svg = new XMLSerializer().serializeToString(document.querySelector(`[id="${name}"] svg`));
    download(`${name}.svg`, `<?xml version="1.0" encoding="UTF-8"?>\n${svg}`, "image/svg+xml");
  });
}

/** The headings of a table become buttons that sort its rows; numbers sort by value, empty cells last. */
function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  heads.forEach((head, column) => {
    const number = head.classList.contains("number");
    const button = make("button", { type: "button" }, head.textContent);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const first = number ? "descending" : "ascending";
      const other = number ? "ascending" : "descending";
      const way = head.ariaSort === first ? other : first;
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", way);
      const of = (row) => {
        const cell = row.cells[column];
        return number ? Number.parseFloat(cell.dataset.value ?? "") : cell.textContent;
      };
      const blank = (value) => (number ? Number.isNaN(value) : value === "");
      const sign = way === "ascending" ? 1 : -1;
      const sorted = [...rows].sort((a, b) => {
        const [x, y] = [of(a), of(b)];
        if (blank(x) || blank(y)) return blank(x) - blank(y);
        return sign * (number ? x - y : x.localeCompare(y, undefined, { numeric: true }));
      });
      table.tBodies[0].append(...sorted);
    });
  });
}

document.querySelectorAll("table.sortable").forEach(sortable);

/** The float32 weights of a map, [head][query][key] in one array. */
function weights(map) {
  if (!map.values) {
    const bytes = Uint8Array.from(atob(map.data), (c) => c.charCodeAt(0));
    map.values = new Float32Array(bytes.buffer);
  }
  return map.values;
}

/** A float32 number in full: nine digits are what tells any two of them apart. */
const full = (value) => String(Number(value.toPrecision(9)));

/** Attention over a text: a query's weights as the colour of its keys, exact values, and the whole matrix. */
function attention(frame) {
  const view = data.views[Number(frame.dataset.view)];
  const size = view.tokens.length;
  const state = { map: 0, head: 0, query: size - 1, pinned: false };
  const visible = (token) => token.replace(/\n/g, "⏎").replace(/ /g, "·") || "∅";
  const layer = make("select", { "aria-label": "Layer" }, ...view.maps.map((m, i) => make("option", { value: i }, m.label)));
  const head = make("select", { "aria-label": "Head" });
  const text = make("div", { class: "text" });
  const exact = make("div", { class: "exact", "aria-live": "polite" });
  const canvas = make("canvas", { width: size, height: size, "aria-label": "All queries and keys" });
  const under = make("p", { class: "note" }, "Rows are queries, columns keys.");
  const spans = view.tokens.map((token, i) => {
    const shown = token === "\n" ? "⏎\n" : token || "∅";
    const span = make("span", { tabindex: 0, "data-token": i }, shown);
    span.addEventListener("pointerenter", () => state.pinned || look(i));
    span.addEventListener("focus", () => look(i));
    span.addEventListener("click", () => {
      state.pinned = !(state.pinned && state.query === i);
      look(i);
    });
    return span;
  });
  text.append(...spans);

  /** Weight of a key for a query, of the chosen head or the mean over heads. */
  function weight(query, key) {
    const map = view.maps[state.map];
    const values = weights(map);
    if (state.head >= 0) return values[(state.head * size + query) * size + key];
    let sum = 0;
    for (let h = 0; h < map.heads; h++) sum += values[(h * size + query) * size + key];
    return sum / map.heads;
  }

  /** Blue for positive weights, orange for negative ones. */
  function colour(value, largest) {
    const part = largest ? Math.min(1, Math.abs(value) / largest) : 0;
    return `rgb(${value < 0 ? "213 94 0" : "0 114 178"} / ${(0.8 * Math.sqrt(part)).toFixed(3)})`;
  }

  function look(query) {
    state.query = query;
    const row = view.tokens.map((_, key) => weight(query, key));
    const largest = Math.max(...row.map(Math.abs));
    spans.forEach((span, key) => {
      span.style.background = row[key] ? colour(row[key], largest) : "";
      span.classList.toggle("query", key === query);
      span.classList.toggle("later", key > query);
    });
    const order = row.map((_, key) => key).filter((key) => row[key] !== 0);
    order.sort((a, b) => Math.abs(row[b]) - Math.abs(row[a]));
    const lines = order.slice(0, 12).map((key) =>
      make("tr", { "data-key": key }, make("td", {}, `${key} ${visible(view.tokens[key])}`),
        make("td", { class: "number" }, full(row[key]))),
    );
    const sum = row.reduce((a, b) => a + b, 0);
    const what = `query ${query} ${visible(view.tokens[query])}${state.pinned ? " (held)" : ""}, sum ${sum.toPrecision(6)}`;
    exact.replaceChildren(make("b", {}, what), make("table", {}, make("tbody", {}, ...lines)));
  }

  function paint() {
    const context = canvas.getContext("2d");
    const image = context.createImageData(size, size);
    let largest = 0;
    for (let q = 0; q < size; q++) for (let k = 0; k < size; k++) largest = Math.max(largest, Math.abs(weight(q, k)));
    for (let q = 0; q < size; q++) {
      for (let k = 0; k < size; k++) {
        const value = weight(q, k);
        const rgb = value < 0 ? [213, 94, 0] : [0, 114, 178];
        image.data.set([...rgb, 255 * (largest ? Math.sqrt(Math.abs(value) / largest) : 0)], 4 * (q * size + k));
      }
    }
    context.putImageData(image, 0, 0);
  }

  function chosen() {
    const map = view.maps[state.map];
    const heads = [...Array(map.heads).keys()];
    if (state.head >= map.heads) state.head = 0;
    head.replaceChildren(
      ...heads.map((h) => make("option", { value: h }, `head ${h}`)),
      make("option", { value: -1 }, "mean over heads"),
    );
    head.value = state.head;
    paint();
    look(state.query);
  }

  layer.addEventListener("change", () => {
    state.map = Number(layer.value);
    chosen();
  });
  head.addEventListener("change", () => {
    state.head = Number(head.value);
    chosen();
  });
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const at = (offset, length) => Math.max(0, Math.min(size - 1, Math.floor((offset / length) * size)));
    const [key, query] = [at(event.clientX - box.left, box.width), at(event.clientY - box.top, box.height)];
    const names = `query ${query} ${visible(view.tokens[query])}, key ${key} ${visible(view.tokens[key])}`;
    under.textContent = `${names}: ${full(weight(query, key))}`;
    if (!state.pinned) look(query);
  });
  frame.append(
    make("div", { class: "choices" }, make("label", {}, "layer ", layer), make("label", {}, head),
      make("span", { class: "note" }, "Point at a token, or press it to hold it.")),
    make("div", { class: "over" }, make("div", {}, text, canvas, under), exact),
  );
  chosen();
}

document.querySelectorAll(".attention[data-view]").forEach(attention);
