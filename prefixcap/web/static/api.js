// Requests to the HTTP API, as anyone may send them.

const AT_ONCE = 4; // requests
const MOST_TRIES = 30; // while the server is busy

let running = 0;
const waiting = [];

async function turn() {
  if (running >= AT_ONCE) await new Promise((go) => waiting.push(go));
  else running += 1;
}

function turnOver() {
  if (waiting.length) waiting.shift()();
  else running -= 1;
}

// The answer to a form. What is no longer wanted (`signal`) is not sent, and the server stops what it has not begun.
export async function ask(path, parts, { signal, whileBusy = () => {} } = {}) {
  const form = new FormData();
  for (const [name, value] of parts) form.append(name, value);
  await turn();
  try {
    for (let tries = 1; ; tries += 1) {
      signal?.throwIfAborted();
      const response = await fetch(`v1/${path}`, { method: "POST", body: form, signal }).catch((error) => {
        signal?.throwIfAborted();
        throw new Error("the server cannot be reached: is it still running?", { cause: error });
      });
      const answer = await response.json().catch(() => {
        signal?.throwIfAborted();
        return { error: `the server answered ${response.status}` };
      });
      if (response.ok) return answer;
      if (response.status !== 503 || tries === MOST_TRIES) throw new Error(answer.error);
      whileBusy();
      await pause(1000 * (Number(response.headers.get("Retry-After")) || 1), signal);
    }
  } finally {
    turnOver();
  }
}

function pause(milliseconds, signal) {
  return new Promise((go) => {
    const timer = setTimeout(go, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      go();
    });
  });
}
