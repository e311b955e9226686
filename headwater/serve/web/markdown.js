// Markdown as DOM nodes. Text of a model only ever becomes text nodes, and links only http(s) and mailto: nothing is parsed as HTML.

const INLINE = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*([^*\s](?:[^*]*[^*\s])?)\*\*|\*([^*\s](?:[^*]*[^*\s])?)\*|\[([^\]\n]*)\]\(([^()\s]+)\)/g;
const SAFE = new Set(["http:", "https:", "mailto:"]);

function make(tag, children = [], attributes = {}) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...[children].flat());
  return node;
}

function link(label, target) {
  let url;
  try { url = new URL(target); } catch { return [document.createTextNode(`[${label}](${target})`)]; }
  if (!SAFE.has(url.protocol)) return [document.createTextNode(`[${label}](${target})`)];
  return [make("a", inline(label), { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" })];
}

function inline(text) {
  const out = [];
  let at = 0;
  for (const found of text.matchAll(INLINE)) {
    if (found.index > at) out.push(document.createTextNode(text.slice(at, found.index)));
    at = found.index + found[0].length;
    if (found[1]) out.push(make("code", found[2].trim()));
    else if (found[3]) out.push(make("strong", inline(found[3])));
    else if (found[4]) out.push(make("em", inline(found[4])));
    else out.push(...link(found[5], found[6]));
  }
  if (at < text.length) out.push(document.createTextNode(text.slice(at)));
  return out;
}

function lines(text) {
  return text.split("\n").flatMap((line, i) => (i ? [make("br"), ...inline(line)] : inline(line)));
}

function codeBlock(body, language) {
  const pre = make("pre", [make("code", body)], { tabindex: "0" });
  if (navigator.clipboard) { // browsers have none on plain http from another machine
    const copy = make("button", "Copy", { type: "button", class: "copy" });
    copy.addEventListener("click", () => navigator.clipboard.writeText(body));
    pre.append(copy);
  }
  if (/^[\w+#.-]{1,20}$/.test(language)) pre.dataset.language = language;
  return pre;
}

const cells = (row) => row.trim().replace(/^\||\|$/g, "").split("|").map((c) => c.trim());

function table(rows) {
  const head = make("tr", cells(rows[0]).map((c) => make("th", inline(c))));
  const body = rows.slice(2).map((r) => make("tr", cells(r).map((c) => make("td", inline(c)))));
  return make("table", [make("thead", head), make("tbody", body)]);
}

const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const FENCE = /^(\s*)(`{3,}|~{3,})\s*(\S*)/;

// The row that closes the fence at row i, or the end of all rows where none does.
function fenceEnd(rows, i) {
  const mark = FENCE.exec(rows[i])[2];
  for (i++; i < rows.length; i++) {
    const row = rows[i].trim();
    if (row.startsWith(mark) && !row.slice(mark.length).trim()) break;
  }
  return i;
}

// The row behind the list that begins at row i: its items, what is indented below them, and code up to its end.
function listEnd(rows, i) {
  for (i++; i < rows.length && (ITEM.test(rows[i]) || /^\s+\S/.test(rows[i])); i++) if (FENCE.test(rows[i])) i = fenceEnd(rows, i);
  return Math.min(i, rows.length);
}

// What stands below an item: a list, text that goes on, or, where there is code among it, all of it as blocks.
function below(rows) {
  if (!rows.length) return [];
  if (rows.some((r) => FENCE.test(r))) {
    const indent = rows.reduce((least, r) => (r.trim() ? Math.min(least, r.search(/\S/)) : least), Infinity);
    return [render(rows.map((r) => r.slice(indent)).join("\n"))];
  }
  return ITEM.test(rows[0]) ? [list(rows)] : lines("\n" + rows.map((r) => r.trim()).join("\n"));
}

function list(rows) {
  const first = ITEM.exec(rows[0]);
  const items = [];
  for (let i = 0; i < rows.length; i++) {
    const found = ITEM.exec(rows[i]);
    if (found && found[1].length <= first[1].length) {
      items.push({ text: found[3], inner: [] });
      continue;
    }
    const end = FENCE.test(rows[i]) ? fenceEnd(rows, i) : i; // nothing in a block of code begins an item
    items.at(-1).inner.push(...rows.slice(i, end + 1));
    i = end;
  }
  const nodes = items.map(({ text, inner }) => make("li", [...inline(text), ...below(inner)]));
  return /\d/.test(first[2]) ? make("ol", nodes, { start: parseInt(first[2], 10) }) : make("ul", nodes);
}

export function render(text) {
  const out = document.createDocumentFragment();
  const rows = text.replace(/\r\n?/g, "\n").split("\n");
  const until = (i, stop) => { while (i < rows.length && !stop(rows[i])) i++; return i; };
  for (let i = 0; i < rows.length;) {
    const row = rows[i];
    const fence = FENCE.exec(row);
    const heading = /^(#{1,6})\s+(.*)$/.exec(row);
    if (!row.trim()) { i++; continue; }
    if (fence) {
      const end = fenceEnd(rows, i), indent = new RegExp(`^\\s{0,${fence[1].length}}`);
      out.append(codeBlock(rows.slice(i + 1, end).map((r) => r.replace(indent, "")).join("\n"), fence[3]));
      i = end + 1;
    } else if (heading) {
      out.append(make(`h${Math.min(6, heading[1].length + 1)}`, inline(heading[2])));
      i++;
    } else if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(row)) {
      out.append(make("hr"));
      i++;
    } else if (ITEM.test(row)) {
      const end = listEnd(rows, i);
      out.append(list(rows.slice(i, end)));
      i = end;
    } else if (row.startsWith(">")) {
      const end = until(i, (r) => !r.startsWith(">"));
      out.append(make("blockquote", lines(rows.slice(i, end).map((r) => r.replace(/^>\s?/, "")).join("\n"))));
      i = end;
    } else if (row.includes("|") && /^[\s|:-]+$/.test(rows[i + 1] ?? "") && (rows[i + 1] ?? "").includes("-")) {
      const end = until(i + 2, (r) => !r.includes("|"));
      out.append(table(rows.slice(i, end)));
      i = end;
    } else {
      const end = until(i + 1, (r) => !r.trim() || FENCE.test(r) || /^#{1,6}\s/.test(r) || ITEM.test(r) || r.startsWith(">"));
      out.append(make("p", lines(rows.slice(i, end).join("\n"))));
      i = end;
    }
  }
  return out;
}
