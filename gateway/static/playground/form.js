// The request as the page's form: its fields come from the gateway's own document, its values go to
// and come from the link's fragment. Sends nothing.

import { Problem } from "./api.js";
import { parse, parts, schemaFormat, write } from "./template.js";
import { el } from "./view.js";

const SETTINGS = ["max_tokens", "temperature", "top_p", "block_length", "steps", "cfg_scale",
  "latency_budget_ms", "cache", "cache_refresh_steps"];
const LABELS = { latency_budget_ms: "latency budget (ms)" };
const SLOTS = ["a", "b"];
const PATHS = { completion: "/v1/completions", chat: "/v1/chat/completions" };
// The API's names of what the page calls otherwise.
const NAMES = [[/^messages.*/, "prompt"], [/^max_completion_tokens$/, "max_tokens"], [/^infill.*/, "document"],
  [/^response_format.*/, "schema"], [/^guided_regex.*/, "regex"], [/^guided_choice.*/, "choice"]];
const MAX_SHOWN = 40; // characters of a constraint
const MAX_DRAWN_SEED = 2 ** 32;

const words = (name) => {
  const text = name.replaceAll("_", " ");
  return text[0].toUpperCase() + text.slice(1);
};
// What a field may be besides null.
const inner = (schema) => (schema.anyOf || [schema]).find((one) => one.type !== "null");

export class Form {
  // changed: called when anything was changed by hand.
  constructor(node, document_, changed) {
    this.node = node;
    this.document = document_;
    this.parts = node.elements;
    const schemas = document_.components.schemas;
    this.fields = schemas.CompletionRequest.properties;
    this.strategies = new Map(references(this.fields.strategy)
      .map((name) => schemas[name])
      .map((schema) => [schema.properties.type.enum[0], schema]));
    const settings = node.querySelector("#settings-fields");
    for (const name of SETTINGS) settings.append(field(name, this.fields[name], LABELS[name] || name));
    for (const slot of SLOTS) {
      this.showParameters(slot);
      this.parts[`${slot}.type`].addEventListener("change", () => this.showParameters(slot));
    }
    this.offer(null);
    this.examples();
    node.addEventListener("input", ({ target }) => {
      absolve(target);
      this.arrange();
      changed();
    });
    this.arrange();
  }

  // Limits the choices to what the model can do; null: not known.
  offer(model) {
    this.model = model;
    for (const slot of SLOTS) {
      const select = this.parts[`${slot}.type`], chosen = select.value;
      const types = [...this.strategies.keys()].filter((type) => !model || model.strategies.includes(type));
      select.replaceChildren(el("option", { value: "" }, "Model’s default"),
        ...types.map((type) => el("option", { value: type }, words(type))));
      select.value = types.includes(chosen) ? chosen : slot === "b" ? types[0] : "";
      if (select.value !== chosen) this.showParameters(slot);
    }
    const { suffix, cache } = this.parts;
    suffix.disabled = Boolean(model) && !model.supports_infill;
    for (const option of cache.options) option.disabled = Boolean(model && option.value) && !model.caches.includes(option.value);
    const lacks = (mode) => (mode === "chat" && !model.supports_chat) || (mode === "infill" && !model.supports_infill);
    this.node.elements.mode.forEach((radio) => { radio.disabled = Boolean(model) && lacks(radio.value); });
    this.arrange();
  }

  showParameters(slot, values = {}) {
    const schema = this.strategies.get(this.parts[`${slot}.type`].value);
    const parameters = schema ? Object.entries(schema.properties).filter(([name]) => name !== "type") : [];
    const place = this.node.querySelector(`#${slot}-parameters`);
    place.replaceChildren(...parameters.map(([name, one]) => field(`${slot}.${name}`, one, name)));
    for (const [name, value] of Object.entries(values)) {
      if (this.parts[`${slot}.${name}`]) this.parts[`${slot}.${name}`].value = value;
    }
    this.node.querySelector(`#${slot}-about`).textContent =
      schema ? schema.description.replaceAll("`", "") : "What the model is served with.";
  }

  // Shows what belongs to the chosen kind of request.
  arrange() {
    const chat = this.mode === "chat", infill = this.mode === "infill", completion = !chat && !infill;
    this.node.querySelector("[data-label=prompt]").textContent = chat ? "Message" : "Prompt";
    for (const [id, visible] of [["prompt-field", !infill], ["document-field", infill], ["suffix-field", completion],
      ["gap-field", completion && Boolean(this.suffix)], ["system-field", chat], ["constraint-field", !infill],
      ["b-strategy", this.compare]]) {
      this.node.querySelector(`#${id}`).hidden = !visible;
    }
    this.parts.max_tokens.closest("label").hidden = infill; // holes have their lengths
    for (const one of this.node.querySelectorAll("[data-constraint]")) {
      one.hidden = one.dataset.constraint !== this.parts.constraint.value;
    }
    this.node.querySelector("#a-letter").hidden = !this.compare;
    for (const chip of this.node.querySelectorAll(".chip")) chip.hidden = chip.dataset.mode !== this.mode;
  }

  examples() {
    const place = this.node.querySelector("#examples");
    for (const [mode, path] of Object.entries(PATHS)) {
      const body = this.document.paths[path].post.requestBody.content["application/json"];
      for (const { summary, value } of Object.values(body.examples || {})) {
        // Some show what the page does by itself, or does not show.
        if (value.tools || value.logprobs || (value.stream && !value.diffusing)) continue;
        const shown = value.infill ? "infill" : mode, fill = () => this.fill(shown, value);
        place.append(el("button", { type: "button", class: "chip", "data-mode": shown, onclick: fill }, summary));
      }
    }
  }

  fill(mode, value) {
    const { seed, compare, model, prompt, document: document_ } = this.parts;
    const kept = { seed: seed.value, model: model.value, compare: compare.checked ? "1" : "", document: document_.value };
    const asked = value.messages ? value.messages.at(-1).content : value.prompt;
    const values = { ...kept, ...value, mode, prompt: asked || prompt.value };
    values.max_tokens = value.max_completion_tokens || value.max_tokens;
    if (value.infill) values.document = write(value.infill);
    if (value.response_format) {
      values.constraint = "schema";
      values.schema = JSON.stringify(value.response_format.json_schema.schema, null, 2);
    }
    for (const [name, one] of Object.entries(value.strategy || {})) values[`a.${name}`] = one;
    this.write(values);
    this.node.dispatchEvent(new Event("input", { bubbles: true }));
  }

  get mode() { return this.parts.mode.value; }
  get compare() { return this.parts.compare.checked; }
  get key() { return this.parts.key.value; }
  get url() { return (PATHS[this.mode] || PATHS.completion).slice(1); }

  // What is shown around the answer: the text before the first hole and after each, and the holes
  // that a document has. Throws a Problem.
  get given() {
    const { prompt, document: document_ } = this.parts;
    if (this.mode === "chat") return { texts: [""], holes: [] };
    if (this.mode === "infill") return parts(parse(document_.value));
    const { min_tokens: least, max_tokens: most } = this.suffix ? this.numbers(["min_tokens", "max_tokens"]) : {};
    return { texts: [prompt.value, this.suffix], holes: least ? [{ min_length: least, max_length: most }] : [] };
  }
  get suffix() { return this.parts.suffix.disabled ? "" : this.parts.suffix.value; }

  // What the answer is held to, for the view: {constraint, about, budget}.
  get asked() {
    const { constraint, schema, regex, latency_budget_ms: budget } = this.parts;
    const kind = this.mode === "infill" ? "" : constraint.value;
    const [words, about] = {
      "": ["", ""],
      schema: ["JSON schema", schema.value],
      regex: [`regex ${short(regex.value)}`, regex.value],
      choice: [`choice of ${this.choices.length}`, this.choices.join("\n")],
    }[kind];
    return { constraint: words, about, budget: budget.value === "" ? null : Number(budget.value) };
  }
  get choices() { return this.parts.choice.value.split("\n").filter(Boolean); }

  // The API's fields of the constraint. Throws a Problem.
  constraint() {
    const { constraint, schema, regex } = this.parts;
    if (constraint.value === "regex") return { guided_regex: regex.value };
    if (constraint.value === "choice") {
      if (!this.choices.length) throw new Problem("There is nothing to choose from.", { param: "guided_choice" });
      return { guided_choice: this.choices };
    }
    if (constraint.value !== "schema") return {};
    try {
      return { response_format: schemaFormat(JSON.parse(schema.value)) };
    } catch (error) {
      throw new Problem(`The schema is not JSON: ${error.message}`, { param: "response_format" });
    }
  }

  // The seed as digits. An empty one is drawn here, so that it is known and can be shared.
  seed() {
    const given = this.parts.seed.value.trim();
    if (given === "") return String(Math.floor(Math.random() * MAX_DRAWN_SEED));
    if (!/^-?\d+$/.test(given)) throw new Problem("The seed must be a whole number.", { param: "seed" });
    return String(BigInt(given));
  }

  // The strategies to ask for; null is the model's own.
  chosen() {
    return (this.compare ? SLOTS : ["a"]).map((slot) => {
      const type = this.parts[`${slot}.type`].value;
      return type ? { type, ...this.numbers(Object.keys(this.strategies.get(type).properties), `${slot}.`) } : null;
    });
  }

  numbers(names, prefix = "") {
    const found = {};
    for (const name of names) {
      const input = this.parts[prefix + name];
      if (!input || input.name.endsWith(".type")) continue;
      if (input.validity.badInput) throw new Problem(`${words(name)} must be a number.`, { param: name });
      if (input.value !== "") found[name] = input.tagName === "SELECT" ? input.value : Number(input.value);
    }
    return found;
  }

  body(strategy, seed) {
    const { prompt, system, model } = this.parts, infill = this.mode === "infill";
    const body = {
      ...(model.value ? { model: model.value } : {}),
      ...this.numbers(SETTINGS.filter((name) => !infill || name !== "max_tokens")),
      ...(infill ? {} : this.constraint()),
      ...(strategy ? { strategy } : {}),
      n: 1, stream: true, diffusing: true, stream_options: { include_usage: true },
    };
    if (this.mode === "chat") {
      body.messages = [{ role: "user", content: prompt.value }];
      if (system.value) body.messages.unshift({ role: "system", content: system.value });
    } else if (infill) {
      Object.assign(body, { prompt: "", infill: parse(this.parts.document.value) });
    } else {
      body.prompt = prompt.value;
      if (this.suffix) Object.assign(body, { suffix: this.suffix }, this.numbers(["min_tokens"]));
    }
    // A seed may have more digits than a number of JavaScript's holds.
    return `{"seed":${seed},${JSON.stringify(body).slice(1)}`;
  }

  // Marks the field that an error is about, if there is one, and says there why.
  blame(param, slot, why) {
    const renamed = NAMES.reduce((name, [pattern, own]) => name.replace(pattern, own), String(param || ""));
    const name = renamed.replace(/^strategy$/, `${slot}.type`).replace(/^strategy\./, `${slot}.`).replace(/\[.*/, "");
    const input = this.parts[name] || this.parts[`${slot}.${name}`];
    if (!input || !input.setAttribute) return;
    absolve(input);
    const said = el("p", { class: "why", id: `why-${input.name}` }, why);
    (input.closest("label") || input).after(said);
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-errormessage", said.id);
    const closed = input.closest("details");
    if (closed) closed.open = true;
  }

  absolve() {
    for (const input of this.node.querySelectorAll("[aria-invalid]")) absolve(input);
  }

  // All that makes the request, without the key.
  read() {
    const values = new URLSearchParams();
    for (const input of this.node.elements) {
      if (!input.name || input.name === "key" || input.disabled) continue;
      if (input.type === "checkbox" ? input.checked : input.type === "radio" ? input.checked : input.value !== "") {
        values.set(input.name, input.value);
      }
    }
    return values;
  }

  write(values) {
    for (const input of this.node.elements) {
      if (!input.name || input.name === "key" || input.name.includes(".")) continue;
      const value = values[input.name] ?? "";
      if (input.type === "radio") input.checked = input.value === (values.mode || "completion");
      else if (input.type === "checkbox") input.checked = value !== "";
      else if (input.name !== "model" || value) input.value = value;
    }
    for (const slot of SLOTS) {
      const select = this.parts[`${slot}.type`];
      const own = Object.entries(values).filter(([name]) => name.startsWith(`${slot}.`))
        .map(([name, value]) => [name.slice(2), value]);
      if (slot === "a" || own.length) select.value = values[`${slot}.type`] ?? "";
      if (select.selectedIndex < 0) select.value = "";
      this.showParameters(slot, Object.fromEntries(own.filter(([name]) => name !== "type")));
    }
    this.arrange();
  }
}

// Takes back what was said against a field.
function absolve(input) {
  input.removeAttribute("aria-invalid");
  input.removeAttribute("aria-errormessage");
  document.getElementById(`why-${input.name}`)?.remove();
}

const short = (text) => (text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN - 1)}…` : text);

// The named types that a union of unions is made of.
function references(schema) {
  if (schema.$ref) return [schema.$ref.split("/").pop()];
  return (schema.anyOf || []).flatMap(references);
}

// One labelled input for a field of the document.
function field(name, schema, label) {
  const about = (schema.description || "").replaceAll("`", "");
  const fallback = /Default:? ([^.:]*(?:\.\d+)?)/.exec(about);
  const hint = fallback ? fallback[1].replace(/^the (model|server)'s.*/, "$1’s") : "";
  const kind = inner(schema);
  let input;
  if (kind.enum) {
    input = el("select", { name }, el("option", { value: "" }, `${words(hint)} (default)`),
      ...kind.enum.filter((value) => value !== hint).map((value) => el("option", { value }, words(value))));
  } else {
    const whole = kind.type === "integer";
    input = el("input", { name, type: "number", step: whole ? "1" : "any", placeholder: hint,
      inputmode: whole ? "numeric" : "decimal", min: kind.minimum ?? kind.exclusiveMinimum,
      max: kind.maximum < 2 ** 32 - 1 ? kind.maximum : null });
  }
  return el("label", { title: about }, el("span", {}, words(label)), input);
}
