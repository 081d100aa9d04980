// One page for a run, for a model, and for a file that keeps all answers: they differ in who answers.
const live = page.mode === "live", seen = new Map(), uploads = new Map();
const state = { model: 0, variant: 0, image: page.images.length ? 0 : null, maps: null, photo: null, pinned: null,
  scores: null, values: null, cursor: null, dabs: [], wait: null, asked: 0 };

// Asking. What was answered once is not asked again, so that going back costs nothing.
async function ask(what, asked, signal) {
  const key = [what, ...Object.values(asked)].join("/");
  if (page.kept) return page.kept[key];
  if (!seen.has(key)) {
    if (seen.size > 200) seen.delete(seen.keys().next().value);
    seen.set(key, request(what, asked, signal).catch((error) => { seen.delete(key); throw error; }));
  }
  return seen.get(key);
}
function failed(error) {
  if (error.name === "AbortError") say("Stopped.");
  else say(error instanceof TypeError ? "No answer: does the command still run?" : error.message, true);
}

// Choices.
const name = (image) => typeof image === "string" ? uploads.get(image) : page.images[image];
const method = () => live ? $("text").value.trim() : Number($("method").value);
const methodName = () => live ? method() : page.methods[method()];
const layer = () => state.maps ? state.maps.layers[$("layer").value] : null;
function options(select, texts, chosen = 0) {
  select.replaceChildren(...texts.map((text, place) => new Option(text, place, false, place === chosen)));
}
function place() {
  const of = { variant: state.variant, method: method(), image: state.image };
  return live ? { ...of, target: $("target").value.trim() || "auto" } : { model: state.model, ...of };
}

// Showing: the photo, the maps of all layers, then what belongs to them.
async function show() {
  const mine = ++state.asked;
  state.wait?.abort();
  state.wait = new AbortController();
  if (state.image === null) return;
  const of = live ? { image: state.image } : { model: state.model, image: state.image };
  $("stop").hidden = !live;
  say("");
  try {
    const photo = await ask("photo", of, state.wait.signal);
    if (mine !== state.asked) return;
    if (state.photo?.uri !== photo.uri) { state.dabs = []; state.photo = { ...(await drawable(photo.uri)), uri: photo.uri }; }
    if (live && !state.dabs.length) state.scores = photo.scores;
    draw();
    const maps = await ask("maps", place(), state.wait.signal);
    if (mine !== state.asked) return;
    take(maps);
    tell();
    if (!maps.layers.length) say("No map was kept of this choice.", true);
    draw();
    if (!live) await showValues(mine);
  } catch (error) { if (mine === state.asked) failed(error); }
  finally { if (mine === state.asked) $("stop").hidden = true; }
}
// What was amiss: in the whole answer, at layers without a map, and at the layer that is shown.
function tell() {
  const { made, layers, notes = [] } = state.maps;
  const here = notes.filter((one) => one.layer === layer() || !layers.includes(one.layer));
  say([made, ...here.map((one) => one.text)].filter(Boolean).slice(0, 5).join(". "));
}
async function showValues(mine) {
  const { model, variant } = state;
  const values = await ask("values", { model, variant, method: method() });
  if (mine !== state.asked) return;
  state.values = values;
  draw();
}
function take(maps) {
  const before = layer(), range = $("layer");
  state.maps = maps;
  state.shown = { method: methodName(), variant: page.variants[state.variant] };
  range.max = Math.max(0, maps.layers.length - 1);
  range.disabled = maps.layers.length < 2;
  range.value = before === null ? 0 : Math.max(0, maps.layers.indexOf(before));
}
async function drawable(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  const gray = document.createElement("canvas");
  gray.width = image.naturalWidth; gray.height = image.naturalHeight;
  const pen = gray.getContext("2d", { willReadFrequently: true });
  pen.drawImage(image, 0, 0);
  const pixels = pen.getImageData(0, 0, gray.width, gray.height), mean = [0, 0, 0];
  for (let at = 0; at < pixels.data.length; at += 4) {
    for (const part of [0, 1, 2]) mean[part] += pixels.data[at + part] * 4 / pixels.data.length;
    pixels.data.fill(0.299 * pixels.data[at] + 0.587 * pixels.data[at + 1] + 0.114 * pixels.data[at + 2], at, at + 3);
  }
  pen.putImageData(pixels, 0, 0);
  return { image, gray, mean: `rgb(${mean.map(Math.round)})` };
}

function limitOf(map, maps) {
  const how = $("scale").value;
  if (how === "pinned" && state.pinned) { numbers(state.pinned.map); return state.pinned.map.limit; }
  if (how === "layers") return Math.max(...Object.values(maps.maps).map((one) => (numbers(one), one.limit)));
  numbers(map);
  return map.own;
}
function painted(map, maps, signed) {
  return tinted(map, limitOf(map, maps), signed, $("share").value / 100);
}
const surface = (canvas, photo) => {
  const times = Math.max(1, Math.round(448 / Math.max(photo.gray.width, photo.gray.height)));
  canvas.width = photo.gray.width * times; canvas.height = photo.gray.height * times;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  return pen;
};
function drawPane(id, map, maps, photo) {
  const canvas = $(id), pen = surface(canvas, photo);
  pen.drawImage(photo.gray, 0, 0, canvas.width, canvas.height);
  if (map) pen.drawImage(painted(map, maps, maps.signed), 0, 0, canvas.width, canvas.height);
  pointer(canvas, pen);
  $(id + "-value").textContent = map && state.cursor ? valueAt(map) : " ";
}
function valueAt(map) {
  const x = Math.min(map.w - 1, Math.floor(state.cursor.x * map.w)), y = Math.min(map.h - 1, Math.floor(state.cursor.y * map.h));
  const value = numbers(map)[y * map.w + x], of = Math.round(100 * Math.abs(value) / map.peak);
  return `${Number(value.toPrecision(3))} at ${x}, ${y} of ${map.w} × ${map.h}: ${of} % of the strongest`;
}
function pointer(canvas, pen) {
  if (!state.cursor) return;
  const x = state.cursor.x * canvas.width, y = state.cursor.y * canvas.height;
  for (const [color, width] of [["#fff", 4], ["#000", 1.5]]) {
    pen.strokeStyle = color; pen.lineWidth = width;
    pen.beginPath(); pen.arc(x, y, 7, 0, 7); pen.stroke();
  }
}
let due = false;
function draw() {
  if (!due) requestAnimationFrame(() => { due = false; drawNow(); });
  due = true;
}
function drawNow() {
  const at = layer(), map = at === null ? null : state.maps.maps[at] ?? null;
  $("layer-name").textContent = at ?? " ";
  $("layer").setAttribute("aria-valuetext", at ?? "no layer");
  const share = Number($("share").value);
  $("share-told").textContent = share === 100 ? "the map alone" : share === 0 ? "the photo alone" : `${share} %`;
  if (state.photo) {
    const canvas = $("photo"), pen = surface(canvas, state.photo);
    pen.drawImage(state.photo.image, 0, 0, canvas.width, canvas.height);
    pen.fillStyle = state.photo.mean;
    for (const [x, y] of state.dabs) {
      pen.beginPath(); pen.arc(x * canvas.width, y * canvas.height, radius() * canvas.width, 0, 7); pen.fill();
    }
    pointer(canvas, pen);
    drawPane("map", map, state.maps, state.photo);
    $("map-title").textContent = map ? `${state.shown.method} at ${at}, ${state.shown.variant}` : "Map";
  }
  if (state.pinned) drawPane("other", state.pinned.map, state.pinned.maps, state.pinned.photo);
  drawKey();
  $("under").textContent = state.maps?.under ?? "";
  drawNumbers(at);
}
const explained = () => (live ? state.maps?.explained : state.values?.explained[state.image]) || "the class";
function drawKey() {
  const maps = state.maps, bar = page.colors[maps?.signed ? "signed" : "unsigned"];
  const texts = !maps ? ["", "", ""] : maps.signed ? [`against ${explained()}`, "0", `for ${explained()}`] : ["none", "", "strongest"];
  $("key").querySelectorAll("span").forEach((one, place) => { one.textContent = texts[place]; });
  const pen = $("bar").getContext("2d"), row = new ImageData(257, 1);
  for (let at = 0; at < 257; at++) row.data.set([...bar[Math.round(at / 256 * (bar.length - 1))], 255], 4 * at);
  pen.putImageData(row, 0, 0);
}
function drawNumbers(at) {
  const rows = live ? scoreRows() : metricRows(at), box = $("numbers");
  const table = document.createElement("table");
  for (const [title, texts, bar] of rows) {
    const row = table.insertRow(), head = document.createElement("th");
    head.scope = "row"; head.textContent = title; row.append(head);
    if (bar !== undefined) {
      const cell = row.insertCell(); cell.className = "drawn";
      cell.append(document.createElement("i")); cell.firstChild.style.width = `${100 * bar}%`;
    }
    for (const text of texts) row.insertCell().textContent = text;
  }
  box.replaceChildren(...(rows.length ? [table] : []));
}
const told = (one, value) => !one.share ? value.toPrecision(4) : value < 0.0005 ? "< 0.1 %" : `${Math.min(100 * value, 99.9).toFixed(1)} %`;
function scoreRows() {
  return (state.scores ?? []).map((one) => [one.name,
    state.dabs.length ? [told(one, one.before), "→ " + told(one, one.after)] : [told(one, one.before)],
    one.share ? (state.dabs.length ? one.after : one.before) : 0]);
}
function metricRows(at) {
  const found = state.values?.layers[at] ?? {};
  return Object.entries(found).filter(([text]) => page.metrics[text]).map(([text, values]) => [
    text.replaceAll("_", " "), [values[state.image] === null ? "undefined" : String(Number(values[state.image].toPrecision(4))), page.metrics[text].direction]]);
}

// Order of a run's images.
async function order() {
  const [kind, metric] = $("order").value.split("\n"), at = layer();
  let values = null, sign = 1;
  try {
    if (kind === "disagreement") values = (await ask("disagreement", { model: state.model, variant: state.variant }))[at];
    if (kind === "best" || kind === "worst") {
      values = (await ask("values", { model: state.model, variant: state.variant, method: method() })).layers[at]?.[metric];
      sign = (kind === "best") === page.metrics[metric].higher ? 1 : -1;
    } else sign = 1;
    say("");
  } catch (error) { failed(error); }
  const places = page.images.map((_, place) => place);
  if (values) places.sort((a, b) => (values[a] === null) - (values[b] === null) || sign * (values[b] - values[a]) || a - b);
  $("image").replaceChildren(...places.map((place) => new Option(
    page.images[place] + (values ? ` (${values[place] === null ? "undefined" : Number(values[place].toPrecision(3))})` : ""), place)));
  state.image = places[0];
  $("image").value = state.image;
  return show();
}

// Covering a part.
const radius = () => Number($("radius").value) / 100;
let scoring = null;
function dab(x, y) { state.dabs.push([Number(x.toFixed(3)), Number(y.toFixed(3))]); $("clear").hidden = false; draw(); }
function score() {
  clearTimeout(scoring);
  scoring = setTimeout(async () => {
    try {
      state.scores = await request("scores", { image: state.image, dabs: state.dabs, radius: radius() });
      draw();
    } catch (error) { failed(error); }
  }, 150);
}
const covering = () => $("brush").getAttribute("aria-pressed") === "true";

// Photos of one's own.
async function add(file) {
  try {
    if (file.size > page.most) throw new Error(`${file.name} has ${file.size} bytes, and ${page.most} are allowed`);
    say(`sending ${file.name} …`);
    const content = await new Promise((done, fail) => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result.split(",")[1] ?? "");
      reader.onerror = () => fail(new Error(`${file.name} cannot be read`));
      reader.readAsDataURL(file);
    });
    const { image } = await request("upload", { name: file.name, content });
    if (!uploads.has(image)) $("image").append(new Option(file.name, image));
    uploads.set(image, file.name);
    choose(image);
  } catch (error) { failed(error); }
}
function choose(image) {
  state.image = image;
  $("image").value = image;
  document.querySelectorAll(".photos").forEach((part) => { part.hidden = false; });
  return show();
}
function step(by) {
  const select = $("image"), at = select.selectedIndex + by;
  if (at < 0 || at >= select.length) return;
  select.selectedIndex = at;
  const value = select.value;
  choose(uploads.has(value) ? value : Number(value));
}

// What is clicked, typed and moved.
function fill() {
  document.body.dataset.mode = page.mode;
  options($("image"), page.images);
  options($("model"), page.models);
  $("model-label").hidden = page.models.length < 2;
  document.querySelectorAll(".photos").forEach((part) => { part.hidden = !page.images.length; });
  page.variants.forEach((text, place) => {
    const label = document.createElement("label"), radio = document.createElement("input");
    Object.assign(radio, { type: "radio", name: "variant", value: place, checked: place === 0 });
    label.append(radio, text);
    $("variants").append(label);
  });
  $("variants").hidden = page.variants.length < 2;
  if (live) {
    for (const [id, texts] of [["methods", page.methods], ["classes", page.classes]]) {
      $(id).replaceChildren(...texts.map((text) => Object.assign(document.createElement("option"), { value: text })));
    }
    $("text").value = page.methods.includes("gradient") ? "gradient" : page.methods[0];
    explain();
    return;
  }
  options($("method"), page.methods, page.first);
  const orders = [["as in the run", "run"], ["where methods disagree most", "disagreement"]];
  for (const text of Object.keys(page.metrics)) orders.push([`${text}, best first`, `best\n${text}`], [`${text}, worst first`, `worst\n${text}`]);
  $("order").replaceChildren(...orders.map(([text, value]) => new Option(text, value)));
  $("card").hidden = false;
}
function explain() { $("meaning").textContent = page.meanings[method()] ?? ""; }
function pin() {
  const on = !state.pinned && layer() !== null;
  state.pinned = on ? { map: state.maps.maps[layer()], maps: state.maps, photo: state.photo } : null;
  $("pinned-title").textContent = on ? `Pinned: ${$("map-title").textContent}, ${name(state.image)}, ${explained()}` : "";
  $("pinned").hidden = !on;
  $("pin").setAttribute("aria-pressed", on);
  $("pin").textContent = on ? "Unpin" : "Pin this map beside";
  draw();
}
document.addEventListener("change", ({ target }) => {
  if (target.id === "file" && target.files.length) add(target.files[0]);
  else if (target.id === "image") choose(uploads.has(target.value) ? target.value : Number(target.value));
  else if (target.id === "order") order();
  else if (target.id === "model") { state.model = Number(target.value); loadCard(); show(); }
  else if (target.name === "variant") { state.variant = Number(target.value); show(); }
  else if (["method", "text", "target"].includes(target.id)) { if (live) explain(); show(); }
  else if (target.id === "radius" && state.dabs.length) { draw(); score(); }
});
$("layer").addEventListener("input", () => { if (live && state.maps) tell(); });
document.addEventListener("input", ({ target }) => { if (["layer", "share", "scale"].includes(target.id)) draw(); });
$("choices").addEventListener("submit", (event) => event.preventDefault());
$("before").addEventListener("click", () => step(-1));
$("after").addEventListener("click", () => step(1));
$("pin").addEventListener("click", pin);
$("stop").addEventListener("click", () => state.wait?.abort());
$("brush").addEventListener("click", () => {
  $("brush").setAttribute("aria-pressed", !covering());
  $("photo").classList.toggle("covering", covering());
});
$("clear").addEventListener("click", () => { state.dabs = []; $("clear").hidden = true; score(); draw(); });
for (const id of ["photo", "map", "other"]) {
  const canvas = $(id);
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: Math.min(0.999, Math.max(0, (event.clientX - box.x) / box.width)), y: Math.min(0.999, Math.max(0, (event.clientY - box.y) / box.height)) };
  };
  const brushing = (event) => id === "photo" && live && covering() && event.buttons;
  for (const kind of ["pointermove", "pointerdown"]) canvas.addEventListener(kind, (event) => {
    state.cursor = at(event);
    if (brushing(event)) dab(state.cursor.x, state.cursor.y);
    draw();
  });
  canvas.addEventListener("pointerup", () => { if (state.dabs.length) score(); });
  canvas.addEventListener("pointerleave", () => { state.cursor = null; draw(); });
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const covers = event.key === " " && id === "photo" && live;
    if (!moves && !covers) return;
    event.preventDefault();
    state.cursor ??= { x: 0.5, y: 0.5 };
    if (moves) for (const [part, by] of [["x", moves[0]], ["y", moves[1]]]) state.cursor[part] = Math.min(0.999, Math.max(0, state.cursor[part] + by / 56));
    if (covers) { dab(state.cursor.x, state.cursor.y); score(); }
    draw();
  });
}
if (live) {
  for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dropping", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) add(event.dataTransfer.files[0]);
  });
}
function loadCard() {
  const box = $("card").querySelector("div");
  if (live || !$("card").open) return;
  box.textContent = "…";
  ask("card", { model: state.model }).then((html) => { box.innerHTML = html; }, (error) => { box.textContent = error.message; });
}
$("card").addEventListener("toggle", loadCard);
fill();
if (state.image === null) say("Drop a photo on this page, or choose one.");
else show();
