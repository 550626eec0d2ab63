// openai-node against a running shoal: node use_openai_node.mjs URL FOLDER-WITH-node_modules
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const [url, folder] = process.argv.slice(2);
const { default: OpenAI } = createRequire(`${folder}/`)("openai");
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const asked = {
  model: "shoal-tiny",
  messages: [{ role: "user", content: "12 + 7 =" }],
  temperature: 0,
  max_tokens: 16,
};

async function running() {
  const lines = (await (await fetch(`${url}/metrics`)).text()).split("\n");
  return lines
    .filter((line) => /^shoal_num_requests_(running|waiting){/.test(line))
    .reduce((sum, line) => sum + Number(line.split(" ").pop()), 0);
}

async function idle() {
  for (let tries = 0; await running(); tries++) {
    assert(tries < 600, "a slot was not freed");
    await new Promise((done) => setTimeout(done, 50));
  }
}

const models = await client.models.list();
assert.equal(models.data[0].id, "shoal-tiny");
assert.equal((await client.models.retrieve("shoal-tiny")).id, "shoal-tiny");

const whole = await client.chat.completions.create(asked);
assert.match(whole.choices[0].message.content, /19/);
let text = "";
let usage;
const options = { stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create({ ...asked, ...options })) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.deepEqual(usage, whole.usage);
assert.equal(await client.chat.completions.stream(asked).finalContent(), text);

const completion = await client.completions.create({ model: "shoal-tiny", prompt: "2 + 2 =", max_tokens: 4 });
assert.equal(completion.choices.length, 1);

await assert.rejects(client.chat.completions.create({ ...asked, model: "gpt-9" }), (error) => {
  assert.equal(error.status, 404);
  assert.equal(error.code, "model_not_found");
  return /gpt-9/.test(error.message);
});
await assert.rejects(client.get("/nothing"), (error) => !/no body/.test(error.message));

const long = { ...asked, max_tokens: 3000, stream: true, ignore_eos: true };
const stream = await client.chat.completions.create(long);
for await (const _ of stream) break; // leaving the loop closes the socket
await idle();
const other = await client.chat.completions.create(long);
other.controller.abort();
await idle();
console.log("openai-node: all is well");
