// Conversations and settings in the browser's own storage. Damaged or full storage costs what was stored, never the page.

const CONVERSATIONS = "headwater.conversations.1", SETTINGS = "headwater.settings.1";

function read(key, otherwise) {
  try { return JSON.parse(localStorage.getItem(key)) ?? otherwise; } catch { return otherwise; }
}

function write(key, value) {
  try { localStorage.setItem(key, JSON.stringify(value)); return true; } catch { return false; }
}

const sound = (c) => c && typeof c.id === "string" && Array.isArray(c.turns) && c.turns.every((t) => typeof t?.role === "string");

export const loadConversations = () => { const found = read(CONVERSATIONS, []); return Array.isArray(found) ? found.filter(sound) : []; };
export const saveConversations = (all) => write(CONVERSATIONS, all);
export const loadSettings = () => { const found = read(SETTINGS, {}); return typeof found === "object" && found ? found : {}; };
export const saveSettings = (settings) => write(SETTINGS, settings);
