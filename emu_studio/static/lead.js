// The lead's pages: a button or a form posts what it says, after a question where it asks one, and the page is shown
// anew; a personal link, or what an import did, is shown beside.
import { newKey, page, post, problem } from "./studio.js";

const dialog = document.getElementById("ask");
const why = document.getElementById("ask-why");

// What the lead answers: a text, "" for a mere yes, null for no.
function ask(question, wantsText) {
  document.getElementById("ask-title").textContent = question;
  why.hidden = !wantsText;
  why.required = wantsText;
  why.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((answer) =>
    dialog.addEventListener("close", () => answer(dialog.returnValue === "go" ? why.value : null), { once: true }),
  );
}

function tell(told) {
  const place = document.getElementById("link");
  if (told.link) {
    const field = document.createElement("input");
    field.readOnly = true;
    field.size = 70;
    field.value = location.origin + told.link;
    field.setAttribute("aria-label", "Personal link");
    place.replaceChildren(`The personal link of ${told.pseudonym}; it is shown only now: `, field);
    field.focus();
    field.select();
  } else {
    const known = told.num_known ? `, ${told.num_known} were there already` : "";
    const ignored = told.ignored.length ? `; not read: ${told.ignored.join(", ")}` : "";
    place.textContent = `${told.num_votes} votes of ${told.num_raters} raters taken${known}${ignored}. Reload to see them counted.`;
  }
}

async function send(control, path, body) {
  problem("");
  control.disabled = true;
  try {
    const told = await post(path, body);
    if (told.to) location.assign(told.to);
    else if (told.link || told.num_votes !== undefined) tell(told);
    else location.reload();
  } catch (error) {
    problem(error.message);
  } finally {
    control.disabled = false;
  }
}

for (const button of document.querySelectorAll("button[data-post]")) {
  button.addEventListener("click", async () => {
    const { post: path, ask: question, confirm, body } = button.dataset;
    const answer = question || confirm ? await ask(question ?? confirm, Boolean(question)) : "";
    if (answer === null) return;
    await send(button, path, question ? { why: answer } : JSON.parse(body ?? "{}"));
  });
}

for (const form of document.querySelectorAll("form[data-post]")) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const body = {};
    for (const [name, value] of new FormData(form)) body[name] = value instanceof File ? await value.text() : value;
    await send(form.querySelector("button"), form.dataset.post, body);
  });
}

for (const button of document.querySelectorAll("button[data-decision]")) {
  button.addEventListener("click", async () => {
    const { item, decision, reason, picked } = button.dataset;
    const article = button.closest("article");
    problem("");
    try {
      const ballot = { ballot: newKey(), item: Number(item), decision, reason: reason ?? "", picked: Number(picked ?? 0) };
      await post(`/api/lead/rounds/${page.round}/adjudicate`, ballot);
    } catch (error) {
      return problem(error.message);
    }
    const told = reason ? `${decision}, ${reason}` : decision;
    article.querySelector(".outcome").textContent = `Adjudicated: ${told}`;
    for (const group of article.querySelectorAll(".decide")) group.remove();
    const next = [...document.querySelectorAll("article button")].find((one) => article.compareDocumentPosition(one) & 4);
    (next ?? document.getElementById("main")).focus();
  });
}

// While rounds are being prepared the list of them is asked for again and again; when one is ready the page is.
const AGAIN = 1000; // ms; chosen here
async function follow() {
  const waits = (of) => of.querySelectorAll("#preparing [data-waiting]").length;
  if (!waits(document)) return;
  await new Promise((wake) => setTimeout(wake, AGAIN));
  try {
    const answer = await fetch(location.href);
    const now = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (answer.ok && waits(now) < waits(document)) return location.reload();
    if (answer.ok) document.getElementById("preparing").replaceWith(now.getElementById("preparing"));
  } catch {
    // The server does not answer now; asked again below.
  }
  follow();
}
follow();
