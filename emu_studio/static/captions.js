// Two captions of a picture, written by hand. What is typed is kept in the browser until the server has confirmed it;
// what the checks find is shown beside the field, and Enter once more saves it all the same.
import { Outbox, Turns, UNSAVED, askWhy, endZoom, finished, newKey, page, post, problem, showUnsaved, zoom } from "./studio.js";

const KEPT = 10; // pictures that one can go back to; the number
const PAUSE = 400; // ms without a key until the checks look at the text; chosen here
const PATIENCE = 3000; // ms that saving waits for the checks, which must not stop anybody; chosen here
const TEXT = `${UNSAVED}text `; // the name of unfinished text in the browser's storage, before its item
const base = `/api/rounds/${page.round}/captions`;
const stage = document.getElementById("stage");
const panel = document.getElementById("panel");
const names = ["short", "long"];
const fields = Object.fromEntries(names.map((name) => [name, document.getElementById(name)]));
const oldCaption = document.getElementById("old-caption");
const history = document.getElementById("history");
const outbox = new Outbox(base, "captions", keepRefused);
const votes = new Outbox(); // skips
const turns = new Turns(outbox, "view");
const before = [];
let turn = null; // {item, written: what was saved in this visit, …}
let usedDraft = false;
let checked = null; // {text, findings}: of the text that the checks looked at last
let warned = ""; // the text whose findings were shown when it was to be saved
let isSaving = false;
let shown = 0;
let pause = 0;

const tell = (text) => (document.getElementById("told").textContent = text);
const texts = () => Object.fromEntries(names.map((name) => [name, fields[name].value.trim()]));
const written = () => ({ ...texts(), used_draft: usedDraft });
const same = (one, other) => names.every((name) => one?.[name] === other?.[name]);

// ---- unfinished text

function keep() {
  const name = TEXT + turn.item;
  const now = written();
  if (same(now, turn.written ?? { short: "", long: "" })) localStorage.removeItem(name);
  else localStorage.setItem(name, JSON.stringify(now));
  showUnsaved();
}

function kept(item) {
  return JSON.parse(localStorage.getItem(TEXT + item) ?? "null");
}

function keepRefused({ item, short, long, used_draft }) {
  if (!kept(item)) localStorage.setItem(TEXT + item, JSON.stringify({ short, long, used_draft }));
  if (turn?.item === item && !texts().short && !texts().long) fill(kept(item));
}

// What was begun and not saved is gone on with first, also where its lease ended meanwhile.
async function adoptUnfinished() {
  for (const name of Object.keys(localStorage).filter((one) => one.startsWith(TEXT))) {
    try {
      const { turn: found, versions } = await ask(`${base}/${name.slice(TEXT.length)}`);
      turns.adopt({ ...found, written: versions.at(-1) });
    } catch (error) {
      problem(`Unfinished text of an earlier picture cannot be opened now: ${error.message}`);
    }
  }
}

async function ask(path) {
  const answer = await fetch(path);
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.detail);
  return told;
}

// ---- the picture and its fields

function show(taken) {
  turn = taken;
  stage.replaceChildren(turn.images[0]);
  panel.hidden = false;
  document.getElementById("draft").hidden = !turn.draft;
  document.getElementById("undo").disabled = !before.length;
  oldCaption.hidden = true;
  oldCaption.textContent = "";
  document.getElementById("old").setAttribute("aria-expanded", "false");
  history.open = false;
  const left = turns.numLeft === null ? "" : `, ${turns.numLeft} left`;
  document.getElementById("progress").textContent = `${turns.numDecided} captioned${left}`;
  tell("");
  fill(kept(turn.item) ?? turn.written ?? { short: "", long: "", used_draft: false });
  fields.short.focus();
  shown = performance.now();
}

function fill(content) {
  for (const name of names) fields[name].value = content[name];
  usedDraft = content.used_draft ?? false;
  typed();
}

function typed() {
  if (!turn) return;
  keep();
  for (const name of names) {
    const isDraft = usedDraft && fields[name].value === turn.draft?.[name];
    fields[name].parentNode.classList.toggle("drafted", isDraft);
  }
  count();
  tell("");
  if (checked && !same(checked.text, texts())) showFindings([]);
  armed(false);
  clearTimeout(pause);
  pause = setTimeout(() => names.some((name) => texts()[name]) && check().then(showFindings).catch(() => {}), PAUSE);
}

function count() {
  const words = (text) => (text.match(/[\p{L}\p{N}]+(?:['’\-][\p{L}\p{N}]+)*/gu) ?? []).length;
  for (const name of names) {
    const num = words(texts()[name]);
    document.getElementById(`${name}-count`).textContent = num ? `${num} word${num > 1 ? "s" : ""}` : "";
  }
}

// ---- checks

async function check() {
  const [item, text] = [turn.item, texts()];
  if (checked?.item === item && same(checked.text, text)) return checked.findings;
  const { findings } = await post(`${base}/${item}/check`, written());
  if (turn?.item === item && same(texts(), text)) checked = { item, text, findings };
  return findings;
}

// Remarks on a field in which nothing is written yet would only disturb.
function showFindings(findings) {
  for (const name of names) {
    const told = findings.filter((one) => one.field === name && texts()[name]);
    const lines = told.map((one) => Object.assign(document.createElement("li"), { textContent: one.told }));
    document.getElementById(`${name}-findings`).replaceChildren(...lines);
  }
}

function armed(is) {
  warned = is ? JSON.stringify(texts()) : "";
  document.getElementById("save").classList.toggle("anyway", is);
  document.getElementById("save-label").textContent = is ? "save it all the same" : "save, next picture";
}

// ---- saving

async function save() {
  if (!turn || isSaving) return;
  const empty = names.find((name) => !texts()[name]);
  if (empty) {
    fields[empty].focus();
    return tell("Both captions are needed; what cannot be described is skipped with a reason.");
  }
  isSaving = true;
  const text = texts();
  const findings = await findingsInTime();
  isSaving = false;
  if (!same(text, texts())) return; // somebody typed on meanwhile
  showFindings(findings);
  if (findings.length && warned !== JSON.stringify(texts())) {
    armed(true);
    return tell(`${findings.length} remark${findings.length > 1 ? "s" : ""}: change the text, or press Enter again.`);
  }
  const seconds = Math.round(performance.now() - shown) / 1000;
  const known = findings.map((one) => `${one.field} ${one.code}`);
  outbox.put({ ballot: newKey(), item: turn.item, ...written(), known, seconds });
  if (!turn.written) turns.numDecided += 1;
  turn.written = written();
  leave();
  next();
}

// What the checks say, nothing where they cannot be asked: the server looks again when the caption arrives.
async function findingsInTime() {
  const late = new Promise((resolve) => setTimeout(resolve, PATIENCE, []));
  return Promise.race([check().catch(() => []), late]);
}

function leave() {
  localStorage.removeItem(TEXT + turn.item);
  showUnsaved();
  clearTimeout(pause);
  before.push(turn);
  if (before.length > KEPT) before.shift();
  turn = null;
}

async function next() {
  turn = null;
  const [taken] = await turns.take(1);
  if (turn) turns.putBack([taken]); // one went back meanwhile
  else if (taken) show(taken);
  else {
    panel.hidden = true;
    finished(stage);
  }
}

function skip() {
  if (!turn || isSaving) return;
  if (turn.written) return tell("A picture with captions is not skipped: change them instead.");
  askWhy((reason) => {
    const seconds = Math.round(performance.now() - shown) / 1000;
    votes.put({ ballot: newKey(), item: turn.item, decision: "skipped", reason, seconds });
    leave();
    next();
  });
}

function back() {
  if (isSaving || !before.length) return tell("There is no picture before.");
  const earlier = before.pop();
  turns.putBack([turn]);
  show(earlier);
}

async function toggleOld() {
  if (!turn) return;
  if (oldCaption.hidden) {
    const { item } = turn;
    try {
      const { caption } = await post(`${base}/${item}/old`, {});
      if (turn?.item !== item) return;
      oldCaption.textContent = caption || "There is none.";
    } catch (error) {
      return tell(`The old caption cannot be shown now: ${error.message}`);
    }
  }
  oldCaption.hidden = !oldCaption.hidden;
  document.getElementById("old").setAttribute("aria-expanded", String(!oldCaption.hidden));
}

// The draft goes into fields in which nothing was written.
function useDraft() {
  if (!turn?.draft) return;
  const free = names.filter((name) => !texts()[name]);
  if (!free.length) return tell("Empty a field first: the draft does not replace what you wrote.");
  fill({ ...texts(), ...Object.fromEntries(free.map((name) => [name, turn.draft[name]])), used_draft: true });
  fields.short.focus();
}

history.addEventListener("toggle", async () => {
  if (!history.open || !turn) return;
  const list = history.querySelector("ol");
  list.replaceChildren();
  try {
    const { versions } = await ask(`${base}/${turn.item}`);
    for (const one of versions) {
      const line = document.createElement("li");
      line.textContent = `${one.time.slice(0, 16).replace("T", " ")} UTC, ${one.by}: ${one.short} | ${one.long}`;
      list.append(line);
    }
    if (!versions.length) list.append("Nothing was saved yet.");
  } catch (error) {
    tell(`The earlier versions cannot be shown now: ${error.message}`);
  }
});

for (const name of names) fields[name].addEventListener("input", typed);
panel.addEventListener("submit", (event) => {
  event.preventDefault();
  save();
});
const tools = { old: toggleOld, draft: useDraft, "skip-it": skip, undo: back };
for (const [id, act] of Object.entries(tools)) document.getElementById(id).addEventListener("click", act);
const keys = { F2: toggleOld, F4: useDraft, F9: skip, PageUp: back };

addEventListener("keydown", (event) => {
  if (event.isComposing || event.altKey || document.querySelector("dialog[open]")) return;
  const inField = names.includes(event.target.id);
  if (event.key === "Enter" && (inField || event.ctrlKey)) {
    event.preventDefault(); // a caption is one line: Enter goes on, from short to long to the next picture
    if (event.repeat) return;
    if (event.target.id === "short" && !event.ctrlKey && !fields.long.value.trim()) fields.long.focus();
    else save();
  } else if (event.key === "F8" && turn) {
    event.preventDefault();
    if (!event.repeat) zoom(turn, 0);
  } else if (event.key in keys && !event.repeat && !event.ctrlKey) {
    event.preventDefault();
    keys[event.key]();
  }
});
addEventListener("keyup", (event) => event.key === "F8" && endZoom());

await adoptUnfinished();
next();
