/** Cameras and archives: the latest picture, what is covered day by day, and how live ones are doing. */

import { get, own } from '../api.js';
import { catalogue } from '../catalogue.js';
import * as clock from '../clock.js';
import { covered, Coverage, gaps } from '../coverage.js';
import { button, fill, h, icon, linkButton } from '../dom.js';
import { pageHead, photo } from '../fields.js';
import { pause } from '../jobs.js';
import { count, duration, size, spoken, when } from '../moments.js';
import { empty, explain, left, problem, waiting } from '../notices.js';
import { go, href } from '../router.js';
import { may } from '../session.js';
import { strings } from '../strings.js';

const DAYS = 7;
const EVERY = 10000;
const LISTED = 50;
const FILTER_FROM = 6;

/** @typedef {import('../types.js').Stream} Stream */

/**
 * @param {HTMLElement} root
 * @param {URLSearchParams} _params
 * @param {{signal: AbortSignal}} context
 */
export async function streams(root, _params, { signal }) {
  const text = strings.streams;
  const total = h('p', { class: 'soft page-note' });
  const list = h('div', { class: 'stream-list' });
  const filter = h('input', {
    type: 'search',
    placeholder: strings.fields.filter,
    'aria-label': strings.fields.filterStreams,
    hidden: true,
  });
  fill(root, pageHead(text.title, filter), total, list);
  fill(list, waiting(strings.loading));
  /** @type {Map<string, {card: HTMLElement, said: string, made: {coverage: Coverage|null}}>} */
  const cards = new Map();
  /** @type {Stream[]} */
  let shown = [];

  const match = () => {
    const wanted = filter.value.trim().toLowerCase();
    for (const [name, entry] of cards) entry.card.hidden = Boolean(wanted) && !name.toLowerCase().includes(wanted);
  };
  filter.addEventListener('input', match);

  const draw = () => {
    if (!shown.length) {
      fill(total);
      fill(list, empty(text.none, text.noneHow));
      return;
    }
    if (!cards.size) fill(list);
    const frames = shown.reduce((sum, stream) => sum + stream.frames, 0);
    fill(total, text.total(count(shown.length), count(frames)));
    filter.hidden = shown.length < FILTER_FROM;
    const names = new Set(shown.map((stream) => stream.stream_id));
    for (const [name, entry] of cards) {
      if (names.has(name)) continue;
      entry.made.coverage?.destroy();
      entry.card.remove();
      cards.delete(name);
    }
    for (const stream of shown) {
      const said = JSON.stringify(stream);
      const before = cards.get(stream.stream_id);
      if (before?.said === said || before?.card.contains(document.activeElement)) continue;
      const { card, made } = streamCard(stream, signal);
      before?.made.coverage?.destroy();
      if (before) before.card.replaceWith(card);
      else list.append(card);
      cards.set(stream.stream_id, { card, said, made });
    }
    match();
  };

  const refresh = async () => {
    try {
      shown = await catalogue(true);
      if (!signal.aborted) draw();
    } catch (error) {
      if (!signal.aborted && !left(error)) fill(list, problem(error, refresh));
      cards.clear();
    }
  };
  await refresh();
  document.addEventListener(
    'zone',
    () => {
      for (const entry of cards.values()) entry.said = '';
      draw();
    },
    { signal },
  );
  signal.addEventListener('abort', () => cards.forEach((entry) => entry.made.coverage?.destroy()));
  keepFresh(signal, refresh);
}

/**
 * @param {AbortSignal} signal
 * @param {() => Promise<void>} refresh
 */
async function keepFresh(signal, refresh) {
  try {
    for (;;) {
      await pause(EVERY, signal);
      if (!document.hidden) await refresh();
    }
  } catch {
    // The view was left.
  }
}

/**
 * @param {Stream} stream
 * @param {AbortSignal} signal
 * @returns {{card: HTMLElement, made: {coverage: Coverage|null}}}
 */
function streamCard(stream, signal) {
  const text = strings.streams;
  const name = stream.stream_id;
  const place = h('div', { class: 'coverage-place' });
  const under = h('div', null);
  const open = (/** @type {number} */ at) =>
    go('moment', { stream: name, at: clock.rfc3339(Math.floor(at / 1000) * 1000) });
  /** @type {{coverage: Coverage|null}} */
  const made = { coverage: null };
  const bars = (/** @type {[number, number][]} */ stretches, /** @type {number} */ days) => {
    made.coverage?.destroy();
    const coverage = new Coverage({ stream: name, stretches, days, pick: open });
    made.coverage = coverage;
    const more = stream.days.length > days;
    fill(
      place,
      coverage.element,
      more
        ? button(text.allDays(stream.days.length), () => bars(stretches, Infinity), { small: true, kind: 'quiet' })
        : null,
    );
  };
  place.style.setProperty('min-height', `${Math.min(DAYS, stream.days.length) * 20 + 16}px`);
  const load = async () => {
    try {
      const reply = await get('/streams/coverage', { stream: name }, signal);
      const stretches = covered(reply.intervals);
      if (stretches.length) bars(stretches, DAYS);
      fill(under, gapList(gaps(stretches), stretches.length > 0));
    } catch (error) {
      if (!left(error)) fill(place, h('p', { class: 'hint' }, explain(error)));
    }
  };
  const latest = stream.last
    ? h(
        'a',
        { href: href('moment', { stream: name, at: stream.last }), class: 'stream-picture' },
        photo(own(stream.picture), text.latest(name, spoken(stream.last)), { lazy: true }),
      )
    : h('div', { class: 'stream-picture' }, photo(null, ''));
  /** @type {(string|Node|null)[][]} */
  const facts = [
    [text.frames, count(stream.frames)],
    [text.first, when(stream.first, { stacked: true })],
    [text.last, when(stream.last, { stacked: true })],
    [text.clock, stream.clock_sources.join(', ') || strings.unknown],
    [text.retention, kept(stream)],
    [text.encoder, [stream.encoder?.frame, stream.encoder?.patch].filter(Boolean).join(' + ') || strings.unknown],
  ];
  const card = h(
    'article',
    { class: 'card stream', 'aria-label': name },
    latest,
    h(
      'div',
      { class: 'stream-facts' },
      h(
        'h2',
        null,
        name,
        liveBadge(stream),
        stream.holds ? h('span', { class: 'badge held' }, icon('lock'), text.holds(stream.holds)) : null,
      ),
      h(
        'dl',
        { class: 'facts' },
        facts.map(([term, value]) => h('div', null, h('dt', null, term), h('dd', null, value))),
      ),
      stream.live?.why ? h('p', { class: 'hint' }, stream.live.why) : null,
      h(
        'div',
        { class: 'row' },
        linkButton(text.search, href('search', { streams: [name] }), { icon: 'search', small: true }),
        may('ask') ? linkButton(text.ask, href('ask', { streams: [name] }), { icon: 'ask', small: true }) : null,
        may('export') && stream.first && stream.last
          ? linkButton(text.export, href('exports', { stream: name, start: stream.first, end: stream.last }), {
              icon: 'exports',
              small: true,
            })
          : null,
      ),
    ),
    h('div', { class: 'stream-coverage' }, place, under),
  );
  // The bars of a stream are asked for when it comes into view: there may be hundreds of streams.
  const seen = new IntersectionObserver(
    (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      seen.disconnect();
      load();
    },
    { rootMargin: '300px' },
  );
  seen.observe(card);
  return { card, made };
}

/**
 * @param {[number, number][]} holes
 * @param {boolean} any whether there is footage at all
 */
function gapList(holes, any) {
  const text = strings.streams;
  if (!holes.length) return h('p', { class: 'hint' }, any ? text.noGaps : '');
  return h(
    'details',
    { class: 'gaps' },
    h('summary', null, text.gaps(holes.length)),
    h(
      'ul',
      null,
      holes
        .slice(-LISTED)
        .map(([start, end]) =>
          h(
            'li',
            null,
            when(clock.rfc3339(start), { end: end - start < 86400000 ? clock.rfc3339(end) : null }),
            ' ',
            h('span', { class: 'soft' }, duration((end - start) / 1000)),
          ),
        ),
    ),
  );
}

/** @param {Stream} stream */
function liveBadge(stream) {
  const text = strings.streams;
  const live = stream.live;
  if (!live) return h('span', { class: 'badge' }, text.archive);
  const age = live.newest_age_seconds;
  const words = [live.state];
  if (typeof age === 'number') words.push(text.age(duration(age)));
  if (live.drops) words.push(text.drops(count(live.drops)));
  const well = ['live', 'running', 'ok', 'connected'].includes(live.state);
  return h('span', { class: `badge ${well ? 'good' : 'bad'}` }, words.join(' · '));
}

/** @param {Stream} stream */
function kept(stream) {
  const rule = stream.retention;
  const words = [];
  if (rule?.days) words.push(strings.units.days(rule.days));
  if (rule?.bytes) words.push(size(rule.bytes));
  return words.join(', ') || strings.streams.forever;
}
