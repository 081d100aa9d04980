// Two questions about one map after another; each answer is sent when it is given.
const state = { rater: "", answers: [], place: 0, sending: Promise.resolve() };
const fields = [...document.querySelectorAll("fieldset[data-question]")];
function failed(error) { say(error instanceof TypeError ? "No answer: does the command still run?" : error.message, true); }

async function show(place) {
  state.place = place;
  const here = () => state.place === place;
  $("number").textContent = `${place + 1} of ${state.answers.length}`;
  $("done").max = state.answers.length;
  $("done").value = state.answers.filter((one) => Object.keys(one).length === fields.length).length;
  $("before").disabled = place === 0;
  for (const input of document.querySelectorAll("#questions input")) {
    input.checked = state.answers[place][input.name] === Number(input.value);
  }
  try {
    const { uri, map, signed } = await request("item", { rater: state.rater, place });
    const photo = new Image();
    photo.src = uri;
    await photo.decode();
    if (!here()) return;
    numbers(map);
    draw($("photo"), photo, photo);
    draw($("map"), tinted(map, map.own, signed, 1), photo);
    $("map").dataset.place = place;
    say("");
  } catch (error) { if (here()) failed(error); }
}
function draw(canvas, picture, photo) {
  const times = Math.max(1, Math.round(448 / Math.max(photo.naturalWidth, photo.naturalHeight)));
  canvas.width = photo.naturalWidth * times; canvas.height = photo.naturalHeight * times;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
}
function answer(question, value) {
  const place = state.place;
  state.answers[place][question] = value;
  // One after another, so that the last of two answers to one question is the one that counts.
  state.sending = state.sending.then(() => request("rate", { rater: state.rater, place, question, value })).catch((error) => {
    delete state.answers[place][question];
    failed(error);
    if (place === state.place) document.querySelectorAll("#questions input:checked").forEach((one) => { one.checked = one.name !== question; });
  });
}
const open = () => fields.find((one) => !(one.dataset.question in state.answers[state.place]));
async function next() {
  if (open()) { say("Both questions are to be answered first."); open().querySelector("input").focus(); return; }
  await state.sending;
  if (open()) return;
  const left = state.answers.findIndex((one, place) => place > state.place && Object.keys(one).length < fields.length);
  const any = left < 0 ? state.answers.findIndex((one) => Object.keys(one).length < fields.length) : left;
  if (any >= 0) return void show(any);
  $("done").value = state.answers.length;
  say("All maps are rated. Thank you! Each answer can still be changed by going back.");
}
function back() { if (state.place > 0) show(state.place - 1); }

$("begin").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    state.rater = $("rater").value.trim();
    state.answers = await request("begin", { rater: state.rater });
    $("begin").hidden = true;
    $("rating").hidden = false;
    const first = state.answers.findIndex((one) => Object.keys(one).length < fields.length);
    await show(Math.max(0, first));
    if (first < 0) say("You have rated all maps. Each answer can still be changed by going back.");
    fields[0].querySelector("input").focus();
  } catch (error) { failed(error); }
});
document.addEventListener("change", ({ target }) => { if (target.type === "radio") answer(target.name, Number(target.value)); });
$("questions").addEventListener("submit", (event) => { event.preventDefault(); next(); });
$("before").addEventListener("click", back);
document.addEventListener("keydown", (event) => {
  if ($("rating").hidden || event.ctrlKey || event.altKey || event.metaKey) return;
  if (/^[1-5]$/.test(event.key)) {
    const field = open() ?? fields.at(-1), input = field.querySelector(`input[value="${event.key}"]`);
    input.checked = true;
    input.focus();
    answer(field.dataset.question, Number(event.key));
    event.preventDefault();
  } else if (event.key === "Enter" && event.target.tagName !== "BUTTON") { event.preventDefault(); next(); }
  else if (event.key === "Backspace") { event.preventDefault(); back(); }
});
