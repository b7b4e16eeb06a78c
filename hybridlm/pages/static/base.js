"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

/** An element with attributes, a class or handlers among `set`, and children. */
function make(tag, set = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(set)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** The button that chooses between the system's scheme, light and dark. */
function schemes() {
  const order = ["system", "light", "dark"];
  const button = $("scheme");
  button?.addEventListener("click", () => {
    const next = order[(order.indexOf(document.documentElement.dataset.scheme ?? "system") + 1) % order.length];
    if (next === "system") delete document.documentElement.dataset.scheme;
    else document.documentElement.dataset.scheme = next;
    button.textContent = `Scheme: ${next}`;
  });
}

schemes();

