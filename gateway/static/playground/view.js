// Shows one recording: its canvas, its text and its figures. Decides nothing.

import { title } from "./recording.js";

export const LEVELS = 10; // of confidence; each is a class of the style sheet

export const SPECIAL = /^<[^\s>]{2,}>$|^\[[A-Z]{2,}\]$/; // "<|eos|>", "[SEP]": named, not written

export function el(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

// How a cell looks: class names, shared with the exported pictures.
export function look(cell, kind) {
  const names = ["cell", cell.state];
  if (cell.state === "filled") names.push("c" + Math.min(LEVELS - 1, Math.floor(cell.confidence * LEVELS)));
  if (SPECIAL.test(cell.text)) names.push("special");
  if (kind) names.push("fresh", kind);
  return names.join(" ");
}

// A cell's text as it is shown: the space before it, which is not coloured, and the rest. A line's
// end is shown, and then it is one.
export function parts({ state, text }) {
  if (state === "masked") return { space: "", text: "" };
  const space = /^ ?/.exec(text)[0];
  return { space, text: text.slice(space.length).replaceAll("\r", "").replaceAll("\n", "↵\n") || "·" };
}

export const plural = (n, one, many) => `${n} ${n === 1 ? one : many}`;

const WORDS = { unmask: "filled", revise: "replaced", remask: "masked again" };

export class View {
  // letter: "A" or "B" where two stand side by side. given: {texts, holes}, see form.js; shown around
  // what fills the holes.
  constructor(letter, recording, given, seed) {
    this.recording = recording;
    this.given = given;
    this.frame = null;
    this.places = [];
    this.holes = [];
    this.figures = {};
    const figure = (name, label) => {
      this.figures[name] = el("dd", { "data-figure": name }, "–");
      return el("div", {}, el("dt", {}, label), this.figures[name]);
    };
    const name = title(recording.strategy);
    const { constraint, about, budget } = recording.asked;
    this.hurried = el("li", { class: "hurried", hidden: true });
    this.badges = el("ul", { class: "badges", "aria-label": "What holds" },
      constraint ? el("li", { title: about }, constraint) : null,
      budget !== null ? el("li", {}, `budget ${budget} ms`) : null, this.hurried);
    this.canvas = el("div", { class: "canvas", role: "img" });
    this.hint = el("p", { class: "hint" }, "Point at a token to see how sure the model was.");
    this.text = el("p", { class: "text", "data-text": "" });
    this.problem = el("p", { class: "problem", hidden: true });
    this.node = el("article", { class: "run", "aria-label": letter ? `${letter}: ${name}` : name },
      el("h2", {}, letter ? el("span", { class: "letter" }, letter) : null, el("span", {}, name),
        el("span", { class: "seed" }, `seed ${seed}`)),
      this.badges,
      el("dl", { class: "figures" }, figure("passes", "Forward passes"), figure("rate", "Tokens / pass"),
        figure("filled", "Filled"), figure("seconds", "Time")),
      this.problem, this.canvas, this.hint,
      el("h3", {}, "Committed text"), this.text);
    for (const event of ["mouseover", "click"]) {
      this.canvas.addEventListener(event, ({ target }) => this.explain(target));
    }
  }

  // frame: null where nothing has come yet.
  show(frame) {
    const { recording } = this;
    this.problem.hidden = !recording.problem;
    this.problem.textContent = recording.problem || "";
    this.node.classList.toggle("refused", Boolean(recording.problem) && !frame);
    if (!frame) return;
    this.paint(frame);
    this.canvas.classList.toggle("ended", frame === recording.last && recording.end !== null);
    this.canvas.setAttribute("aria-label",
      `Canvas: ${frame.filled} of ${recording.total} positions filled after ${plural(frame.passes, "forward pass", "forward passes")}`);
    const { passes, rate, seconds } = recording.figures(frame);
    const set = (name, value) => { this.figures[name].textContent = value; };
    set("passes", passes);
    set("rate", rate.toFixed(2));
    set("filled", `${frame.filled} / ${recording.total}`);
    const { budget } = recording.asked;
    set("seconds", budget === null ? `${seconds.toFixed(2)} s` : `${seconds.toFixed(2)} / ${budget / 1000} s`);
    this.figures.seconds.classList.toggle("late", budget !== null && seconds * 1000 > budget);
    // A slow reader has missed which steps it were.
    const atEnd = frame === recording.last && recording.end && recording.hurried;
    this.hurried.hidden = !frame.numHurried && !atEnd;
    this.hurried.textContent = frame.numHurried ? `hurried at ${plural(frame.numHurried, "step", "steps")}` : "hurried";
    const given = (text) => (text ? el("span", { class: "given" }, text) : "");
    const { texts } = this.given;
    this.text.replaceChildren(given(texts[0]), ...recording.texts.flatMap((text, i) => [
      el("span", { class: "answer" }, text.slice(0, frame.textLengths[i])), given(texts[i + 1])]));
  }

  // Where a position is shown: those of a hole stand in an element of their own, which tells its
  // length.
  place(cell, position) {
    const place = el("span", { "data-position": position });
    if (cell.hole === null || !this.recording.isInfill) return this.canvas.appendChild(place);
    const length = this.recording.lengths[cell.hole];
    const title = `Hole ${cell.hole + 1}: ${this.heldTo(cell.hole, length)}`;
    this.holes[cell.hole] ||= this.canvas.appendChild(el("span", { class: "hole", "data-length": length, title }));
    return this.holes[cell.hole].appendChild(place);
  }

  // A hole's length, and what was asked for.
  heldTo(number, length) {
    const hole = this.given.holes[number] || {};
    return [plural(length, "position", "positions") + (hole.max_length ? ` of ${hole.min_length || 1} to ${hole.max_length}` : ""),
      hole.guided_regex === undefined ? null : `regex ${hole.guided_regex}`,
      hole.guided_choice ? `choice ${hole.guided_choice.join(" | ")}` : null,
      hole.response_format ? "JSON schema" : null].filter(Boolean).join(", ");
  }

  // Cells that are as they were keep their element: only what changed is touched.
  paint(frame) {
    const before = this.frame;
    frame.cells.forEach((cell, position) => {
      const kind = frame.fresh.get(position);
      const same = before && this.cells[position] === cell && this.kinds[position] === kind;
      if (same) return;
      const place = this.places[position] ||= this.place(cell, position);
      const { space, text } = parts(cell);
      place.replaceChildren(space, el("span", { class: look(cell, kind) }, text));
    });
    this.frame = frame;
    this.cells = frame.cells.slice();
    this.kinds = frame.cells.map((_, position) => frame.fresh.get(position));
    if (this.explained) this.explain(this.explained);
  }

  explain(target) {
    const place = target.closest("[data-position]");
    if (!place) return;
    const position = Number(place.dataset.position), cell = this.frame.cells[position];
    const kind = this.frame.fresh.get(position);
    if (this.explained) this.explained.classList.remove("marked");
    (this.explained = place).classList.add("marked");
    this.hint.textContent = [`Position ${position}`,
      cell.hole !== null && this.recording.isInfill ? `hole ${cell.hole + 1}: ${this.heldTo(cell.hole, this.recording.lengths[cell.hole])}` : null,
      cell.state === "masked" ? "masked" : JSON.stringify(cell.text),
      cell.state === "given" ? "given" : null,
      cell.state === "surplus" ? "no part of the answer" : null,
      cell.step >= 0 ? `confidence ${(cell.confidence * 100).toFixed(1)} %` : null,
      cell.step >= 0 ? `from step ${cell.step + 1}` : null,
      kind ? `${WORDS[kind]} just now` : null].filter(Boolean).join(" · ");
  }
}
