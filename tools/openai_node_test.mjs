// The openai package for Node against a running server. usage: node openai_node_test.mjs NODE_MODULES BASE_URL
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const [modules, baseURL] = process.argv.slice(2);
const OpenAI = createRequire(resolve(modules) + "/").call(null, "openai").default;
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const model = "any";
const messages = [
  { role: "system", content: "Register.\nred fox = 4102\nblue owl = 77" },
  { role: "user", content: "What is the code of blue owl?" },
];

const models = await client.models.list();
assert.equal(models.data.length, 1);

const plain = await client.chat.completions.create({ model, messages, temperature: 0 });
assert.equal(plain.choices[0].message.content.trim(), "77");
assert.equal(plain.model, models.data[0].id);

let text = "";
let usage;
const stream = await client.chat.completions.create({
  model, messages, temperature: 0, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, plain.choices[0].message.content);
assert.equal(usage.completion_tokens, plain.usage.completion_tokens);
assert.ok(usage.prompt_tokens_details.cached_tokens > 0);

const runner = client.chat.completions.stream({ model, messages, temperature: 0, n: 2 });
assert.equal((await runner.finalChatCompletion()).choices.length, 2);

const completion = await client.completions.create({
  model, prompt: "fn main() {", max_tokens: 4, logprobs: 2, echo: true, temperature: 0,
});
assert.equal(completion.choices[0].logprobs.tokens.length, completion.usage.total_tokens);

await assert.rejects(
  client.chat.completions.create({ model, messages, temperature: -1 }),
  (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature",
);

// A stream that is broken off ends the request.
const broken = await client.chat.completions.create({ model, messages, stream: true });
for await (const _ of broken) break;
console.log("all passed");
