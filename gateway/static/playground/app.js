// Puts the page together: reads the form, runs one answer or two, shows, replays and saves them.

import * as api from "./api.js";
import { Form } from "./form.js";
import { Film } from "./picture.js";
import { moments, Recording, title } from "./recording.js";
import { Replay } from "./replay.js";
import { el, plural, View } from "./view.js";

const at = (id) => document.getElementById(id);
const LETTERS = ["A", "B"];
const THEMES = ["auto", "light", "dark"];
const REASONS = { stop: "the model ended it", length: "every position is filled" };

let form, replay, running = null, recordings = [], views = [], seed = "", paint = null, remembering = 0;

async function begin() {
  replay = new Replay((index) => showMoment(index));
  at("theme").addEventListener("click", nextTheme);
  try {
    form = new Form(at("request"), await api.document_(), rememberSoon);
  } catch (error) {
    return complain(error);
  }
  follow();
  // On a narrow screen the settings would push the canvas far down.
  at("settings").open = innerWidth > 900;
  await learn();
  at("request").addEventListener("submit", (event) => { event.preventDefault(); run(); });
  at("request").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
  });
  form.parts.key.addEventListener("change", learn);
  at("stop").addEventListener("click", () => running && running.abort());
  at("link").addEventListener("click", copyLink);
  for (const button of document.querySelectorAll("[data-save]")) {
    button.addEventListener("click", () => save(button.dataset.save));
  }
  addEventListener("hashchange", follow);
  document.documentElement.dataset.ready = "";
}

// What is served, and what it can do. Without it all strategies are offered.
async function learn() {
  try {
    const models = await api.models(form.key);
    const select = form.parts.model, chosen = select.value || linked().get("model");
    select.replaceChildren(...models.map(({ id }) => el("option", { value: id }, id)));
    if (models.some(({ id }) => id === chosen)) select.value = chosen;
    at("served").textContent = `${models[0].id} · ${models[0].max_model_len} positions at most`;
    form.offer(models[0]);
    complain(null);
  } catch (error) {
    complain(error);
  }
}

async function run() {
  if (running) return;
  if (!form.model) await learn(); // the server may have been loading
  complain(null);
  let asked, given;
  try {
    seed = form.seed();
    given = form.given;
    asked = form.chosen().map((strategy) => ({ strategy, body: form.body(strategy, seed) }));
  } catch (error) {
    return complain(error, "a");
  }
  remember();
  const { asked: held, key, url } = form;
  running = new AbortController();
  const { signal } = running;
  at("run").disabled = true;
  at("stop").disabled = false;
  at("empty").hidden = true;
  at("comparison").hidden = true;
  say("Running…");
  replay.clear();
  const begun = performance.now();
  recordings = asked.map(({ strategy }) => new Recording(strategy, begun, held));
  views = recordings.map((recording, i) => new View(recordings.length > 1 ? LETTERS[i] : "", recording, given, seed));
  at("runs").replaceChildren(...views.map((view) => view.node));
  // On a narrow screen the canvas lies below the form.
  if (at("stage").getBoundingClientRect().top > innerHeight / 2) at("stage").scrollIntoView();
  await Promise.all(recordings.map(async (recording, i) => {
    try {
      await api.stream(url, asked[i].body, key, signal, (chunk) => { recording.take(chunk); repaint(); });
    } catch (error) {
      if (error.name === "AbortError") recording.problem = "Stopped.";
      else {
        recording.problem = error.message;
        complain(error, LETTERS[i].toLowerCase());
      }
    }
    recording.seconds = (performance.now() - begun) / 1000;
  }));
  running = null;
  at("run").disabled = false;
  at("stop").disabled = true;
  repaint.now();
  conclude(signal.aborted);
}

// At most once a frame of the screen: a step may take less.
function repaint() {
  paint ??= requestAnimationFrame(repaint.now);
}
repaint.now = () => {
  if (paint !== null) cancelAnimationFrame(paint);
  paint = null;
  replay.extend(moments(recordings));
  if (!replay.moments.length) views.forEach((view) => view.show(null));
  at("legend-hole").hidden = !recordings.some((recording) => recording.isInfill);
  at("legend-hurried").hidden = !recordings.some((recording) => recording.hurried);
};

function showMoment(index) {
  const moment = replay.moments[index];
  views.forEach((view, i) => view.show(moment[i]));
}

function conclude(stopped) {
  const done = recordings.filter((recording) => recording.end);
  if (stopped) return say(`Stopped after ${recordings.map(passes).join(" and ")}.`);
  if (done.length < recordings.length) return say("");
  say(done.map((recording, i) => (done.length > 1 ? `${LETTERS[i]}: ` : "") +
    `${plural(recording.usage.completion_tokens, "token", "tokens")} in ${passes(recording)}; ${REASONS[recording.end.reason]}.`).join(" "));
  if (done.length > 1) compare(done);
}

const passes = (recording) => plural(recording.passes, "forward pass", "forward passes");

function compare([a, b]) {
  const [few, many] = a.passes <= b.passes ? [a, b] : [b, a];
  const letter = (recording) => LETTERS[recordings.indexOf(recording)];
  const ratio = (many.passes / few.passes).toFixed(1);
  const words = few.passes === many.passes
    ? `Both took ${passes(a)}.`
    : `${letter(few)} took ${passes(few)}, ${letter(many)} took ${many.passes}: ${ratio} times as many.`;
  at("comparison").replaceChildren(el("strong", {}, words), " ",
    a.text === b.text ? "The texts are the same." : "The texts differ.");
  at("comparison").hidden = false;
}

function say(words) {
  at("status").textContent = words;
}

function complain(error, slot = "a") {
  const place = at("problem");
  place.hidden = !error;
  if (!error) {
    if (form) form.absolve();
    return;
  }
  const named = error.param ? el("b", {}, error.param) : null;
  const retry = error.retryAfter ? ` Try again in ${plural(Number(error.retryAfter), "second", "seconds")}.` : "";
  const hint = error.status === 401 && !form?.key ? " Enter a key under “Model and key”." : "";
  place.replaceChildren(...[named, named && ": ", error.message, retry, hint].filter(Boolean));
  if (form && error.param) form.blame(error.param, slot, error.message);
  place.scrollIntoView({ block: "nearest" });
}

// The form in the address: a link to it is a link to the request. Browsers complain of a page that
// writes there at every key.
function rememberSoon() {
  clearTimeout(remembering);
  remembering = setTimeout(remember, 300);
}

function remember() {
  clearTimeout(remembering);
  history.replaceState(null, "", `#${form.read()}`);
}

// Fills the form from the address, if that is a link to a request.
function follow() {
  if (linked().has("mode")) form.write(Object.fromEntries(linked()));
}

const linked = () => new URLSearchParams(location.hash.slice(1));

async function copyLink() {
  remember();
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied.");
  } catch {
    say("The link is in the address bar.");
  }
}

function nextTheme() {
  const root = document.documentElement, button = at("theme");
  const theme = THEMES[(THEMES.indexOf(root.dataset.theme || "auto") + 1) % THEMES.length];
  root.dataset.theme = theme;
  button.textContent = `Theme: ${theme}`;
}

async function save(kind) {
  if (at("saving").textContent) return;
  at("saving").textContent = "Drawing…";
  try {
    await new Promise((resolve) => setTimeout(resolve)); // the word is seen first
    const file = kind === "json" ? events() : await pictures(kind);
    const link = el("a", { href: URL.createObjectURL(file), download: `vdiff-replay.${kind}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) {
    complain(error);
  }
  at("saving").textContent = "";
}

function pictures(kind) {
  const film = new Film(recordings, replay.moments, at("legend"));
  return kind === "gif" ? film.gif() : film.strip();
}

function events() {
  const runs = recordings.map((recording) => ({
    strategy: title(recording.strategy), seconds: recording.seconds, events: recording.events,
  }));
  return new Blob([JSON.stringify({ seed, runs })], { type: "application/json" });
}

begin();
