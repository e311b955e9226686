// The page: conversations, turns, settings. What a model says becomes DOM nodes through markdown.js, never HTML.
import { modelCard, stream } from "./api.js";
import { render } from "./markdown.js";
import { dropConversation, loadConversations, loadSettings, onOtherTabs, saveConversation, saveSettings } from "./store.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed", "thinking_budget"];
const settings = loadSettings();
let all = loadConversations();
let current = all[0] ?? fresh();
let running = null;
let full = false; // the browser's storage took no more
let edited = null; // the conversation whose settings are open, by id

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

function keep(conversation = current) {
  if (conversation.turns.length) {
    if (!all.includes(conversation)) all.unshift(conversation);
    full = !saveConversation(conversation);
  }
  drawList();
}

// What another tab has written is taken over, but never under an answer that is being written here.
function hear() {
  const found = loadConversations(), at = found.findIndex((c) => c.id === current.id);
  const changed = at >= 0 && !running && !full && JSON.stringify(found[at]) !== JSON.stringify(current);
  if (changed) current = found[at];
  else if (at >= 0) found[at] = current;
  else if (all.includes(current)) found.unshift(current);
  all = found;
  if (changed) draw(); else drawList();
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

// stay: where the reader has scrolled to, instead of at the end.
function draw(stay = false) {
  const log = $("log"), at = log.scrollTop, inside = log.contains(document.activeElement);
  const turns = current.turns.map((turn, i) => drawTurn(turn, i));
  log.replaceChildren(...(turns.length ? turns : [make("div", { class: "empty" }, make("p", {}, "Ask something."))]));
  if (full) notice("This browser's storage is full: the conversation is not kept. Deleting others makes room.");
  drawList();
  if (inside) log.focus({ preventScroll: true }); // what had the focus is gone
  log.scrollTop = stay ? at : log.scrollHeight;
}

const atEnd = () => $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 80;

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
  parts.push(body, ...(turn.calls ?? []).map((call) => drawCall(turn, call, index)));
  if (turn.fault) parts.push(make("p", { class: "fault", role: "alert" }, turn.fault));
  parts.push(bar(turn, index));
  node.classList.toggle("busy", running?.turn === turn);
  node.setAttribute("aria-busy", String(running?.turn === turn)); // read aloud once it is whole
  node.replaceChildren(...parts);
}

function drawCall(turn, call, index) {
  let shown = call.arguments;
  try { shown = JSON.stringify(JSON.parse(call.arguments), null, 2); } catch { /* shown as it came */ }
  const box = make("details", { class: "call", open: "" }, make("summary", {}, `Tool call: ${call.name}`), make("pre", {}, make("code", {}, shown)));
  const answered = current.turns.some((t) => t.role === "tool" && t.call === call.id);
  if (running || answered || !waits(index)) return box;
  const field = make("textarea", { rows: "2", "aria-label": `Result of ${call.name}`, placeholder: "Result of this call" });
  box.append(field, make("button", { type: "button", onclick: () => giveResult(turn, call, field.value) }, "Give result"));
  return box;
}

// Results stand right behind their calls: once somebody has said something else, it is too late for them.
const waits = (index) => current.turns.slice(index + 1).every((t) => t.role === "tool");

function bar(turn, index) {
  const items = [];
  const busy = Boolean(running);
  if (turn.stats) items.push(make("span", { class: "stats" }, turn.stats));
  if (!busy && turn.role === "user") items.push(make("button", { type: "button", onclick: () => edit(index) }, "Edit"));
  if (!busy && turn.role === "assistant") {
    if (navigator.clipboard) items.push(make("button", { type: "button", onclick: () => navigator.clipboard.writeText(turn.content) }, "Copy"));
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
  // What this model has not (showModel) may still be set, from another one on this address.
  for (const name of NUMBERS) if (!$(name).disabled && settings[name] !== undefined && settings[name] !== "") body[name] = Number(settings[name]);
  if (settings.reasoning && !$("reasoning").disabled) body.chat_template_kwargs = { enable_thinking: settings.reasoning === "on" };
  if (settings.reasoning === "off") delete body.thinking_budget;
  const tools = $("tools").disabled ? [] : toolList();
  if (tools.length) body.tools = tools;
  return body;
}

function toolList() {
  if (!settings.tools?.trim()) return [];
  const found = JSON.parse(settings.tools);
  if (!Array.isArray(found)) throw new Error("Tools must be a list.");
  return found.map((t) => (t.type === "function" ? t : { type: "function", function: t }));
}

// before: an answer that stands again where no other can be asked for.
async function answer(before) {
  let body;
  try {
    body = request();
  } catch (e) {
    if (before) current.turns.push(before);
    draw(); // what was said stands there, though nothing answers
    notice(`The tools in the settings are not readable: ${e.message}`);
    return;
  }
  const turn = { role: "assistant", content: "", reasoning: "" };
  current.turns.push(turn);
  const conversation = current, index = current.turns.length - 1, abort = new AbortController();
  running = { turn, abort };
  state();
  draw();
  const node = $("log").children[index];
  let drawn = false;
  const redraw = () => {
    if (drawn) return;
    drawn = true;
    requestAnimationFrame(() => {
      drawn = false;
      const near = atEnd();
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
  if (all.includes(conversation)) keep(conversation); // else it was deleted meanwhile
  draw(!atEnd());
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
  current.title ||= [...text.trim()].slice(0, 60).join("");
  keep();
  answer();
}

function giveResult(turn, call, text) {
  if (running) return;
  current.turns.push({ role: "tool", content: text, call: call.id });
  keep();
  const open = turn.calls.some((c) => !current.turns.some((t) => t.call === c.id));
  if (open) draw(); else answer();
}

function regenerate() {
  if (!running) answer(current.turns.pop());
}

function edit(index) {
  const turn = current.turns[index], node = $("log").children[index];
  const field = make("textarea", { rows: "3", "aria-label": "Edit the message" });
  field.value = turn.content;
  const done = () => { if (running || !field.value.trim()) return; current.turns.splice(index); say(field.value); };
  node.replaceChildren(field, make("div", { class: "bar" }, make("button", { type: "button", onclick: done }, "Send again"), make("button", { type: "button", onclick: () => draw(true) }, "Leave it")));
  field.focus();
}

function state() {
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
}

function open(conversation) {
  running?.abort.abort();
  current = conversation;
  menu(false);
  draw();
  $("input").focus();
}

// The list of conversations, where the screen has no place for it beside the others.
function menu(shown) {
  const was = document.body.classList.contains("menu"), inside = $("side").contains(document.activeElement);
  document.body.classList.toggle("menu", shown);
  $("menu").setAttribute("aria-expanded", String(shown));
  if (shown) $("new").focus();
  else if (was && inside) $("menu").focus();
}

// -- settings --------------------------------------------------------------------------------------------------

function openSettings() {
  edited = current.id;
  $("system").value = current.system ?? "";
  for (const name of [...NUMBERS, "reasoning", "tools", "key"]) $(name).value = settings[name] ?? "";
  $("tools-fault").textContent = "";
  $("settings").showModal();
}

// The event comes after the dialog has closed: by then another conversation may be shown, which has its own prompt.
function closeSettings() {
  for (const name of [...NUMBERS, "reasoning", "tools", "key"]) settings[name] = $(name).value;
  saveSettings(settings);
  if (current.id === edited) { current.system = $("system").value; keep(); }
  showModel();
}

function deleteConversation() {
  const gone = current;
  edited = null;
  $("settings").close();
  all = all.filter((c) => c !== gone);
  dropConversation(gone.id);
  full = false;
  open(all[0] ?? fresh());
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
$("menu").addEventListener("click", () => menu(!document.body.classList.contains("menu")));
document.querySelector("main").addEventListener("click", (e) => { if (!$("menu").contains(e.target)) menu(false); });
$("theme").addEventListener("click", () => theme(true));
$("settings-open").addEventListener("click", openSettings);
$("settings").addEventListener("close", closeSettings);
$("tools").addEventListener("input", checkTools);
$("delete").addEventListener("click", deleteConversation);
document.addEventListener("keydown", (e) => { if (e.key === "Escape" && !$("settings").open) { running?.abort.abort(); menu(false); } });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme(false));
onOtherTabs(hear);

theme(false);
state();
draw();
showModel();
$("input").focus();
