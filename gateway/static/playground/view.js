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
  // letter: "A" or "B" where two stand side by side. given: {prompt, suffix}, shown around the text.
  constructor(letter, recording, given, seed) {
    this.recording = recording;
    this.given = given;
    this.frame = null;
    this.places = [];
    this.figures = {};
    const figure = (name, label) => {
      this.figures[name] = el("dd", { "data-figure": name }, "–");
      return el("div", {}, el("dt", {}, label), this.figures[name]);
    };
    const name = title(recording.strategy);
    this.canvas = el("div", { class: "canvas", role: "img" });
    this.hint = el("p", { class: "hint" }, "Point at a token to see how sure the model was.");
    this.text = el("p", { class: "text", "data-text": "" });
    this.problem = el("p", { class: "problem", hidden: true });
    this.node = el("article", { class: "run", "aria-label": letter ? `${letter}: ${name}` : name },
      el("h2", {}, letter ? el("span", { class: "letter" }, letter) : null, el("span", {}, name),
        el("span", { class: "seed" }, `seed ${seed}`)),
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
    set("seconds", `${seconds.toFixed(2)} s`);
    const { prompt, suffix } = this.given;
    this.text.replaceChildren(prompt ? el("span", { class: "given" }, prompt) : "",
      el("span", { class: "answer" }, recording.text.slice(0, frame.textLength)),
      suffix ? el("span", { class: "given" }, suffix) : "");
  }

  // Cells that are as they were keep their element: only what changed is touched.
  paint(frame) {
    const before = this.frame;
    frame.cells.forEach((cell, position) => {
      const kind = frame.fresh.get(position);
      const same = before && this.cells[position] === cell && this.kinds[position] === kind;
      if (same) return;
      const place = this.places[position] ||= this.canvas.appendChild(el("span", { "data-position": position }));
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
      cell.state === "masked" ? "masked" : JSON.stringify(cell.text),
      cell.state === "given" ? "given" : null,
      cell.state === "surplus" ? "no part of the answer" : null,
      cell.step >= 0 ? `confidence ${(cell.confidence * 100).toFixed(1)} %` : null,
      cell.step >= 0 ? `from step ${cell.step + 1}` : null,
      kind ? `${WORDS[kind]} just now` : null].filter(Boolean).join(" · ");
  }
}
