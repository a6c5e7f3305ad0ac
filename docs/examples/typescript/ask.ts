// Asks a server three times: for an answer, for a stream, and for what it must refuse.
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

import { BadRequestSchema, ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import {
  GenerationService,
  GenerationSpecSchema,
  type GenerationSpec,
} from "./gen/vdiff/v1/generation_pb.js";

// What is left out has the server's default; an explicit 0 is 0.
function spec(maxNewTokens: number): GenerationSpec {
  return create(GenerationSpecSchema, {
    input: { case: "text", value: "Once upon a time" },
    sampling: { maxNewTokens, seed: 7n },
    diffusion: { strategy: { case: "confidenceThreshold", value: { threshold: 0.95 } } },
  });
}

const transport = createGrpcTransport({ baseUrl: `http://${process.argv[2]}` });
const client = createClient(GenerationService, transport);
const key = process.env.VDIFF_API_KEY;
const headers: Record<string, string> = key ? { authorization: `Bearer ${key}` } : {};
const options = { timeoutMs: 60_000, headers };

const reply = await client.generate({ spec: spec(24) }, options);
console.log(reply.outputs[0]?.text);

for await (const { event } of client.streamGenerate({ spec: spec(24) }, options)) {
  if (event.case === "committed") process.stdout.write(event.value.text);
}
console.log();

try {
  await client.generate({ spec: spec(1_000_000) }, options);
} catch (thrown) {
  const error = ConnectError.from(thrown);
  const [info] = error.findDetails(ErrorInfoSchema);
  const [bad] = error.findDetails(BadRequestSchema);
  console.log(Code[error.code], info?.reason);
  console.log(bad?.fieldViolations[0]?.field);
}
