/** The streams of the store, asked for once and kept for a moment, because several views name them. */

import { get } from './api.js';

const FRESH = 20000;
const PAGES = 50;

/** @type {{at: number, streams: Promise<import('./types.js').Stream[]>|null}} */
const kept = { at: 0, streams: null };

/**
 * All streams that the viewer may see.
 *
 * @param {boolean} [anew] ask again even if what is known is fresh
 * @returns {Promise<import('./types.js').Stream[]>}
 */
export function catalogue(anew = false) {
  if (anew || !kept.streams || Date.now() - kept.at > FRESH) {
    kept.at = Date.now();
    const asked = load();
    kept.streams = asked;
    asked.catch(() => {
      if (kept.streams === asked) kept.streams = null;
    });
  }
  return kept.streams;
}

/** Forget what is known, when somebody else logs in. */
export function forget() {
  kept.streams = null;
}

/** @returns {Promise<import('./types.js').Stream[]>} */
async function load() {
  /** @type {import('./types.js').Stream[]} */
  const result = [];
  let cursor = null;
  for (let page = 0; page < PAGES; page += 1) {
    const reply = /** @type {import('./types.js').Page<import('./types.js').Stream>} */ (
      await get('/streams', { cursor })
    );
    result.push(...reply.items);
    cursor = reply.next;
    if (!cursor) break;
  }
  return result;
}

/**
 * The newest time of some streams; of all if none is named.
 *
 * @param {import('./types.js').Stream[]} streams
 * @param {string[]} names
 * @returns {string|null}
 */
export function newest(streams, names) {
  const chosen = names.length ? streams.filter((stream) => names.includes(stream.stream_id)) : streams;
  return (
    chosen
      .map((stream) => stream.last)
      .filter((last) => last !== null)
      .sort()
      .pop() ?? null
  );
}
