/**
 * Requests to the server: JSON, problem details as errors, and server-sent events read from the body of a POST.
 *
 * This module does not know who is logged in; `session.js` hands it the CSRF token and learns here of an expired log-in.
 */

import { strings } from './strings.js';

const ROOT = 'api/v1';
const NETWORK = 'network';

/** An answer that is not a success, or no answer at all (`status` 0). */
export class ApiError extends Error {
  /**
   * @param {import('./types.js').Problem} problem
   * @param {number} status
   * @param {number} retryAfter seconds until the server takes the request again, 0 if it did not say
   */
  constructor(problem, status, retryAfter = 0) {
    super(problem.detail || problem.title || strings.errors.status(status));
    this.name = 'ApiError';
    this.problem = problem;
    this.status = status;
    this.retryAfter = retryAfter;
  }

  /** Whether no answer came. */
  get offline() {
    return this.status === 0;
  }
}

const state = { csrf: '', expired: () => {} };

/**
 * Set what goes with every request.
 *
 * @param {string} csrf token against cross-site requests, sent with everything that changes something
 * @param {() => void} expired called when the server no longer knows the session
 */
export function identify(csrf, expired) {
  state.csrf = csrf;
  state.expired = expired;
}

/**
 * The address of a route, with what is not empty of its query.
 *
 * @param {string} path below /api/v1
 * @param {Record<string, string|number|boolean|null|undefined>} [query]
 * @returns {string}
 */
export function address(path, query = {}) {
  const pairs = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== '');
  const text = new URLSearchParams(pairs.map(([name, value]) => [name, String(value)])).toString();
  return ROOT + path + (text ? `?${text}` : '');
}

/**
 * The address of a picture that the server names, or of the frame if it names none. Only the server's own addresses.
 *
 * @param {string|null|undefined} url
 * @returns {string|null}
 */
export function own(url) {
  if (!url) return null;
  try {
    const parsed = new URL(url, document.baseURI);
    return parsed.origin === location.origin ? parsed.href : null;
  } catch {
    return null;
  }
}

/**
 * @param {string} stream
 * @param {string} at
 * @param {number} [width]
 */
export function thumbnail(stream, at, width = 320) {
  return address('/thumbnail', { stream, at, width });
}

/**
 * @param {string} stream
 * @param {string} at
 */
export function picture(stream, at) {
  return address('/frame', { stream, at });
}

/**
 * @param {string} method
 * @param {string} url
 * @param {{body?: any, signal?: AbortSignal, type?: string, accept?: string}} [options]
 * @returns {Promise<Response>}
 */
async function send(method, url, options = {}) {
  /** @type {Record<string, string>} */
  const headers = { Accept: options.accept ?? 'application/json' };
  if (method !== 'GET') headers['X-CSRF-Token'] = state.csrf;
  let body = options.body;
  if (body !== undefined) {
    headers['Content-Type'] = options.type ?? 'application/json';
    if (!options.type) body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(url, { method, headers, body, signal: options.signal, credentials: 'same-origin' });
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') throw error;
    throw new ApiError({ code: NETWORK, detail: strings.errors.offline }, 0);
  }
  if (response.ok) return response;
  throw await failure(response);
}

/**
 * @param {Response} response
 * @returns {Promise<ApiError>}
 */
async function failure(response) {
  /** @type {import('./types.js').Problem} */
  let problem = {};
  try {
    const parsed = await response.json();
    if (parsed && typeof parsed === 'object') problem = parsed;
  } catch {
    // Not JSON: the status has to do.
  }
  if (typeof problem.detail !== 'string') delete problem.detail;
  const wait = Number(response.headers.get('Retry-After'));
  const error = new ApiError(problem, response.status, Number.isFinite(wait) ? wait : 0);
  if (response.status === 401) state.expired();
  return error;
}

/**
 * @param {string} path
 * @param {Record<string, any>} [query]
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export async function get(path, query, signal) {
  return (await send('GET', address(path, query), { signal })).json();
}

/**
 * Send a body with POST, PATCH or DELETE.
 *
 * @param {'POST'|'PATCH'|'DELETE'} method
 * @param {string} path
 * @param {any} [body]
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>} the JSON of the answer; null if it has none
 */
export async function change(method, path, body, signal) {
  const response = await send(method, address(path), { body, signal });
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}

/**
 * Upload a picture as it is.
 *
 * @param {Blob} blob
 * @param {AbortSignal} [signal]
 * @returns {Promise<{id: string, width: number, height: number}>}
 */
export async function upload(blob, signal) {
  return (await send('POST', address('/pictures'), { body: blob, type: blob.type, signal })).json();
}

/**
 * Read server-sent events, from the body of a POST or of a GET if there is no body.
 *
 * @param {string} path
 * @param {any} body
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<{event: string, data: any}>}
 */
export async function* events(path, body, signal) {
  const method = body === undefined ? 'GET' : 'POST';
  const response = await send(method, address(path), { body, signal, accept: 'text/event-stream' });
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  try {
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        if (error instanceof DOMException && error.name === 'AbortError') throw error;
        throw new ApiError({ code: NETWORK, detail: strings.errors.cut }, 0);
      }
      if (part.done) return;
      text += part.value.replaceAll('\r\n', '\n');
      for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
        const block = text.slice(0, end);
        text = text.slice(end + 2);
        const parsed = parse(block);
        if (parsed) yield parsed;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * @param {string} block the lines of one event
 * @returns {{event: string, data: any}|null} null for a comment
 */
export function parse(block) {
  let event = 'message';
  /** @type {string[]} */
  const data = [];
  for (const line of block.split('\n')) {
    if (line.startsWith('event:')) event = line.slice(6).trim();
    else if (line.startsWith('data:')) data.push(line.slice(5).replace(/^ /, ''));
  }
  if (!data.length) return null;
  const text = data.join('\n');
  try {
    return { event, data: JSON.parse(text) };
  } catch {
    return { event, data: text };
  }
}
