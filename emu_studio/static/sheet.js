// Round 1: a contact sheet. A key or a click for each keeper, Enter for none of the rest.
import { Outbox, Turns, endZoom, finished, newKey, page, zoom } from "./studio.js";

const LETTERS = "qwertyuiopasdfghjklzxcvb"; // 24, in the order of the keyboard's rows
const KEPT_SHEETS = 10; // that one can go back to; the number
const size = Number(page.size);
const place = document.getElementById("sheet");
const outbox = new Outbox();
const turns = new Turns(outbox, "tile", 2 * size);
const before = [];
let sheet = null;
let marksUnsafe = false;

place.style.setProperty("--columns", Math.round(Math.sqrt((size * 4) / 3))); // as many rows as fit a window of 3:2

function draw() {
  const tiles = sheet.turns.map((turn, number) => {
    const tile = document.createElement("button");
    tile.className = "tile";
    tile.setAttribute("aria-pressed", sheet.kept.has(turn.item));
    tile.setAttribute("aria-label", `Picture ${LETTERS[number].toUpperCase()}`);
    tile.classList.toggle("unsafe", sheet.unsafe.has(turn.item));
    const letter = document.createElement("kbd");
    letter.className = "letter";
    const burst = turn.num_pictures > 1 ? ` ${(sheet.picked.get(turn.item) ?? 0) + 1} of ${turn.num_pictures}` : "";
    letter.textContent = LETTERS[number].toUpperCase() + burst;
    tile.append(turn.images[sheet.picked.get(turn.item) ?? 0], letter);
    tile.addEventListener("click", () => press(number));
    tile.addEventListener("contextmenu", (event) => event.preventDefault());
    tile.addEventListener("pointerdown", (event) => event.button === 2 && zoom(turn, sheet.picked.get(turn.item) ?? 0));
    tile.addEventListener("pointerup", (event) => event.button === 2 && endZoom());
    return tile;
  });
  place.replaceChildren(...tiles);
  document.getElementById("progress").textContent =
    turns.numLeft === null ? "" : `${turns.numLeft} pictures left in the round for you`;
}

// A burst's keeper is chosen by pressing its key again: the first, the next, …, none.
function press(number) {
  const turn = sheet.turns[number];
  if (!turn) return;
  if (marksUnsafe) {
    sheet.unsafe.has(turn.item) ? sheet.unsafe.delete(turn.item) : sheet.unsafe.add(turn.item);
    sheet.kept.delete(turn.item);
    marksUnsafe = false;
  } else if (!sheet.kept.has(turn.item)) {
    sheet.kept.add(turn.item);
    sheet.unsafe.delete(turn.item);
    sheet.picked.set(turn.item, 0);
  } else if (sheet.picked.get(turn.item) + 1 < turn.num_pictures) {
    sheet.picked.set(turn.item, sheet.picked.get(turn.item) + 1);
  } else {
    sheet.kept.delete(turn.item);
    sheet.picked.delete(turn.item);
  }
  const focused = [...place.children].indexOf(document.activeElement);
  draw();
  place.children[focused]?.focus();
}

function send() {
  const seconds = (performance.now() - sheet.shown) / 1000 / sheet.turns.length;
  for (const { item } of sheet.turns) {
    const isKept = sheet.kept.has(item);
    outbox.put({
      ballot: newKey(),
      item,
      decision: isKept ? "keep" : "drop",
      reason: isKept ? "" : sheet.unsafe.has(item) ? "unsafe" : "not picked",
      picked: sheet.picked.get(item) ?? 0,
      seconds: Math.round(1000 * seconds) / 1000,
      sheet: sheet.name,
    });
  }
}

async function next() {
  if (sheet) {
    send();
    before.push(sheet);
    if (before.length > KEPT_SHEETS) before.shift();
  }
  sheet = null;
  const taken = await turns.take(size);
  if (sheet) return turns.putBack(taken); // one went back meanwhile
  if (!taken.length) return finished(place);
  sheet = { name: newKey(), turns: taken, kept: new Set(), unsafe: new Set(), picked: new Map() };
  draw();
  sheet.shown = performance.now();
}

function back() {
  if (!before.length) return;
  if (sheet) turns.putBack(sheet.turns);
  sheet = before.pop();
  draw();
  sheet.shown = performance.now();
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog[open]:not(#zoom)")) return;
  const number = LETTERS.indexOf(event.key.toLowerCase());
  if (event.key === "Enter" && !event.repeat && event.target.tagName !== "A") {
    event.preventDefault(); // else the focused tile or button would be pressed, too
    if (sheet) next();
  } else if (event.key === "Backspace") back();
  else if (event.key === "?") document.getElementById("guideline").showModal();
  else if (event.key === "!") marksUnsafe = true;
  else if (number >= 0 && event.shiftKey && sheet?.turns[number]) zoom(sheet.turns[number], 0);
  else if (number >= 0 && !event.repeat && sheet) press(number);
  else return;
  event.preventDefault();
});
addEventListener("keyup", (event) => {
  if (document.getElementById("zoom").open && (event.key === "Shift" || LETTERS.includes(event.key.toLowerCase()))) endZoom();
});
document.getElementById("done").addEventListener("click", () => sheet && next());
next();
