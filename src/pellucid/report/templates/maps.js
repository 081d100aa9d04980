"use strict";
// What all pages of a viewer share: asking the server, and drawing maps.
const page = JSON.parse(document.getElementById("page").textContent);
const $ = (id) => document.getElementById(id);

async function request(what, asked, signal) {
  const headers = { "Content-Type": "application/json" };
  const found = await fetch("ask/" + what, { method: "POST", headers, body: JSON.stringify(asked), signal });
  const reader = found.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    text += value;
    const lines = text.trimEnd().split("\n"), last = text.endsWith("\n") ? lines.at(-1) : lines.at(-2);
    if (last && last.startsWith('{"doing"')) say(JSON.parse(last).doing + " …");
  }
  const told = JSON.parse(text.trimEnd().split("\n").at(-1));
  if (told.error) throw new Error(told.error);
  return told.answer;
}
function say(text, wrong = false) { $("told").textContent = text; $("told").classList.toggle("wrong", wrong); }

// Maps: 16-bit numbers become values once, and their 99th percentile of magnitude.
function numbers(map) {
  if (!map.numbers) {
    const raw = Uint8Array.from(atob(map.values), (letter) => letter.charCodeAt(0));
    map.numbers = Float32Array.from(new Int16Array(raw.buffer), (whole) => whole / page.colors.whole * map.peak);
    const sorted = map.numbers.map(Math.abs).sort(), at = 0.99 * (sorted.length - 1), low = Math.floor(at);
    map.limit = sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]) || sorted.at(-1) || 1;
    // By itself a map of one value says nothing of places: it gets the color of 0.
    map.own = map.numbers.every((value) => value === map.numbers[0]) ? Infinity : map.limit;
  }
  return map.numbers;
}
// A map as a small picture: alone, or over a photo the more opaque, the stronger a value.
function tinted(map, limit, signed, share) {
  const values = numbers(map), found = new ImageData(map.w, map.h);
  const bar = page.colors[signed ? "signed" : "unsigned"];
  for (let at = 0; at < values.length; at++) {
    const value = Math.max(-1, Math.min(1, values[at] / limit));
    const color = share === 1 ? bar[Math.round((signed ? (value + 1) / 2 : Math.max(0, value)) * (bar.length - 1))]
      : page.colors[value < 0 ? "against" : signed ? "for" : "strong"];
    found.data.set(color, 4 * at);
    found.data[4 * at + 3] = share === 1 ? 255 : 255 * share * Math.abs(value);
  }
  const small = document.createElement("canvas");
  small.width = map.w; small.height = map.h;
  small.getContext("2d").putImageData(found, 0, 0);
  return small;
}
