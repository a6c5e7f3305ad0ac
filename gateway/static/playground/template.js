// Documents with holes as they are written: "Tom had a{{2}} ball. He{{1..9}} home." The client reads
// the same (vdiff_grpc/client/templates.py). Knows no page.

import { Problem } from "./api.js";

// Of more than two braces the last two open the hole.
const OPENING = /(\\*)(\{{2,})/g;
const HEAD = /(?:(\d{1,9})\.\.)?(\d{1,9})(\}\}|:(regex|choice|json_schema)=)/y;
const CLOSING = /\}\}(?!\})/g; // a regex may end with braces of its own
const BRACES = /(?=\}\})/g; // of JSON it is told by what stands before them

const refused = (message) => new Problem(message, { param: "infill" });
const shown = (text) => (text.length > 40 ? `${text.slice(0, 40)}...` : text);

// The API's segments: texts and holes. Throws a Problem.
export function parse(text) {
  const segments = [];
  let given = "", position = 0;
  for (;;) {
    OPENING.lastIndex = position;
    const opening = OPENING.exec(text);
    if (!opening) break;
    const [all, slashes, braces] = opening;
    given += text.slice(position, opening.index) + slashes.slice(slashes.length - Math.floor(slashes.length / 2));
    position = opening.index + all.length;
    if (slashes.length % 2) {
      given += braces;
      continue;
    }
    given += braces.slice(2);
    if (given) segments.push(given);
    given = "";
    const [hole, end] = holeAt(text, position);
    segments.push(hole);
    position = end;
  }
  given += text.slice(position);
  if (!segments.length) throw refused("There is no hole: {{4}} is one of 4 positions, {{2..9}} of 2 to 9.");
  return given ? [...segments, given] : segments;
}

// The hole whose inside begins there, and where what follows begins.
function holeAt(text, begin) {
  HEAD.lastIndex = begin;
  const head = HEAD.exec(text);
  if (!head) {
    throw refused(`${shown("{{" + text.slice(begin))} is not a hole, which is {{4}}, {{2..9}} or {{4:regex=...}}, {{4:choice=a|b}}, {{4:json_schema=...}}; \\{{ is the braces themselves.`);
  }
  const [, least, most, , kind] = head;
  const hole = least ? { min_length: Number(least), max_length: Number(most) } : { length: Number(most) };
  if (!kind) return [hole, HEAD.lastIndex];
  const from = HEAD.lastIndex;
  for (const closing of text.matchAll(kind === "json_schema" ? BRACES : CLOSING)) {
    if (closing.index < from) continue;
    const body = text.slice(from, closing.index), end = closing.index + 2;
    if (kind === "regex") return [{ ...hole, guided_regex: body }, end];
    if (kind === "choice") return [{ ...hole, guided_choice: body.split("|") }, end];
    try {
      return [{ ...hole, response_format: schemaFormat(JSON.parse(body)) }, end];
    } catch { /* the braces are the schema's */ }
  }
  throw refused(`${shown("{{" + text.slice(begin))} does not end with ${kind === "json_schema" ? "JSON and " : ""}}}.`);
}

export const schemaFormat = (schema) => ({ type: "json_schema", json_schema: { schema } });

// The way back, of segments that are text or holes.
export function write(segments) {
  return segments.map((one, i) => (typeof one === "string" ? escaped(one, i + 1 < segments.length) : holeText(one))).join("");
}

function escaped(text, beforeHole) {
  const tail = beforeHole ? /\\*\{*$/.exec(text)[0] : "";
  const [, slashes, braces] = /(\\*)(\{*)/.exec(tail);
  return text.slice(0, text.length - tail.length).replace(OPENING, (_, s, b) => `${s}${s}\\${b}`) + slashes + slashes + braces;
}

function holeText({ length, min_length: least, max_length: most, guided_regex: regex, guided_choice: choice, response_format: format }) {
  const kind = regex !== undefined ? `:regex=${regex}` : choice ? `:choice=${choice.join("|")}`
    : format ? `:json_schema=${JSON.stringify(format.json_schema.schema)}` : "";
  return `{{${most ? `${least || 1}..${most}` : length}${kind}}}`;
}

// What a document gives, as the page shows it: the text before the first hole and after each, and
// the holes.
export function parts(segments) {
  const texts = [""], holes = [];
  for (const one of segments) {
    if (typeof one === "string") texts[texts.length - 1] += one;
    else {
      holes.push(one);
      texts.push("");
    }
  }
  return { texts, holes };
}
