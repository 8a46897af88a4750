// Two pictures side by side: one clicks the picture, not a word. Both are put in place at once, when both are decoded;
// the server says by its addresses which of them stands left.
import { Outbox, Turns, askWhy, endZoom, finished, newKey, zoom } from "./studio.js";

const KEPT = 10; // decisions that can be taken back; the number
const pair = document.getElementById("pair");
const [left, right] = pair.children;
const caption = document.getElementById("caption");
const outbox = new Outbox();
const turns = new Turns(outbox, "view");
const before = [];
let turn = null;
let group = null; // of the pair that was shown last: no prompt comes twice in a row
let shown = 0;
let numAsked = 0;

function tell(text) {
  document.getElementById("told").textContent = text;
}

function show(taken) {
  turn = taken;
  group = turn.group;
  for (const image of turn.images) image.decoding = "sync"; // painted with the rest of the page, not after it
  left.replaceChildren(turn.images[0]);
  right.replaceChildren(turn.images[1]);
  if (left.parentNode !== pair) pair.replaceChildren(left, right); // "nothing is left" stood there
  pair.classList.remove("waiting");
  if (caption) {
    caption.textContent = turn.caption;
    caption.scrollTop = 0;
  }
  const open = turns.numLeft === null ? "" : `, ${turns.numLeft} left`;
  document.getElementById("progress").textContent = `${turns.numDecided} decided${open}`;
  tell("");
  shown = performance.now();
}

async function next() {
  turn = null;
  numAsked += 1;
  const asked = numAsked;
  const isLate = setTimeout(() => pair.classList.add("waiting"), 50); // a pair that was decided on must not stay
  const [taken] = await turns.take(1, (one) => one.group !== group);
  clearTimeout(isLate);
  if (asked !== numAsked) turns.putBack([taken]); // a decision was taken back meanwhile
  else if (taken) show(taken);
  else {
    if (caption) caption.textContent = "";
    pair.classList.remove("waiting");
    finished(pair);
  }
}

function send(to, decision, reason = "", seconds = null) {
  outbox.put({ ballot: newKey(), item: to.item, decision, reason, seconds, is_repeat: to.is_repeat });
}

function decide(decision, reason = "") {
  if (!turn) return;
  if (!turn.canBeSeen && decision !== "skipped") return tell("One of them cannot be seen: skip the pair.");
  send(turn, decision, reason, Math.round(performance.now() - shown) / 1000);
  before.push({ turn, decision });
  if (before.length > KEPT) before.shift();
  turns.numDecided += decision !== "skipped";
  next();
}

// What is taken back does not count from now on, also where one does not decide again.
function back() {
  if (!before.length) return tell("There is nothing to take back.");
  const { turn: earlier, decision } = before.pop();
  send(earlier, "withdrawn");
  turns.numDecided -= decision !== "skipped";
  turns.putBack([turn]);
  numAsked += 1;
  show(earlier);
  tell(`Taken back: ${decision}. Decide again.`);
}

function press(button) {
  if (button.id === "undo") back();
  else if (button.id === "how") document.getElementById("guideline").showModal();
  else if (button.dataset.decision === "skipped") turn && askWhy((reason) => decide("skipped", reason));
  else decide(button.dataset.decision);
}

const buttons = [left, right, ...document.querySelectorAll(".choices button")];
for (const button of buttons) {
  button.addEventListener("click", (event) => event.detail < 2 && press(button)); // a double click is one decision
}
for (const button of [left, right]) {
  button.addEventListener("pointerdown", (event) => event.button === 2 && turn && zoom(turn, 0, 1));
}
addEventListener("pointerup", (event) => event.button === 2 && endZoom());
addEventListener("contextmenu", (event) => event.target.closest("#pair, #zoom") && event.preventDefault());
addEventListener("keydown", (event) => {
  if (event.repeat && event.key === "Enter") event.preventDefault(); // else a held key would press its button again
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || document.querySelector("dialog[open]")) return;
  const key = event.key.toLowerCase();
  const button = buttons.find((one) => one.dataset.keys?.split(" ").includes(key));
  if (button) press(button);
  else if (key === "backspace") back();
  else if (key === "?") press(document.getElementById("how"));
  else if (key === "z" && turn) zoom(turn, 0, 1);
  else return;
  event.preventDefault();
});
addEventListener("keyup", (event) => event.key.toLowerCase() === "z" && endZoom());
next();
