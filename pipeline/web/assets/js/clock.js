/**
 * Times in the zone that the viewer chose. Every time is shown with its UTC form beside it, because a witness statement
 * needs one and a person reads the other.
 */

const KEY = 'sightline.zone';

const chosen = { zone: initial() };

/** @returns {string} */
function initial() {
  const stored = localStorage.getItem(KEY);
  if (stored && valid(stored)) return stored;
  return Intl.DateTimeFormat().resolvedOptions().timeZone || 'UTC';
}

/**
 * @param {string} zone
 * @returns {boolean}
 */
function valid(zone) {
  try {
    return Boolean(new Intl.DateTimeFormat('en', { timeZone: zone }));
  } catch {
    return false;
  }
}

/** The chosen zone, a name of the IANA database. */
export function zone() {
  return chosen.zone;
}

/**
 * Choose a zone and tell the page.
 *
 * @param {string} name
 */
export function choose(name) {
  if (!valid(name)) return;
  chosen.zone = name;
  localStorage.setItem(KEY, name);
  document.dispatchEvent(new CustomEvent('zone'));
}

/**
 * Every zone that the browser knows, those of this viewer first.
 *
 * @param {string[]} first
 * @returns {string[]}
 */
export function zones(first) {
  const here = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const known = Intl.supportedValuesOf('timeZone');
  return [...new Set([chosen.zone, here, 'UTC', ...first, ...known].filter((name) => name && valid(name)))];
}

/** @type {Map<string, Intl.DateTimeFormat>} */
const formats = new Map();

/**
 * @param {number} milliseconds
 * @param {string} name
 * @returns {{year: number, month: number, day: number, hour: number, minute: number, second: number}}
 */
function parts(milliseconds, name) {
  let format = formats.get(name);
  if (!format) {
    format = new Intl.DateTimeFormat('en-GB', {
      timeZone: name,
      hourCycle: 'h23',
      year: 'numeric',
      month: '2-digit',
      day: '2-digit',
      hour: '2-digit',
      minute: '2-digit',
      second: '2-digit',
    });
    formats.set(name, format);
  }
  /** @type {Record<string, number>} */
  const found = {};
  for (const part of format.formatToParts(milliseconds)) found[part.type] = Number(part.value);
  return /** @type {any} */ (found);
}

/** @param {number} value */
const two = (value) => String(value).padStart(2, '0');

/**
 * Milliseconds since 1970 of an RFC 3339 time.
 *
 * @param {string} text
 */
export function millis(text) {
  return Date.parse(text);
}

/**
 * RFC 3339 in UTC.
 *
 * @param {number} milliseconds
 */
export function rfc3339(milliseconds) {
  return new Date(milliseconds).toISOString().replace('.000Z', 'Z');
}

/**
 * `2026-11-26`, in the chosen zone.
 *
 * @param {number} milliseconds
 * @param {string} [name]
 */
export function day(milliseconds, name = chosen.zone) {
  const p = parts(milliseconds, name);
  return `${p.year}-${two(p.month)}-${two(p.day)}`;
}

/**
 * `13:05:22`, in the chosen zone.
 *
 * @param {number} milliseconds
 * @param {string} [name]
 */
export function time(milliseconds, name = chosen.zone) {
  const p = parts(milliseconds, name);
  return `${two(p.hour)}:${two(p.minute)}:${two(p.second)}`;
}

/**
 * `2026-11-26 13:05:22`, in the chosen zone.
 *
 * @param {number} milliseconds
 * @param {string} [name]
 */
export function stamp(milliseconds, name = chosen.zone) {
  return `${day(milliseconds, name)} ${time(milliseconds, name)}`;
}

/**
 * `UTC 12:05:22`, with the date where it is not the one of the chosen zone.
 *
 * @param {number} milliseconds
 */
export function utc(milliseconds) {
  const same = day(milliseconds) === day(milliseconds, 'UTC');
  return `UTC ${same ? time(milliseconds, 'UTC') : stamp(milliseconds, 'UTC')}`;
}

/**
 * Whether the chosen zone shows the same clock as UTC at a time.
 *
 * @param {number} milliseconds
 */
export function isUtc(milliseconds) {
  return stamp(milliseconds) === stamp(milliseconds, 'UTC');
}

/**
 * How far the chosen zone is ahead of UTC, as `+01:00`.
 *
 * @param {number} milliseconds
 * @param {string} [name]
 */
export function offset(milliseconds, name = chosen.zone) {
  const minutes = Math.round(ahead(milliseconds, name) / 60000);
  const size = Math.abs(minutes);
  return `${minutes < 0 ? '−' : '+'}${two(Math.floor(size / 60))}:${two(size % 60)}`;
}

/**
 * @param {number} milliseconds
 * @param {string} name
 */
function ahead(milliseconds, name) {
  const p = parts(milliseconds, name);
  return Date.UTC(p.year, p.month - 1, p.day, p.hour, p.minute, p.second) - Math.floor(milliseconds / 1000) * 1000;
}

/**
 * The value of a `datetime-local` control for a time.
 *
 * @param {string|null|undefined} text RFC 3339
 */
export function toLocal(text) {
  if (!text) return '';
  return stamp(millis(text)).replace(' ', 'T');
}

/**
 * The time that a `datetime-local` control shows, in the chosen zone. Of two such times, when clocks go back, the first;
 * of none, when they go forward, the one that the clock before the change would show.
 *
 * @param {string} value
 * @returns {string|undefined} RFC 3339; undefined if the control is empty
 */
export function fromLocal(value) {
  if (!value) return undefined;
  const wall = Date.parse(`${value}Z`);
  if (!Number.isFinite(wall)) return undefined;
  const before = wall - ahead(wall - 86400000, chosen.zone);
  const after = wall - ahead(wall + 86400000, chosen.zone);
  const shown = `${value}:00`.slice(0, 19);
  for (const candidate of [before, after]) {
    if (stamp(candidate).replace(' ', 'T') === shown) return rfc3339(candidate);
  }
  return rfc3339(before);
}

/**
 * The start and the end of a day of the chosen zone, milliseconds since 1970.
 *
 * @param {string} name `2026-11-26`
 * @returns {[number, number]}
 */
export function dayRange(name) {
  const start = fromLocal(`${name}T00:00:00`) ?? `${name}T00:00:00Z`;
  const next = new Date(Date.parse(`${name}T12:00:00Z`) + 86400000).toISOString().slice(0, 10);
  return [millis(start), millis(fromLocal(`${next}T00:00:00`) ?? `${next}T00:00:00Z`)];
}
