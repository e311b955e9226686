// This server's chat completions as a stream of deltas.

export async function modelCard(key) {
  const answer = await fetch("v1/models", { headers: head(key) });
  if (!answer.ok) throw new Error(await faultOf(answer));
  return (await answer.json()).data[0];
}

export async function* stream(body, key, signal) {
  const answer = await fetch("v1/chat/completions", {
    method: "POST", signal, headers: { "Content-Type": "application/json", ...head(key) },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  if (!answer.ok) throw new Error(await faultOf(answer));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "", ended = false;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done && ended) return;
      if (done) throw new Error("The connection was lost before the answer's end."); // a proxy may close it like an end
      held += value;
      const events = held.split("\n\n");
      held = events.pop();
      for (const event of events) {
        const data = event.split("\n").filter((l) => l.startsWith("data: ")).map((l) => l.slice(6)).join("\n");
        if (!data) continue;
        ended ||= data === "[DONE]";
        if (ended) continue;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Error(chunk.error.message);
        yield chunk;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the server stops writing what nobody reads
  }
}

const head = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

async function faultOf(answer) {
  try { return (await answer.json()).error.message; } catch { return `The server answered ${answer.status}.`; }
}
