// Talks to the gateway that served the page, and to nobody else. Knows no page.

// An answer that is an error: its words, the field it is about, and when to come back.
export class Problem extends Error {
  constructor(message, { param = null, status = 0, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { param, status, retryAfter });
  }
}

async function refused(reply) {
  const text = await reply.text();
  const details = { status: reply.status, retryAfter: reply.headers.get("retry-after") };
  try {
    const { message, param } = JSON.parse(text).error;
    return new Problem(message, { ...details, param });
  } catch {
    return new Problem(`The gateway answered with status ${reply.status}.`, details);
  }
}

async function ask(url, options) {
  let reply;
  try {
    reply = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The gateway cannot be reached.");
  }
  if (!reply.ok) throw await refused(reply);
  return reply;
}

const authorization = (key) => (key ? { authorization: `Bearer ${key}` } : {});

export const document_ = async () => (await ask("openapi.json")).json();

export const models = async (key) =>
  (await (await ask("v1/models", { headers: authorization(key) })).json()).data;

// Sends a request and gives each chunk of its event stream to `take`. Returns after [DONE].
export async function stream(url, body, key, signal, take) {
  const reply = await ask(url, {
    method: "POST", body, signal,
    headers: { "content-type": "application/json", ...authorization(key) },
  });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The connection to the gateway broke.");
    }
    if (part.done) throw new Problem("The gateway ended the stream too early.");
    const events = (held + part.value).split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Problem(chunk.error.message, { param: chunk.error.param });
      take(chunk);
    }
  }
}
