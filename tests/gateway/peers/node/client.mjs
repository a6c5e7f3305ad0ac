// What a user of OpenAI's package for Node does, against the gateway at argv[2]. Prints the name
// of each part that held; ends with 1 at the first that did not.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Tell me a story about a dog." }];
const fields = { model: "demo", messages, max_completion_tokens: 24, seed: 1 };
const long = { model: "demo", prompt: "Once upon a time", max_tokens: 200, n: 8, seed: 1 };

const parts = {
  async chat() {
    const reply = await client.chat.completions.create(fields);
    assert.equal(reply.choices[0].message.role, "assistant");
    assert.ok(reply.choices[0].message.content.length > 0);
    assert.equal(reply.usage.total_tokens, reply.usage.prompt_tokens + reply.usage.completion_tokens);
    assert.match(reply._request_id, /^req_/);
  },

  async stream() {
    const whole = await client.chat.completions.create(fields);
    const options = { stream: true, stream_options: { include_usage: true } };
    const chunks = [];
    for await (const chunk of await client.chat.completions.create({ ...fields, ...options })) {
      chunks.push(chunk);
    }
    const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
    assert.equal(text, whole.choices[0].message.content);
    assert.deepEqual(chunks.at(-1).choices, []);
    assert.deepEqual(chunks.at(-1).usage, whole.usage);
  },

  // Their own puzzle of a stream's chunks; it is strict about roles and ends.
  async helper() {
    const reply = await client.chat.completions.stream(fields).finalChatCompletion();
    const whole = await client.chat.completions.create(fields);
    assert.equal(reply.choices[0].message.content, whole.choices[0].message.content);
    assert.equal(reply.choices[0].finish_reason, whole.choices[0].finish_reason);
  },

  async suffix() {
    const suffix = " who lived in a big forest.";
    const prompt = "Once upon a time there was a";
    const given = { model: "demo", prompt, suffix, max_tokens: 8, seed: 1 };
    const [infilled, plain] = await Promise.all([
      client.completions.create(given),
      client.completions.create({ ...given, suffix: undefined }),
    ]);
    assert.ok(infilled.choices[0].text.length > 0);
    assert.ok(infilled.usage.prompt_tokens > plain.usage.prompt_tokens);
  },

  async models() {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    assert.deepEqual(names, ["demo", "demo-alias"]);
    assert.equal((await client.models.retrieve("demo-alias")).object, "model");
  },

  async errors() {
    await assert.rejects(client.chat.completions.create({ ...fields, n: 0 }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.deepEqual([error.status, error.param, error.type], [400, "n", "invalid_request_error"]);
      return true;
    });
    await assert.rejects(client.models.retrieve("nobody"), (error) => {
      assert.ok(error instanceof OpenAI.NotFoundError);
      assert.equal(error.code, "model_not_found");
      return true;
    });
  },

  async abort() {
    const given = { ...long, ignore_eos: true, diffusing: true, stream: true };
    const stream = await client.completions.create(given);
    let chunks = 0;
    for await (const _ of stream) {
      chunks += 1;
      if (chunks === 20) stream.controller.abort();
    }
    assert.ok(chunks >= 20);
  },
};

for (const [name, part] of Object.entries(parts)) {
  await part();
  console.log(name);
}
