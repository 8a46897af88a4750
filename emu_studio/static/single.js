// Round 2: one picture large, one key per decision. "Unsure" comes back at the end; ten decisions can be taken back.
import { Outbox, Turns, askWhy, endZoom, finished, newKey, problem, zoom } from "./studio.js";

const KEPT = 10; // decisions that one can go back to; the number
const stage = document.getElementById("stage");
const outbox = new Outbox();
const turns = new Turns(outbox, "view", 12);
const before = [];
let turn = null;
let picked = 0;
let shown = 0;
let numAsked = 0;

function draw() {
  stage.replaceChildren(turn.images[picked]);
  if (turn.num_pictures > 1) {
    const told = document.createElement("figcaption");
    told.textContent = `${picked + 1} of ${turn.num_pictures} of a burst: arrows, then K keeps this one`;
    stage.append(told);
  }
  const left = turns.numLeft === null ? "" : `, ${turns.numLeft} left`;
  document.getElementById("progress").textContent = `${turns.numDecided} decided${left}`;
  shown = performance.now();
}

async function next() {
  turn = null;
  numAsked += 1;
  const asked = numAsked;
  const [taken] = await turns.take(1);
  if (asked !== numAsked) return turns.putBack([taken]); // a decision was taken back meanwhile
  if (!taken) return finished(stage);
  show(taken);
}

function show(taken) {
  turn = taken;
  picked = 0;
  draw();
}

function decide(decision, reason = "") {
  if (!turn) return;
  const seconds = Math.round(performance.now() - shown) / 1000;
  outbox.put({ ballot: newKey(), item: turn.item, decision, reason, picked, seconds });
  if (decision === "unsure") turns.forget(`${turn.item} false`);
  before.push({ turn, picked });
  if (before.length > KEPT) before.shift();
  turns.numDecided += 1;
  next();
}

// What is taken back does not count from now on, also where one does not decide again.
function back() {
  if (!before.length) return problem("There is nothing to take back.");
  const earlier = before.pop();
  outbox.put({ ballot: newKey(), item: earlier.turn.item, decision: "withdrawn", picked: earlier.picked });
  turns.remember(earlier.turn);
  turns.putBack([turn]);
  turns.numDecided -= 1;
  numAsked += 1;
  show(earlier.turn);
}

const buttons = [...document.querySelectorAll("aside button[data-decision]")];
for (const button of buttons) {
  button.addEventListener("click", () => {
    if (button.dataset.decision === "skipped") turn && askWhy((reason) => decide("skipped", reason));
    else decide(button.dataset.decision, button.dataset.reason);
  });
}
document.getElementById("undo").addEventListener("click", back);
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || document.querySelector("dialog[open]:not(#zoom)")) return;
  const button = buttons.find((one) => one.dataset.key === event.key.toLowerCase());
  if (button) button.click();
  else if (event.key === "Backspace") back();
  else if (event.key === "z" && turn) zoom(turn, picked);
  else if (event.key === "ArrowRight" && turn && picked + 1 < turn.num_pictures) (picked += 1), draw();
  else if (event.key === "ArrowLeft" && turn && picked > 0) (picked -= 1), draw();
  else return;
  event.preventDefault();
});
addEventListener("keyup", (event) => event.key === "z" && endZoom());
next();
