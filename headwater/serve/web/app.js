// The page: conversations, turns, settings. What a model says becomes DOM nodes through markdown.js, never HTML.
import { modelCard, stream } from "./api.js";
import { render } from "./markdown.js";
import { loadConversations, loadSettings, saveConversations, saveSettings } from "./store.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed", "thinking_budget"];
const settings = loadSettings();
let all = loadConversations();
let current = all[0] ?? fresh();
let running = null;

function fresh() { return { id: crypto.randomUUID?.() ?? String(Math.random()), title: "", system: "", turns: [] }; }

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function keep() {
  if (current.turns.length && !all.includes(current)) all.unshift(current);
  if (!saveConversations(all)) notice("This browser's storage is full: the conversation is not kept.");
  drawList();
}

// -- drawing ---------------------------------------------------------------------------------------------------

function drawList() {
  $("list").replaceChildren(...all.map((c) => {
    const button = make("button", { type: "button", onclick: () => open(c) }, c.title || "New conversation");
    if (c === current) button.setAttribute("aria-current", "true");
    return make("li", {}, button);
  }));
  $("title").textContent = current.title || "New conversation";
}

function draw() {
  const turns = current.turns.map((turn, i) => drawTurn(turn, i));
  $("log").replaceChildren(...(turns.length ? turns : [make("div", { class: "empty" }, make("p", {}, "Ask something."))]));
  drawList();
  $("log").scrollTop = $("log").scrollHeight;
}

function drawTurn(turn, index) {
  const node = make("article", { class: `turn ${turn.role}`, "aria-label": turn.role });
  fill(node, turn, index);
  return node;
}

function fill(node, turn, index) {
  const parts = [];
  if (turn.reasoning) {
    const open = node.querySelector("details.reasoning")?.open ?? !turn.content;
    parts.push(make("details", { class: "reasoning", ...(open ? { open: "" } : {}) }, make("summary", {}, "Reasoning"), make("div", { class: "thought" }, turn.reasoning)));
  }
  const body = make("div", { class: "body" });
  if (turn.role === "assistant") body.append(render(turn.content)); else body.append(turn.content);
  parts.push(body, ...(turn.calls ?? []).map((call, i) => drawCall(turn, call, index, i)));
  if (turn.fault) parts.push(make("p", { class: "fault", role: "alert" }, turn.fault));
  parts.push(bar(turn, index));
  node.classList.toggle("busy", running?.turn === turn);
  node.replaceChildren(...parts);
}

function drawCall(turn, call, index, number) {
  let shown = call.arguments;
  try { shown = JSON.stringify(JSON.parse(call.arguments), null, 2); } catch { /* shown as it came */ }
  const box = make("details", { class: "call", open: "" }, make("summary", {}, `Tool call: ${call.name}`), make("pre", {}, make("code", {}, shown)));
  const answered = current.turns.some((t) => t.role === "tool" && t.call === call.id);
  if (running || answered || index !== lastCalls()) return box;
  const field = make("textarea", { rows: "2", "aria-label": `Result of ${call.name}`, placeholder: "Result of this call" });
  box.append(field, make("button", { type: "button", onclick: () => giveResult(turn, call, field.value) }, number + 1 < turn.calls.length ? "Give result" : "Give result"));
  return box;
}

const lastCalls = () => current.turns.findLastIndex((t) => t.calls?.length);

function bar(turn, index) {
  const items = [];
  const busy = Boolean(running);
  if (turn.stats) items.push(make("span", { class: "stats" }, turn.stats));
  if (!busy && turn.role === "user") items.push(make("button", { type: "button", onclick: () => edit(index) }, "Edit"));
  if (!busy && turn.role === "assistant") {
    items.push(make("button", { type: "button", onclick: () => navigator.clipboard?.writeText(turn.content) }, "Copy"));
    if (index === current.turns.length - 1) items.push(make("button", { type: "button", onclick: regenerate }, "Regenerate"));
  }
  return make("div", { class: "bar" }, ...items);
}

function notice(text) { $("log").append(make("p", { class: "fault", role: "alert" }, text)); }

// -- answering -------------------------------------------------------------------------------------------------

function request() {
  const messages = current.system ? [{ role: "system", content: current.system }] : [];
  for (const turn of current.turns) {
    if (turn.fault && !turn.content && !turn.calls) continue;
    const message = { role: turn.role, content: turn.content };
    if (turn.calls?.length) message.tool_calls = turn.calls.map((c) => ({ id: c.id, type: "function", function: { name: c.name, arguments: c.arguments } }));
    if (turn.reasoning) message.reasoning_content = turn.reasoning;
    if (turn.call) message.tool_call_id = turn.call;
    messages.push(message);
  }
  const body = { messages };
  for (const name of NUMBERS) if (settings[name] !== undefined && settings[name] !== "") body[name] = Number(settings[name]);
  if (settings.reasoning) body.chat_template_kwargs = { enable_thinking: settings.reasoning === "on" };
  if (settings.reasoning === "off") delete body.thinking_budget;
  const tools = toolList();
  if (tools.length) body.tools = tools;
  return body;
}

function toolList() {
  if (!settings.tools?.trim()) return [];
  const found = JSON.parse(settings.tools);
  if (!Array.isArray(found)) throw new Error("Tools must be a list.");
  return found.map((t) => (t.type === "function" ? t : { type: "function", function: t }));
}

async function answer() {
  let body;
  try { body = request(); } catch (e) { notice(`The tools in the settings are not readable: ${e.message}`); return; }
  const turn = { role: "assistant", content: "", reasoning: "" };
  current.turns.push(turn);
  const conversation = current, index = current.turns.length - 1, abort = new AbortController();
  running = { turn, abort };
  state();
  draw();
  const node = $("log").lastElementChild;
  let drawn = false;
  const redraw = () => {
    if (drawn) return;
    drawn = true;
    requestAnimationFrame(() => {
      drawn = false;
      const near = $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 80;
      fill(node, turn, index);
      if (near) $("log").scrollTop = $("log").scrollHeight;
    });
  };
  try {
    for await (const chunk of stream(body, settings.key, abort.signal)) {
      take(turn, chunk);
      if (conversation === current) redraw();
    }
  } catch (e) {
    if (e.name !== "AbortError") turn.fault = e.message || "The connection was lost.";
    else turn.stats = "stopped";
  }
  dropHalfCalls(turn);
  running = null;
  state();
  keep();
  draw();
}

// A call that was cut off cannot be sent back as one; what was written of it stays as text.
function dropHalfCalls(turn) {
  const whole = (call) => { try { JSON.parse(call.arguments); return true; } catch { return false; } };
  for (const call of (turn.calls ?? []).filter((c) => !whole(c))) turn.content += `${turn.content && "\n"}${call.name} ${call.arguments}`;
  if (turn.calls) turn.calls = turn.calls.filter(whole);
}

function take(turn, chunk) {
  const choice = chunk.choices[0];
  if (choice) {
    turn.content += choice.delta.content ?? "";
    turn.reasoning += choice.delta.reasoning_content ?? "";
    for (const part of choice.delta.tool_calls ?? []) {
      const call = ((turn.calls ??= [])[part.index] ??= { id: part.id, name: part.function.name, arguments: "" });
      call.arguments += part.function.arguments;
    }
    if (choice.finish_reason === "length") turn.short = true;
  }
  if (chunk.usage) {
    const { usage, timings } = chunk, cached = usage.prompt_tokens_details.cached_tokens;
    const speed = timings.tokens_per_second ? `${timings.tokens_per_second.toFixed(1)} tokens/s` : "";
    turn.stats = [`${usage.completion_tokens} tokens`, speed, `first after ${timings.first_token_seconds.toFixed(2)} s`, `${cached} of ${usage.prompt_tokens} prompt tokens from the cache`, turn.short ? "cut at the limit of tokens" : ""].filter(Boolean).join(" · ");
  }
}

function say(text) {
  if (!text.trim() || running) return;
  current.turns.push({ role: "user", content: text });
  current.title ||= text.trim().slice(0, 60);
  keep();
  answer();
}

function giveResult(turn, call, text) {
  current.turns.push({ role: "tool", content: text, call: call.id });
  keep();
  const open = turn.calls.some((c) => !current.turns.some((t) => t.call === c.id));
  if (open) draw(); else answer();
}

function regenerate() {
  if (running) return;
  current.turns.pop();
  answer();
}

function edit(index) {
  const turn = current.turns[index], node = $("log").children[index];
  const field = make("textarea", { rows: "3", "aria-label": "Edit the message" });
  field.value = turn.content;
  const done = () => { current.turns.splice(index); say(field.value); };
  node.replaceChildren(field, make("div", { class: "bar" }, make("button", { type: "button", onclick: done }, "Send again"), make("button", { type: "button", onclick: draw }, "Leave it")));
  field.focus();
}

function state() {
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
}

function open(conversation) {
  running?.abort.abort();
  current = conversation;
  document.body.classList.remove("menu");
  $("menu").setAttribute("aria-expanded", "false");
  draw();
  $("input").focus();
}

// -- settings --------------------------------------------------------------------------------------------------

function openSettings() {
  $("system").value = current.system;
  for (const name of [...NUMBERS, "reasoning", "tools", "key"]) $(name).value = settings[name] ?? "";
  $("tools-fault").textContent = "";
  $("settings").showModal();
}

function closeSettings() {
  current.system = $("system").value;
  for (const name of [...NUMBERS, "reasoning", "tools", "key"]) settings[name] = $(name).value;
  saveSettings(settings);
  keep();
  showModel();
}

function checkTools() {
  const before = settings.tools;
  settings.tools = $("tools").value;
  try { toolList(); $("tools-fault").textContent = ""; } catch (e) { $("tools-fault").textContent = `Not readable: ${e.message}`; }
  settings.tools = before;
}

function theme(next) {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  if (next) settings.theme = (settings.theme ?? (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = settings.theme ?? (dark ? "dark" : "light");
  saveSettings(settings);
}

async function showModel() {
  try {
    const card = await modelCard(settings.key);
    $("model").textContent = card.id;
    for (const name of ["temperature", "top_p", "top_k", "min_p", "repetition_penalty"]) $(name).placeholder = card.sampling[name];
    $("reasoning").disabled = $("thinking_budget").disabled = !card.thinking;
    $("tools").disabled = !card.tools;
  } catch (e) { $("model").textContent = e.message; }
}

function grow() {
  $("input").style.height = "auto";
  $("input").style.height = `${$("input").scrollHeight + 2}px`;
}

$("composer").addEventListener("submit", (e) => { e.preventDefault(); const text = $("input").value; if (running || !text.trim()) return; $("input").value = ""; grow(); say(text); });
$("input").addEventListener("keydown", (e) => { if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); $("composer").requestSubmit(); } });
$("input").addEventListener("input", grow);
$("stop").addEventListener("click", () => running?.abort.abort());
$("new").addEventListener("click", () => open(fresh()));
$("menu").addEventListener("click", () => { const shown = document.body.classList.toggle("menu"); $("menu").setAttribute("aria-expanded", String(shown)); });
$("theme").addEventListener("click", () => theme(true));
$("settings-open").addEventListener("click", openSettings);
$("settings").addEventListener("close", closeSettings);
$("tools").addEventListener("input", checkTools);
$("delete").addEventListener("click", () => { all = all.filter((c) => c !== current); $("settings").close(); all = all.filter((c) => c !== current); saveConversations(all); open(all[0] ?? fresh()); });
document.addEventListener("keydown", (e) => { if (e.key === "Escape" && !$("settings").open) { running?.abort.abort(); document.body.classList.remove("menu"); } });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme(false));

theme(false);
state();
draw();
showModel();
$("input").focus();
