"use strict";
// What is chosen decides which templates fill the page; the browser keeps nothing, and asks nobody.
const pictures = JSON.parse(document.getElementById("pictures").textContent);
const templates = [...document.querySelectorAll("template[data-slot]")];
const chosen = { model: 0, layer: 0, variant: 0, photo: 0 };

function fill(slot) {
  const opened = new Set([...slot.querySelectorAll("details[open]")].map((part) => part.dataset.metric));
  const fits = (template) => Object.entries(template.dataset).every(
    ([key, value]) => key === "slot" || chosen[key] === Number(value));
  const found = templates.find((template) => template.dataset.slot === slot.dataset.slot && fits(template));
  slot.replaceChildren(...(found ? [found.content.cloneNode(true)] : []));
  for (const part of slot.querySelectorAll("details[data-metric]")) part.open = opened.has(part.dataset.metric);
  for (const image of slot.querySelectorAll("img[data-map]")) {
    image.src = pictures.uris[image.dataset.map];
    image.classList.toggle("squares", pictures.small[image.dataset.map]);
  }
  const section = slot.closest("section[data-needs]");
  if (section) section.hidden = slot.childElementCount === 0;
}

function show(...changed) {
  for (const slot of document.querySelectorAll("div[data-slot]")) {
    const depends = templates.find((template) => template.dataset.slot === slot.dataset.slot);
    if (!changed.length || (depends && changed.some((key) => key in depends.dataset))) fill(slot);
  }
}

// Rows without a value come last in either direction; equal ones keep their order.
function sort(button) {
  const head = button.closest("th"), table = button.closest("table"), column = head.cellIndex;
  const first = button.dataset.descending === "true" ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  for (const cell of head.parentElement.cells) cell.setAttribute("aria-sort", cell === head ? order : "none");
  const sign = order === "ascending" ? 1 : -1;
  const key = (row) => column ? parseFloat(row.cells[column].dataset.by) : row.cells[0].textContent;
  const compare = (a, b) => {
    if (!column) return sign * a.localeCompare(b);
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return sign * (a - b);
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
}

document.addEventListener("click", (event) => {
  const button = event.target.closest(".sortable thead button");
  if (button) sort(button);
});
document.addEventListener("change", (event) => {
  const field = event.target;
  const key = field.classList.contains("layer") ? "layer" : field.name || field.id;
  if (!(key in chosen)) return;
  chosen[key] = Number(field.value);
  if (key === "model") {
    for (const label of document.querySelectorAll("[data-layers-of]")) {
      label.hidden = Number(label.dataset.layersOf) !== chosen.model;
      if (!label.hidden) chosen.layer = Number(label.querySelector("select").value);
    }
    show("model", "layer");
  } else show(key);
});
// A browser may keep earlier choices when a page is opened again.
for (const field of document.querySelectorAll("select, input")) {
  if (field.type === "radio") field.checked = field.defaultChecked;
  else field.selectedIndex = 0;
}
show();
