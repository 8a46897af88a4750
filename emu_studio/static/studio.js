// What all working pages share: the server, the votes that are not yet saved, and pictures that are ready before they
// are needed.

export const page = document.body.dataset;
const RETRY = 2000; // ms until what could not be sent is sent again; chosen here
const FILL = 8; // pictures that must be ready ahead; the number

export function problem(text) {
  document.getElementById("problem").textContent = text;
}

export async function post(path, body) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRF-Token": page.csrf },
    body: JSON.stringify(body),
  });
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(told.detail ?? `error ${answer.status}`), { status: answer.status });
  return told;
}

export function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");
}

// All that this browser holds and the server has not confirmed lies under this name in its storage.
export const UNSAVED = `emu ${page.rater} ${page.round} `;

export function showUnsaved() {
  const num = Object.keys(localStorage).filter((key) => key.startsWith(UNSAVED)).length;
  const saved = document.getElementById("saved");
  saved.textContent = num ? `${num} not saved` : "saved";
  saved.classList.toggle("waiting", num > 0);
}

// Decisions wait in the browser's own storage until the server has confirmed them: a reload, a crash or a lost network
// loses none, and each has a key, so that sending it twice takes it once.
export class Outbox {
  #prefix;
  #path;
  #sending = false;
  #field;
  #refused;

  // refused: what is done with a decision that the server did not take.
  constructor(path = `/api/rounds/${page.round}/votes`, field = "ballots", refused = () => {}) {
    this.#path = path;
    this.#field = field;
    this.#prefix = `${UNSAVED}${field} `;
    this.#refused = refused;
    addEventListener("online", () => this.flush());
    addEventListener("storage", showUnsaved);
    showUnsaved();
    this.flush();
  }

  put(ballot) {
    localStorage.setItem(this.#prefix + ballot.ballot, JSON.stringify({ at: Date.now(), ballot }));
    showUnsaved();
    this.flush();
  }

  waiting() {
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(this.#prefix));
    const found = keys.map((key) => JSON.parse(localStorage.getItem(key) ?? "null")).filter(Boolean);
    return found.sort((a, b) => a.at - b.at).map((one) => one.ballot);
  }

  async flush() {
    if (this.#sending) return;
    this.#sending = true;
    try {
      for (let left = this.waiting(); left.length; left = this.waiting()) await this.#send(left.slice(0, 50));
    } catch (error) {
      if (error.status && error.status !== 503) problem(error.message); // somebody must act
      setTimeout(() => this.flush(), RETRY);
    } finally {
      this.#sending = false;
      showUnsaved();
    }
  }

  async #send(ballots) {
    try {
      const told = await post(this.#path, { [this.#field]: ballots });
      for (const one of told.confirmed) localStorage.removeItem(this.#prefix + one.ballot);
    } catch (error) {
      if (error.status !== 400 && error.status !== 422) throw error;
      if (ballots.length > 1) for (const one of ballots) await this.#send([one]);
      else {
        problem(`One decision was not taken: ${error.message}`);
        this.#refused(ballots[0]);
        localStorage.removeItem(this.#prefix + ballots[0].ballot);
      }
    }
    showUnsaved();
  }
}

// The rater is named, since the same address may show another rater, in the same browser, other sides.
export function address(turn, number, size) {
  return `/pictures/${turn.item}/${number}/${size}?rater=${page.rater}${turn.is_repeat ? "&repeat=1" : ""}`;
}

async function load(turn, size) {
  const numbers = Array.from({ length: turn.num_pictures }, (_, number) => number);
  turn.images = await Promise.all(numbers.map((number) => loadPicture(address(turn, number, size))));
  turn.canBeSeen = turn.images.every((image) => !image.alt);
}

// A decoded picture. Without a network it waits for one; what the server cannot give is said in its place.
async function loadPicture(src) {
  for (let hasAnswered = false; ; ) {
    const image = new Image();
    image.alt = "";
    image.draggable = false;
    image.src = src;
    try {
      await image.decode();
      return image;
    } catch {
      const answer = await fetch(src).catch(() => null);
      if (answer && (hasAnswered || !answer.ok)) {
        image.alt = "This picture cannot be read: skip it.";
        return image;
      }
      hasAnswered = answer !== null;
      if (!answer) await new Promise((wake) => setTimeout(wake, RETRY));
    }
  }
}

// The items that are one's own next, their pictures decoded before their turn comes.
export class Turns {
  #outbox;
  #size;
  #ahead;
  #seen = new Map(); // "ITEM REPEAT" -> its turn, the newest one where an item came again; null of before a reload
  #filling = null;
  waiting = [];
  numLeft = null;
  numDecided = 0;

  constructor(outbox, size, ahead = FILL) {
    this.#outbox = outbox;
    this.#size = size;
    this.#ahead = ahead;
    for (const { item, is_repeat = false, decision } of outbox.waiting()) {
      // What was decided before a reload, and is not saved yet, the server would give out again.
      if (!["unsure", "withdrawn"].includes(decision)) this.#seen.set(`${item} ${is_repeat}`, null);
      else this.forget(`${item} ${is_repeat}`);
    }
  }

  // Up to `num` items with their pictures; fewer when nothing more is left. Those that fit come first.
  async take(num, fits = () => true) {
    while (this.waiting.length < num) {
      const before = this.waiting.length;
      await this.fill(num);
      if (this.waiting.length === before) break;
    }
    const first = new Set(this.waiting.filter(fits).slice(0, num));
    this.waiting = [...first, ...this.waiting.filter((turn) => !first.has(turn))];
    const taken = this.waiting.splice(0, num);
    await Promise.all(taken.map((turn) => turn.ready));
    this.fill(this.#ahead);
    return taken;
  }

  // An item that the page asked for by itself comes next.
  adopt(turn) {
    this.#seen.set(`${turn.item} ${turn.is_repeat}`, turn);
    turn.ready = load(turn, this.#size);
    this.waiting.unshift(turn);
  }

  // A turn that was decided on is on the screen again: if its item came once more meanwhile, that turn is void.
  remember(turn) {
    this.#seen.set(`${turn.item} ${turn.is_repeat}`, turn);
    this.waiting = this.waiting.filter((one) => one.item !== turn.item || one.is_repeat !== turn.is_repeat);
  }

  // Turns that were taken and not decided on come next, but for those that are void.
  putBack(taken) {
    this.waiting.unshift(...taken.filter((turn) => turn && this.#seen.get(`${turn.item} ${turn.is_repeat}`) === turn));
  }

  // An item that must be asked about again may come back under the same number.
  forget(item) {
    this.#seen.delete(item);
  }

  fill(num) {
    this.#filling ??= this.#ask(Math.max(num, this.#ahead)).finally(() => (this.#filling = null));
    return this.#filling;
  }

  async #ask(num) {
    if (this.waiting.length >= num) return;
    const held = this.#outbox.waiting().length;
    const told = await this.#patiently({ num: Math.min(200, 2 * num + held) });
    this.numLeft = told.num_left;
    this.numDecided = told.num_decided;
    for (const turn of told.turns) {
      const name = `${turn.item} ${turn.is_repeat}`;
      if (this.#seen.has(name)) continue;
      this.#seen.set(name, turn);
      turn.ready = load(turn, this.#size);
      this.waiting.push(turn);
    }
  }

  async #patiently(wanted) {
    for (;;) {
      try {
        return await post(`/api/rounds/${page.round}/turns`, wanted);
      } catch (error) {
        if (error.status && error.status !== 503) {
          problem(error.message);
          throw error;
        }
        await new Promise((wake) => setTimeout(wake, RETRY));
      }
    }
  }
}

const zoomed = document.getElementById("zoom");
const STEP = 0.1; // of the way from edge to edge that an arrow moves; chosen here
let center = [0.5, 0.5]; // of what is seen of the pictures: 0 is their left and upper edge, 1 the other one

// Pictures side by side, a pixel for a pixel, while a key or button is held: all at once, and all at the same place.
export async function zoom(turn, ...numbers) {
  const panes = numbers.map(() => document.createElement("div"));
  for (const pane of panes) pane.className = "pixels";
  zoomed.replaceChildren(...panes);
  if (!zoomed.open) zoomed.showModal();
  const images = numbers.map((number) => {
    const image = new Image();
    image.alt = "";
    image.src = address(turn, number, "full");
    return image;
  });
  await Promise.allSettled(images.map((image) => image.decode()));
  images.forEach((image, place) => panes[place].replaceChildren(image));
  center = [0.5, 0.5];
  moveZoom(0, 0);
}

export function endZoom() {
  zoomed.close();
}

function moveZoom(right, down) {
  center = [center[0] + right, center[1] + down].map((part) => Math.min(1, Math.max(0, part)));
  for (const pane of zoomed.children) {
    pane.scrollLeft = center[0] * (pane.scrollWidth - pane.clientWidth);
    pane.scrollTop = center[1] * (pane.scrollHeight - pane.clientHeight);
  }
}

const ARROWS = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
addEventListener(
  "keydown",
  (event) => {
    if (!zoomed?.open || !(event.key in ARROWS)) return;
    moveZoom(...ARROWS[event.key]);
    event.preventDefault();
    event.stopImmediatePropagation(); // on these pages arrows decide, too
  },
  { capture: true },
);
addEventListener("pointermove", (event) => {
  const pane = zoomed?.open && event.target.closest?.(".pixels");
  if (!pane) return;
  const { left, top, width, height } = pane.getBoundingClientRect();
  center = [(event.clientX - left) / width, (event.clientY - top) / height];
  moveZoom(0, 0);
});
addEventListener("blur", () => zoomed?.open && endZoom()); // its key's or button's end goes to another window

// Why an item is skipped; `then` is called with the reason, if one is given.
export function askWhy(then) {
  const dialog = document.getElementById("skip");
  const why = document.getElementById("why");
  why.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  dialog.addEventListener("close", () => dialog.returnValue === "skip" && why.value.trim() && then(why.value), { once: true });
}

export function finished(place) {
  const box = document.createElement("div");
  box.className = "finished";
  box.innerHTML = "<h2>Nothing is left for you now</h2><p>Thank you. <a href=\"/\">Back to your rounds</a></p>";
  place.replaceChildren(box);
}
