/** How a time, a score and a verdict are written. */

import * as clock from './clock.js';
import { h, icon } from './dom.js';
import { strings } from './strings.js';

/**
 * A time in the chosen zone with UTC beside it.
 *
 * @param {string|null|undefined} at RFC 3339
 * @param {{end?: string|null, date?: boolean, stacked?: boolean}} [options] `date`: with the day
 * @returns {HTMLElement}
 */
export function when(at, options = {}) {
  if (!at) return h('span', { class: 'soft' }, strings.never);
  const start = clock.millis(at);
  const end = options.end ? clock.millis(options.end) : null;
  const wide = options.date !== false;
  const until = end !== null && end - start >= 1000 ? `–${clock.time(end)}` : '';
  const local = (wide ? clock.stamp(start) : clock.time(start)) + until;
  if (clock.isUtc(start)) return h('time', { class: 'when', datetime: at }, `${local} UTC`);
  return h(
    'time',
    { class: options.stacked ? 'when stacked' : 'when', datetime: at },
    h('span', null, `${local} ${clock.offset(start)}`),
    h('span', { class: 'utc' }, clock.utc(start)),
  );
}

/**
 * A time as plain text, for names of controls.
 *
 * @param {string} at
 */
export function spoken(at) {
  const start = clock.millis(at);
  return clock.isUtc(start)
    ? `${clock.stamp(start)} UTC`
    : `${clock.stamp(start)} ${clock.offset(start)}, ${clock.utc(start)}`;
}

/**
 * A duration for a person: `4 s`, `12 min`, `3 h`, `2 days`.
 *
 * @param {number} seconds
 */
export function duration(seconds) {
  const units = strings.units;
  if (seconds < 90) return units.seconds(Math.round(seconds));
  if (seconds < 5400) return units.minutes(Math.round(seconds / 60));
  if (seconds < 172800) return units.hours(Math.round(seconds / 360) / 10);
  return units.days(Math.round(seconds / 86400));
}

/**
 * Bytes for a person.
 *
 * @param {number} bytes
 */
export function size(bytes) {
  const names = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < names.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${names[unit]}`;
}

const numbers = new Intl.NumberFormat('en');

/** @param {number} value */
export function count(value) {
  return numbers.format(value);
}

/** @type {Record<import('./types.js').Verdict, import('./dom.js').IconName>} */
const MARKS = { confirmed: 'check', rejected: 'cross', not_looked: 'dot', pending: 'history', unavailable: 'warning' };

/**
 * What the language model said about a moment. Anything but an answer of the model is shown as no answer.
 *
 * @param {import('./types.js').Verification|null|undefined} verification
 * @returns {HTMLElement}
 */
export function verdict(verification) {
  const known = verification && verification.state in MARKS ? verification : null;
  const state = known?.state ?? 'not_looked';
  const share = known?.probability;
  const sure = (state === 'confirmed' || state === 'rejected') && typeof share === 'number';
  const text = strings.verdicts[state] + (sure ? ` ${Math.round(share * 100)} %` : '');
  const why = known?.why ?? '';
  return h(
    'span',
    { class: `verdict ${state}`, title: why || null },
    icon(MARKS[state]),
    h('span', { class: 'verdict-text' }, text, why ? h('span', { class: 'verdict-why' }, ` · ${why}`) : null),
  );
}
