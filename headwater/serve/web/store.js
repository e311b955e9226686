// Conversations and settings in the browser's own storage. Damaged or full storage costs what was stored, never the page.
// Other tabs write there too: a conversation is put among those that stand there now, never over all of them.

const CONVERSATIONS = "headwater.conversations.1", SETTINGS = "headwater.settings.1";

function read(key, otherwise) {
  try { return JSON.parse(localStorage.getItem(key)) ?? otherwise; } catch { return otherwise; }
}

function write(key, value) {
  try { localStorage.setItem(key, JSON.stringify(value)); return true; } catch { return false; }
}

const soundCall = (c) => typeof c?.name === "string" && typeof c.arguments === "string";
const soundTurn = (t) => typeof t?.role === "string" && typeof t.content === "string" && (t.calls === undefined || (Array.isArray(t.calls) && t.calls.every(soundCall)));
const sound = (c) => c && typeof c.id === "string" && Array.isArray(c.turns) && c.turns.every(soundTurn);

export const loadConversations = () => { const found = read(CONVERSATIONS, []); return Array.isArray(found) ? found.filter(sound) : []; };

export function saveConversation(conversation) {
  const all = loadConversations(), at = all.findIndex((c) => c.id === conversation.id);
  if (at < 0) all.unshift(conversation); else all[at] = conversation;
  return write(CONVERSATIONS, all);
}

export const dropConversation = (id) => write(CONVERSATIONS, loadConversations().filter((c) => c.id !== id));

// Calls `heard` when another tab has written conversations.
export const onOtherTabs = (heard) => addEventListener("storage", (e) => { if (e.key === CONVERSATIONS || e.key === null) heard(); });

export const loadSettings = () => { const found = read(SETTINGS, {}); return typeof found === "object" && found ? found : {}; };
export const saveSettings = (settings) => write(SETTINGS, settings);
