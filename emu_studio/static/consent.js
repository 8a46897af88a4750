import { page, post, problem } from "./studio.js";

const agree = document.getElementById("agree");
agree.addEventListener("click", async () => {
  try {
    await post(`/api/rounds/${page.round}/consent`, {});
    location.reload();
  } catch (error) {
    problem(error.message);
  }
});
agree.disabled = false; // a click before this script is there would be lost
