// What one answer's stream has told, as frames that can be shown in any order. Knows no page.

// A cell is never changed, only replaced: whoever shows frames compares cells by identity.
//   state: "given", "masked", "filled" or "surplus" (filled, but no part of the answer)
//   span: the kind of the span it stands in. hole: the number of its hole, null outside of one
const masked = (span, hole) => ({ state: "masked", span, hole, text: "", confidence: 0, step: -1 });

export class Recording {
  // strategy: what was asked for, null for the model's own. begin: performance.now() when it was.
  // asked: {constraint, about, budget}, see form.js.
  constructor(strategy, begin, asked) {
    this.strategy = strategy;
    this.begin = begin;
    this.asked = asked;
    this.frames = [];
    this.events = [];
    this.texts = [""]; // of each hole
    this.lengths = []; // of the holes
    this.isInfill = false; // something is given behind a hole
    this.hurried = false;
    this.end = null; // {reason, passes}
    this.usage = null;
    this.problem = null;
    this.seconds = 0;
  }

  // One chunk of the stream.
  take(chunk) {
    this.seconds = (performance.now() - this.begin) / 1000;
    this.events.push({ seconds: Math.round(this.seconds * 1e4) / 1e4, chunk });
    const choice = chunk.choices[0];
    const text = choice && (choice.delta ? choice.delta.content : choice.text);
    if (text) {
      this.texts[choice.hole_index ?? 0] += text;
      if (this.last) this.last.textLengths = this.textLengths;
    }
    if (chunk.usage) this.usage = chunk.usage;
    if (chunk.diffusion) this.diffuse(chunk.diffusion);
    if (choice && choice.finish_reason) {
      this.end = { reason: choice.finish_reason, passes: chunk.diffusion.forward_passes };
    }
  }

  diffuse(diffusion) {
    if (diffusion.kind === "start") this.start(diffusion);
    else if (diffusion.kind === "snapshot") this.replace(diffusion);
    else if (diffusion.kind !== "end") this.update(diffusion);
    this.hurried ||= Boolean(diffusion.hurried);
  }

  get text() {
    return this.texts.join("");
  }

  get textLengths() {
    return this.texts.map((text) => text.length);
  }

  get last() {
    return this.frames[this.frames.length - 1];
  }

  get passes() {
    return this.end ? this.end.passes : this.last ? this.last.passes : 0;
  }

  // What a frame has cost. At the end as the server counts: what was filled behind an end token is
  // no token of the answer.
  figures(frame) {
    const atEnd = frame === this.last && this.end;
    const passes = atEnd ? this.end.passes : frame.passes;
    const tokens = atEnd && this.usage ? this.usage.completion_tokens : frame.filled;
    return { passes, rate: passes ? tokens / passes : 0, seconds: frame === this.last ? this.seconds : frame.seconds };
  }

  // tokens: empty where the model's server is of before it told them.
  start({ spans, tokens, mask_token_id: maskId }) {
    this.maskId = maskId;
    const cells = [];
    for (const { kind, length } of spans) {
      const given = kind === "prompt" || kind === "frozen", hole = kind === "hole" ? this.lengths.length : null;
      if (hole !== null) this.lengths.push(length);
      for (let i = 0; i < length; i++) {
        cells.push(given
          ? { state: "given", span: kind, hole, text: tokens[cells.length] ?? "", confidence: 0, step: -1 }
          : masked(kind, hole));
      }
    }
    this.texts = this.lengths.map(() => "");
    this.isInfill = this.lengths.length > 1 || spans.some(({ kind }) => kind === "frozen");
    this.total = cells.filter((cell) => cell.state === "masked").length;
    this.push({ step: -1, block: 0, forward_passes: 0 }, cells, new Map());
  }

  // Updates of one step, whatever their kinds, make one frame.
  update(update) {
    const same = this.last.step === update.step;
    const cells = same ? this.last.cells : this.last.cells.slice();
    const fresh = same ? this.last.fresh : new Map();
    update.positions.forEach((position, i) => {
      const text = update.tokens[i];
      cells[position] = update.kind === "remask"
        ? masked(cells[position].span, cells[position].hole)
        : filled(cells[position], text, update.confidences[i], update.step);
      fresh.set(position, update.kind);
    });
    if (same) this.measure(this.last);
    else this.push(update, cells, fresh);
    if (update.hurried) {
      this.last.hurried = true;
      this.last.numHurried++;
    }
  }

  // The whole canvas: it replaces all that came before.
  replace(snapshot) {
    const fresh = new Map();
    const cells = this.last.cells.map((cell, position) => {
      if (cell.state === "given") return cell;
      if (snapshot.token_ids[position] === this.maskId) {
        if (cell.state === "masked") return cell;
        fresh.set(position, "remask");
        return masked(cell.span, cell.hole);
      }
      const [text, confidence] = [snapshot.tokens[position] ?? "", snapshot.confidences[position]];
      if (cell.state !== "masked" && cell.text === text && cell.confidence === confidence) return cell;
      fresh.set(position, cell.state === "masked" ? "unmask" : "revise");
      return filled(cell, text, confidence, snapshot.step);
    });
    this.push(snapshot, cells, fresh);
  }

  push({ step, block, forward_passes: passes }, cells, fresh) {
    const frame = { step, block, passes, cells, fresh, textLengths: this.textLengths, seconds: this.seconds,
      hurried: false, numHurried: this.last ? this.last.numHurried : 0 };
    this.measure(frame);
    this.frames.push(frame);
  }

  measure(frame) {
    frame.filled = frame.cells.filter((cell) => cell.state === "filled" || cell.state === "surplus").length;
  }
}

function filled({ span, hole }, text, confidence, step) {
  return { state: span === "surplus" ? "surplus" : "filled", span, hole, text, confidence, step };
}

// The moments of a replay: for each, every recording's frame. One recording has a moment for each
// of its frames; several are set side by side by forward passes.
export function moments(recordings) {
  const shown = recordings.filter((recording) => recording.last);
  if (shown.length === 0) return [];
  if (shown.length === 1) {
    return shown[0].frames.map((frame) => recordings.map((r) => (r === shown[0] ? frame : null)));
  }
  const passes = new Set(shown.flatMap((recording) => recording.frames.map((frame) => frame.passes)));
  const at = recordings.map(() => 0);
  return [...passes].sort((a, b) => a - b).map((limit) =>
    recordings.map(({ frames }, i) => {
      while (at[i] + 1 < frames.length && frames[at[i] + 1].passes <= limit) at[i]++;
      return frames[at[i]] || null;
    }));
}

// "confidence_threshold" -> "Confidence threshold", with what was set.
export function title(strategy) {
  if (!strategy) return "Model’s default";
  const { type, ...parameters } = strategy;
  const words = type[0].toUpperCase() + type.slice(1).replaceAll("_", " ");
  const set = Object.entries(parameters).map(([name, value]) => `${name} ${value}`.replaceAll("_", " "));
  return [words, set.join(", ")].filter(Boolean).join(" · ");
}
