// One question to the server: the deltas of its answer as they come.

/** What went wrong, in words for people. `status` is that of the server, 0 if the connection was lost. */
export class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const ADVICE = {
  401: "Give the API key of this server below, and ask again.",
  429: "The server has as much to do as it can. Ask again in a moment.",
  503: "The server is stopping. Ask again when it runs.",
};

/** Headers of a request, with the key if there is one. */
export function headers(key) {
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

/**
 * Ask, and yield every chunk of the answer.
 *
 * @param {object} body a chat request
 * @param {string} key the API key, or ""
 * @param {AbortSignal} signal stops the answer
 */
export async function* ask(body, key, signal) {
  let response;
  try {
    response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: headers(key),
      body: JSON.stringify({ ...body, stream: true }),
      signal,
    });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Problem("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) {
    const said = await response.json().then((answer) => answer.error.message).catch(() => response.statusText);
    throw new Problem(ADVICE[response.status] ?? `The server refused this: ${said}`, response.status);
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      throw new Problem("The connection was lost in the middle of the answer. What had come is kept.");
    }
    if (piece.done) throw new Problem("The answer broke off. What had come is kept.");
    const events = (rest + piece.value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Problem(`The server failed: ${chunk.error.message}`, 500);
      yield chunk;
    }
  }
}
