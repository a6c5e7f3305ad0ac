// The replay: which moment is shown, and the ways to move it. Knows nothing of how one is drawn.

const STEPS_PER_SECOND = 6;
const SVG = "http://www.w3.org/2000/svg";
const BAR = 10, BAR_HEIGHT = 34;

export class Replay {
  // show(index): draws that moment. places: the page's own elements, by their ids.
  constructor(show) {
    this.show = show;
    this.moments = [];
    this.index = 0;
    this.timer = null;
    for (const id of ["replay", "play", "moment", "speed", "where", "bars"]) this[`_${id}`] = document.getElementById(id);
    this._moment.addEventListener("input", () => { this.pause(); this.go(this._moment.valueAsNumber); });
    this._play.addEventListener("click", () => this.toggle());
    this._speed.addEventListener("change", () => { if (this.timer) this.play(); });
    document.addEventListener("keydown", (event) => this.key(event));
  }

  // Empties it: a new run begins, and is followed as it comes.
  clear() {
    this.pause();
    this.moments = [];
    this.index = 0;
    this._replay.hidden = true;
    this._bars.replaceChildren();
  }

  get atEnd() { return this.index >= this.moments.length - 1; }

  // More has come. Whoever looks at the last moment goes on doing so.
  extend(moments) {
    const follows = this.atEnd && !this.timer;
    this.moments = moments;
    this._replay.hidden = moments.length === 0;
    this._moment.max = Math.max(0, moments.length - 1);
    this.drawBars();
    if (moments.length) this.go(follows ? moments.length - 1 : this.index);
  }

  go(index) {
    this.index = Math.max(0, Math.min(index, this.moments.length - 1));
    this._moment.value = this.index;
    const frames = this.moments[this.index].filter(Boolean);
    const passes = Math.max(...frames.map((frame) => frame.passes));
    const last = Math.max(...this.moments.at(-1).filter(Boolean).map((frame) => frame.passes));
    const said = `forward pass ${passes} of ${last}` + (frames.length === 1 && frames[0].step >= 0 ? ` · block ${frames[0].block + 1}` : "");
    this._where.textContent = said;
    this._moment.setAttribute("aria-valuetext", said);
    for (const bar of this._bars.querySelectorAll("rect")) bar.classList.toggle("done", Number(bar.dataset.at) <= this.index);
    this.show(this.index);
  }

  toggle() {
    if (this.timer) this.pause();
    else this.play();
  }

  play() {
    clearInterval(this.timer);
    if (this.atEnd) this.go(0);
    this.timer = setInterval(() => {
      this.go(this.index + 1);
      if (this.atEnd) this.pause();
    }, 1000 / (STEPS_PER_SECOND * Number(this._speed.value)));
    this.button("⏸", "Pause");
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.button("▶", "Play");
  }

  button(sign, name) {
    this._play.textContent = sign;
    this._play.setAttribute("aria-label", name);
  }

  // Arrows, Home, End and space, wherever they mean nothing else.
  key(event) {
    if (!this.moments.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const place = event.target.closest("input, textarea, select, button, a, summary");
    if (place && place !== this._moment) return;
    const moves = { ArrowLeft: this.index - 1, ArrowRight: this.index + 1, Home: 0, End: this.moments.length - 1 };
    if (event.key === " ") this.toggle();
    else if (event.key in moves) { this.pause(); this.go(moves[event.key]); }
    else return;
    event.preventDefault();
  }

  // How many positions each moment filled: a row for each run.
  drawBars() {
    const runs = this.moments.length ? this.moments[0].length : 0;
    const counts = Array.from({ length: runs }, (_, run) => this.moments.map((moment, i) => {
      const frame = moment[run];
      if (!frame || (i && this.moments[i - 1][run] === frame)) return 0;
      return frame.fresh.size;
    }));
    const most = Math.max(1, ...counts.flat());
    this._bars.replaceChildren(...counts.map((row, run) => {
      const svg = document.createElementNS(SVG, "svg");
      svg.setAttribute("viewBox", `0 0 ${row.length * BAR} ${BAR_HEIGHT}`);
      svg.setAttribute("preserveAspectRatio", "none");
      row.forEach((count, i) => {
        const height = (count / most) * BAR_HEIGHT;
        const rect = svg.appendChild(document.createElementNS(SVG, "rect"));
        const box = { x: i * BAR + 1, width: BAR - 2, y: BAR_HEIGHT - height, height };
        for (const [name, value] of Object.entries(box)) rect.setAttribute(name, value);
        rect.dataset.at = i;
        rect.classList.toggle("hurried", count > 0 && this.moments[i][run].hurried);
      });
      return svg;
    }));
  }
}
