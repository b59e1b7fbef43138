// Calls to the service: JSON in and out, one kind of error, patience when it is busy.

const LONGEST_MS = 60_000;
const TRIES = 4;

/** Why a call has no answer. `status` is 0 where nobody answered at all. */
export class Trouble extends Error {
  constructor(message, status = 0, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/**
 * The answer to a call.
 *
 * @param {string} path
 * @param {{body?: object, token?: string, signal?: AbortSignal, busy?: (seconds: number) => void}} options
 *   `busy` is told when the service is full and the call waits before it tries again.
 */
export async function call(path, { body, token, signal, busy } = {}) {
  for (let tried = 1; ; tried += 1) {
    const answer = await send(path, body, token, signal);
    const wait = Number(answer.headers.get("retry-after"));
    if ((answer.status === 429 || answer.status === 503) && wait > 0 && tried < TRIES) {
      const seconds = Math.min(wait, 10);
      busy?.(seconds);
      await pause(seconds * 1000, signal);
      continue;
    }
    return read(answer);
  }
}

async function send(path, body, token, signal) {
  const headers = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (token) headers.Authorization = `Bearer ${token}`;
  const late = AbortSignal.timeout(LONGEST_MS);
  try {
    return await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, late]) : late,
      cache: "no-store",
      credentials: "omit",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    if (late.aborted) throw new Trouble("The server took longer than a minute.");
    throw new Trouble("The server does not answer.");
  }
}

async function read(answer) {
  let value;
  try {
    value = await answer.json();
  } catch {
    value = null;
  }
  if (answer.ok && value !== null) return value;
  throw new Trouble(said(answer.status, value?.error), answer.status, value?.code ?? "");
}

function said(status, error) {
  if (status === 401) return "That is not the admin token.";
  if (status === 429) return "The server is full. Please try again in a moment.";
  if (status === 503) return "The server is stopping.";
  if (status === 504) return "The answer took too long.";
  if (status >= 500) return `The server had a problem of its own (${status}); its log has the reason.`;
  return error ?? `The server answered ${status} without a reason.`;
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** The one answer of a call with one row. */
export async function one(path, row, options) {
  const { responses } = await call(path, { ...options, body: { requests: [row] } });
  const [answer] = responses;
  if (answer.error) throw new Trouble(answer.error, 200, "row");
  return answer;
}

export const gone = (error) => error instanceof Trouble && error.status === 0;

export const aborted = (error) => error?.name === "AbortError";
