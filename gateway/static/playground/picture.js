// Draws a replay's frames on a canvas of their own, and makes files of them. Colours are the style
// sheet's, read from the page, so that pictures are light or dark as it is.

import { encodeGif } from "./gif.js";
import { title } from "./recording.js";
import { el, look, parts, plural } from "./view.js";

const PANEL = 560, PAD = 20, LINE = 30, SIZE = 16, HEAD = 58, MASK = 30, INSET = 3;
const GIVEN = 60; // given tokens shown on either side of a hole: a long prompt would be all there is
const MAX_FRAMES = 120, STILLS = 6;
const FONT = `${SIZE}px system-ui, sans-serif`;

// recordings, and the moments of their replay (see recording.js). `place`: where to read colours.
export class Film {
  constructor(recordings, moments, place) {
    this.place = place;
    this.colours = new Map();
    const count = Math.min(moments.length, MAX_FRAMES);
    this.moments = Array.from({ length: count }, (_, i) =>
      moments[count === 1 ? 0 : Math.round((i * (moments.length - 1)) / (count - 1))]);
    this.canvas = document.createElement("canvas");
    this.pen = this.canvas.getContext("2d", { willReadFrequently: true });
    this.pen.font = FONT;
    this.panels = recordings.map((recording, i) => ({ recording, x: i * PANEL, ...this.layout(recording) }));
    this.width = PANEL * this.panels.length;
    this.height = HEAD + Math.max(...this.panels.map((panel) => panel.rows)) * LINE + PAD;
  }

  // Where each position stands: as wide as its widest text, so that nothing moves.
  layout(recording) {
    const { frames, last } = recording, spots = [];
    if (!last) return { spots, rows: 1 };
    const open = last.cells.map((cell) => cell.state !== "given");
    const near = (p) => open.slice(Math.max(0, p - GIVEN), p + GIVEN + 1).includes(true);
    const space = this.pen.measureText(" ").width;
    const widths = last.cells.map((cell) => (cell.state === "masked" ? MASK : 0)), seen = last.cells.map(() => null);
    for (const { cells } of frames) {
      cells.forEach((cell, p) => {
        if (cell === seen[p]) return;
        seen[p] = cell;
        if (cell.state !== "masked") widths[p] = Math.max(widths[p], this.measure(cell));
      });
    }
    let x = PAD, row = 0;
    const from = last.cells.findIndex((_, p) => near(p));
    for (let p = from; p < last.cells.length && near(p); p++) {
      // A word stays in one piece, as long as a line holds it.
      let width = widths[p];
      if (x > PAD && parts(last.cells[p]).space) x += space;
      for (let q = p + 1; q < last.cells.length && near(q) && joins(last.cells[q]); q++) width += widths[q];
      if (x + Math.min(width, PANEL / 2) > PANEL - PAD && x > PAD) [x, row] = [PAD, row + 1];
      spots.push({ position: p, x, row, width: widths[p] });
      x += widths[p] + (last.cells[p].state === "given" ? 0 : 2);
      if (last.cells[p].text.includes("\n")) [x, row] = [PAD, row + 1];
    }
    return { spots, rows: row + 1 };
  }

  measure(cell) {
    return this.pen.measureText(line(cell)).width + 2 * inset(cell);
  }

  // What the style sheet says of an element of these classes.
  colour(names) {
    if (!this.colours.has(names)) {
      const probe = this.place.appendChild(el("span", { class: names.replace("fresh", "fresh still") }));
      const { color, backgroundColor, outlineColor, borderColor } = getComputedStyle(probe);
      this.colours.set(names, { color, backgroundColor, outlineColor, borderColor });
      probe.remove();
    }
    return this.colours.get(names);
  }

  draw(i) {
    this.begin(this.height);
    this.paint(this.moments[i], 0);
    return this.pen.getImageData(0, 0, this.width, this.height).data;
  }

  begin(height) {
    this.canvas.width = this.width;
    this.canvas.height = height;
    this.pen.fillStyle = this.colour("panel").backgroundColor;
    this.pen.fillRect(0, 0, this.width, height);
  }

  paint(moment, top) {
    this.panels.forEach((panel, i) => this.panel(panel, moment[i], top));
  }

  panel({ recording, spots, x: left }, frame, top) {
    const { pen } = this;
    const ink = this.colour("panel").color, dim = this.colour("dim").color;
    pen.textBaseline = "middle";
    pen.font = `600 ${SIZE - 2}px system-ui, sans-serif`;
    pen.fillStyle = ink;
    pen.textAlign = "left";
    const { constraint } = recording.asked;
    const head = [title(recording.strategy), constraint, frame?.numHurried ? "hurried" : ""].filter(Boolean).join(" · ");
    pen.fillText(head, left + PAD, top + 26, PANEL - 2 * PAD - 220);
    if (!frame) return;
    pen.font = `${SIZE - 3}px system-ui, sans-serif`;
    pen.fillStyle = dim;
    pen.textAlign = "right";
    const { passes, rate } = recording.figures(frame);
    pen.fillText(`${plural(passes, "forward pass", "forward passes")} · ${rate.toFixed(2)} per pass`,
      left + PANEL - PAD, top + 26);
    pen.textAlign = "left";
    pen.fillStyle = this.colour("cell masked").backgroundColor;
    pen.fillRect(left + PAD, top + 42, PANEL - 2 * PAD, 3);
    pen.fillStyle = this.colour("accent").color;
    pen.fillRect(left + PAD, top + 42, ((PANEL - 2 * PAD) * frame.filled) / Math.max(1, recording.total), 3);
    pen.font = FONT;
    for (const { position, x, row, width } of spots) {
      this.cell(frame.cells[position], frame.fresh.get(position), left + x, top + HEAD + row * LINE, width);
      if (!recording.isInfill || frame.cells[position].hole === null) continue;
      pen.fillStyle = this.colour("accent").color;
      pen.fillRect(left + x, top + HEAD + (row + 1) * LINE - 2, width, 2);
    }
  }

  cell(cell, kind, x, y, width) {
    const { pen } = this;
    const names = look(cell, kind), { color, backgroundColor, outlineColor } = this.colour(names);
    const masked = cell.state === "masked", margin = masked ? 8 : 3;
    pen.fillStyle = backgroundColor;
    pen.beginPath();
    pen.roundRect(x, y + margin, width, LINE - 2 * margin, 4);
    pen.fill();
    if (kind) {
      pen.strokeStyle = outlineColor;
      pen.lineWidth = 1.5;
      pen.setLineDash(kind === "unmask" ? [] : [4, 2]);
      pen.stroke();
      pen.setLineDash([]);
    }
    if (masked) return;
    pen.fillStyle = color;
    pen.fillText(line(cell), x + inset(cell), y + LINE / 2 + 1);
  }

  async gif() {
    const count = this.moments.length;
    const bytes = await encodeGif({
      width: this.width, height: this.height, count,
      frame: (i) => this.draw(i),
      delay: (i) => (i === count - 1 ? 250 : i === 0 ? 60 : 14),
    });
    return new Blob([bytes], { type: "image/gif" });
  }

  // Some of the moments, one below the other.
  async strip() {
    const count = Math.min(STILLS, this.moments.length);
    this.begin(this.height * count);
    for (let i = 0; i < count; i++) {
      const at = count === 1 ? 0 : Math.round((i * (this.moments.length - 1)) / (count - 1));
      this.paint(this.moments[at], i * this.height);
    }
    return new Promise((resolve) => { this.canvas.toBlob(resolve, "image/png"); });
  }
}

const inset = (cell) => (cell.state === "given" ? 0 : INSET);
const line = (cell) => parts(cell).text.replaceAll("\n", "");
const joins = (cell) => cell.state !== "masked" && /^\S/.test(cell.text);
