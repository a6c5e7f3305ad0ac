// Writes animated GIFs (GIF89a): one palette for all frames, LZW. Knows nothing of what is drawn.

const PALETTE_SIZE = 256;
const bucket = (data, i) => ((data[i] >> 3) << 10) | ((data[i + 1] >> 3) << 5) | (data[i + 2] >> 3);

// The file's bytes. `frame(i)` gives the RGBA bytes of frame i and is asked twice for each;
// `delay(i)` is in hundredths of a second. Lets the page breathe between frames.
export async function encodeGif({ width, height, count, frame, delay }) {
  const palette = new Palette();
  for (let i = 0; i < count; i++) {
    palette.count(frame(i));
    await breath();
  }
  palette.choose();
  const out = new Bytes();
  out.text("GIF89a");
  out.words(width, height);
  out.bytes(0xf7, 0, 0); // a global palette of 256 colours
  out.bytes(...palette.colours());
  out.bytes(0x21, 0xff, 11);
  out.text("NETSCAPE2.0");
  out.bytes(3, 1, 0, 0, 0); // for ever
  let before = null;
  for (let i = 0; i < count; i++) {
    const pixels = palette.indices(frame(i));
    const box = changed(before, pixels, width, height);
    out.bytes(0x21, 0xf9, 4, 0x04); // what was drawn stays
    out.words(delay(i));
    out.bytes(0, 0, 0x2c);
    out.words(box.x, box.y, box.width, box.height);
    out.bytes(0);
    lzw(out, cut(pixels, box, width));
    before = pixels;
    await breath();
  }
  out.bytes(0x3b);
  return out.done();
}

const breath = () => new Promise((resolve) => setTimeout(resolve));

// The most frequent colours, in steps of 8; each as the mean of what it stands for.
class Palette {
  constructor() {
    this.counts = new Uint32Array(32768);
    this.sums = [0, 1, 2].map(() => new Float64Array(32768));
    this.entries = [];
    this.nearest = new Int16Array(32768).fill(-1);
  }

  count(data) {
    for (let i = 0; i < data.length; i += 4) {
      const at = bucket(data, i);
      this.counts[at]++;
      for (let c = 0; c < 3; c++) this.sums[c][at] += data[i + c];
    }
  }

  choose() {
    const used = [...this.counts.keys()].filter((at) => this.counts[at]);
    used.sort((a, b) => this.counts[b] - this.counts[a]);
    this.entries = used.slice(0, PALETTE_SIZE).map((at, index) => {
      this.nearest[at] = index;
      return this.sums.map((sum) => Math.round(sum[at] / this.counts[at]));
    });
  }

  colours() {
    const flat = this.entries.flat();
    return [...flat, ...new Array(PALETTE_SIZE * 3 - flat.length).fill(0)];
  }

  indices(data) {
    const pixels = new Uint8Array(data.length / 4);
    for (let p = 0, i = 0; p < pixels.length; p++, i += 4) {
      const at = bucket(data, i);
      if (this.nearest[at] < 0) this.nearest[at] = this.find(data[i], data[i + 1], data[i + 2]);
      pixels[p] = this.nearest[at];
    }
    return pixels;
  }

  find(r, g, b) {
    let best = 0, least = Infinity;
    this.entries.forEach((entry, index) => {
      const distance = (entry[0] - r) ** 2 + (entry[1] - g) ** 2 + (entry[2] - b) ** 2;
      if (distance < least) [best, least] = [index, distance];
    });
    return best;
  }
}

// The smallest box with all pixels that differ; one pixel where none does.
function changed(before, pixels, width, height) {
  if (!before) return { x: 0, y: 0, width, height };
  let left = width, right = 0, top = height, bottom = 0;
  for (let y = 0, p = 0; y < height; y++) {
    for (let x = 0; x < width; x++, p++) {
      if (before[p] === pixels[p]) continue;
      if (x < left) left = x;
      if (x > right) right = x;
      if (y < top) top = y;
      bottom = y;
    }
  }
  if (top === height) return { x: 0, y: 0, width: 1, height: 1 };
  return { x: left, y: top, width: right - left + 1, height: bottom - top + 1 };
}

function cut(pixels, box, width) {
  const part = new Uint8Array(box.width * box.height);
  for (let y = 0; y < box.height; y++) {
    const from = (box.y + y) * width + box.x;
    part.set(pixels.subarray(from, from + box.width), y * box.width);
  }
  return part;
}

const CLEAR = 256, END = 257, MAX_CODES = 4096;
const followers = new Uint16Array(MAX_CODES * 256); // [code, next pixel] -> longer code, 0: none

function lzw(out, pixels) {
  const block = [];
  let held = 0, bits = 0, size = 9, next = END + 1;
  const put = (code) => {
    held |= code << bits;
    for (bits += size; bits >= 8; bits -= 8, held >>>= 8) {
      block.push(held & 255);
      if (block.length === 255) out.bytes(255, ...block.splice(0));
    }
  };
  out.bytes(8);
  followers.fill(0);
  put(CLEAR);
  let code = pixels[0];
  for (let p = 1; p < pixels.length; p++) {
    const slot = code * 256 + pixels[p];
    if (followers[slot]) {
      code = followers[slot];
      continue;
    }
    put(code);
    if (next < MAX_CODES) {
      if (next === 1 << size) size++;
      followers[slot] = next++;
    } else {
      put(CLEAR);
      followers.fill(0);
      size = 9;
      next = END + 1;
    }
    code = pixels[p];
  }
  put(code);
  // The reader has by now one code more than we have put.
  if (next === 1 << size && size < 12) size++;
  put(END);
  if (bits) block.push(held & 255);
  if (block.length) out.bytes(block.length, ...block);
  out.bytes(0);
}

class Bytes {
  constructor() {
    this.buffer = new Uint8Array(1 << 16);
    this.length = 0;
  }

  bytes(...values) {
    if (this.length + values.length > this.buffer.length) {
      const larger = new Uint8Array(this.buffer.length * 2);
      larger.set(this.buffer);
      this.buffer = larger;
    }
    this.buffer.set(values, this.length);
    this.length += values.length;
  }

  words(...values) {
    for (const value of values) this.bytes(value & 255, value >> 8);
  }

  text(characters) {
    this.bytes(...[...characters].map((character) => character.charCodeAt(0)));
  }

  done() {
    return this.buffer.slice(0, this.length);
  }
}
