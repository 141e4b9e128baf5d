/**
 * Search by words, by a picture, and by "more like this"; hits are moments.
 *
 * What is searched is in the address, so that a search can be kept and sent. A hit says what the language model said
 * about it, and a model that cannot be reached is shown as such.
 */

import { change, own } from '../api.js';
import { catalogue } from '../catalogue.js';
import * as clock from '../clock.js';
import { button, fill, h, linkButton } from '../dom.js';
import { pageHead, photo } from '../fields.js';
import { failed, follow } from '../jobs.js';
import { count, spoken, verdict, when } from '../moments.js';
import { empty, explain, left, notices, problem, toast, waiting } from '../notices.js';
import { queryForm, request } from '../query.js';
import { go, href } from '../router.js';
import { may } from '../session.js';
import { strings } from '../strings.js';
import { VirtualList } from '../virtual.js';

const VERIFIED_AT_ONCE = 20;

/** @typedef {import('../types.js').Hit} Hit */
/** @typedef {import('../types.js').SearchRequest} SearchRequest */

/**
 * @param {HTMLElement} root
 * @param {URLSearchParams} params
 * @param {{signal: AbortSignal}} context
 */
export async function search(root, params, { signal }) {
  const text = strings.search;
  const results = h('section', { class: 'results', 'aria-label': text.results });
  const form = h('form', { class: 'search-form', role: 'search' });
  fill(root, pageHead(text.title), form, results);
  const known = await catalogue().catch(() => []);
  if (signal.aborted) return;
  queryForm(form, params, known, signal);
  const body = request(params);
  if (!body) {
    fill(results, empty(text.start, text.startHow));
    return;
  }
  await drawResults(results, body, signal);
}

/**
 * @param {HTMLElement} results
 * @param {SearchRequest} body
 * @param {AbortSignal} signal
 */
async function drawResults(results, body, signal) {
  const text = strings.search;
  fill(results, waiting(text.searching));
  /** @type {import('../types.js').SearchPage} */
  let page;
  try {
    page = await change('POST', '/search', body, signal);
  } catch (error) {
    if (!left(error))
      fill(
        results,
        problem(error, () => drawResults(results, body, signal)),
      );
    return;
  }
  if (signal.aborted) return;
  const { frames, streams, seconds } = page.searched;
  const searched = text.searched(count(frames), streams.length, seconds);
  if (!page.items.length) {
    fill(
      results,
      notices(page.notices),
      empty(text.nothing, searched),
      body.min_percentile || body.start || body.time_of_day ? h('p', { class: 'hint centre' }, text.nothingHow) : null,
    );
    return;
  }
  /** @type {Hit[]} */
  const hits = [];
  const seen = new Set();
  let next = page.next;
  let loading = false;
  /** @type {'all'|'confirmed'|'open'} */
  let only = 'all';
  const status = h('p', { class: 'result-count', role: 'status' });
  const foot = h('div', { class: 'result-foot' });
  const fits = (/** @type {Hit} */ hit) =>
    only === 'all' ||
    (only === 'confirmed' ? hit.verification.state === 'confirmed' : hit.verification.state !== 'rejected');
  const actions = {
    like: (/** @type {Hit} */ hit) => go('search', { like: hit.stream_id, at: hit.best }),
    verify: (/** @type {Hit} */ hit) => verify([hit]),
  };
  /** @type {VirtualList<Hit>} */
  const list = new VirtualList({
    label: text.results,
    render: (hit, index) => hitCard(hit, index, body, actions),
    shape: (width) =>
      width < 560
        ? { columns: 1, height: 138 }
        : {
            columns: Math.max(2, Math.floor(width / 286)),
            height: Math.round(((width / Math.max(2, Math.floor(width / 286)) - 12) * 9) / 16) + 140,
          },
    more: () => loadMore(),
    keys: (hit, _index, key) => {
      if (key === 'Enter') go('moment', { stream: hit.stream_id, at: hit.best });
      else if (key === 'l') actions.like(hit);
      else if (key === 'v' && may('ask') && body.text) verify([hit]);
    },
  });
  signal.addEventListener('abort', () => list.destroy());

  const say = () => {
    const open = next !== null ? text.more : '';
    fill(status, text.found(count(hits.length), open), h('span', { class: 'soft' }, ` · ${searched}`));
  };
  const take = (/** @type {Hit[]} */ items) => {
    const fresh = items.filter((hit) => !seen.has(hit.id));
    for (const hit of fresh) {
      seen.add(hit.id);
      hits.push(hit);
    }
    list.complete = next === null;
    list.append(fresh.filter(fits));
    say();
  };
  const loadMore = async () => {
    if (loading || next === null) return;
    loading = true;
    fill(foot, waiting(text.loadingMore));
    try {
      const reply = await change('POST', '/search', { ...body, cursor: next }, signal);
      next = reply.next;
      fill(foot);
      loading = false;
      take(reply.items);
      if (next === null) fill(foot, h('p', { class: 'hint centre' }, text.end));
    } catch (error) {
      if (left(error)) return;
      fill(
        foot,
        problem(error, () => {
          loading = false;
          loadMore();
        }),
      );
    }
  };
  const verify = async (/** @type {Hit[]} */ chosen) => {
    const ids = new Set(chosen.map((hit) => hit.id));
    const draw = () => list.refresh((hit) => ids.has(hit.id));
    const open = (/** @type {string} */ why) => {
      // No answer is not a yes: the hits say that the model was not able to look.
      for (const hit of chosen)
        if (hit.verification.state === 'pending') hit.verification = { state: 'unavailable', why };
      draw();
    };
    const take = (/** @type {import('../types.js').Job} */ job) => {
      for (const said of /** @type {Pick<Hit, 'stream_id'|'start'|'verification'>[]} */ (job.result?.items ?? [])) {
        const hit = chosen.find(
          (each) => each.stream_id === said.stream_id && clock.millis(each.start) === clock.millis(said.start),
        );
        if (hit) hit.verification = said.verification;
      }
      draw();
    };
    for (const hit of chosen) hit.verification = { state: 'pending', why: '' };
    draw();
    try {
      const moments = chosen.map(({ stream_id, start, end }) => ({ stream_id, start, end }));
      const accepted = await change('POST', '/search/verify', { text: body.text, moments }, signal);
      const job = await follow(accepted.job, take, signal);
      if (failed(job)) throw new Error(explain(job.error));
      open(text.noVerdict);
      const yes = chosen.filter((hit) => hit.verification.state === 'confirmed').length;
      const asked = yes + chosen.filter((hit) => hit.verification.state === 'rejected').length;
      toast(asked ? text.verified(yes, asked) : text.notVerified, asked ? '' : 'bad');
    } catch (error) {
      if (left(error)) return;
      open(explain(error));
      toast(text.notVerified, 'bad');
    }
  };
  const choose = h(
    'select',
    { 'aria-label': text.show },
    /** @type {const} */ (['all', 'confirmed', 'open']).map((value) => h('option', { value }, text.shows[value])),
  );
  choose.addEventListener('change', () => {
    only = /** @type {typeof only} */ (choose.value);
    list.replace(hits.filter(fits));
  });
  fill(
    results,
    notices(page.notices),
    h(
      'div',
      { class: 'result-bar' },
      status,
      h(
        'div',
        { class: 'row' },
        body.text && may('ask')
          ? button(
              text.verify(VERIFIED_AT_ONCE),
              () => {
                const open = hits
                  .filter((hit) => hit.verification.state === 'not_looked' || hit.verification.state === 'unavailable')
                  .slice(0, VERIFIED_AT_ONCE);
                if (open.length) verify(open);
                else toast(text.allVerified);
              },
              { icon: 'check', small: true },
            )
          : null,
        choose,
      ),
    ),
    list.element,
    foot,
  );
  take(page.items);
  document.addEventListener('zone', () => list.refresh(() => true), { signal });
}

/**
 * @param {Hit} hit
 * @param {number} index
 * @param {SearchRequest} body
 * @param {{like: (hit: Hit) => void, verify: (hit: Hit) => void}} actions
 */
function hitCard(hit, index, body, actions) {
  const text = strings.search;
  const target = href('moment', { stream: hit.stream_id, at: hit.best });
  const percentile = typeof hit.percentile === 'number' ? hit.percentile : null;
  return h(
    'article',
    { class: 'hit', 'aria-label': text.hit(index + 1, hit.stream_id, spoken(hit.start)) },
    h(
      'div',
      { class: 'hit-card' },
      h(
        'a',
        { href: target, class: 'hit-picture', tabindex: '-1', 'aria-hidden': 'true' },
        photo(own(hit.thumbnail), '', { late: true }),
      ),
      h(
        'div',
        { class: 'hit-text' },
        h(
          'a',
          { href: target, class: 'hit-title' },
          h('b', null, hit.stream_id),
          when(hit.start, { end: hit.end, stacked: true }),
        ),
        h(
          'p',
          { class: 'hit-score', title: hit.meaning },
          h(
            'span',
            { class: 'meter', 'aria-hidden': 'true' },
            h('span', { style: { width: `${Math.max(2, percentile ?? 0)}%` } }),
          ),
          h('span', { class: 'hit-meaning' }, hit.meaning || text.score(hit.score)),
        ),
        h(
          'div',
          { class: 'hit-foot' },
          verdict(hit.verification),
          h(
            'span',
            { class: 'hit-actions' },
            body.text && may('ask') && ['not_looked', 'unavailable'].includes(hit.verification.state)
              ? button(text.verifyOne, () => actions.verify(hit), {
                  icon: 'check',
                  kind: 'quiet',
                  bare: true,
                  small: true,
                  key: 'v',
                })
              : null,
            button(text.moreLike, () => actions.like(hit), {
              icon: 'picture',
              kind: 'quiet',
              bare: true,
              small: true,
              key: 'l',
            }),
            may('export')
              ? linkButton(text.export, href('exports', { stream: hit.stream_id, start: hit.start, end: hit.end }), {
                  icon: 'exports',
                  kind: 'quiet',
                  bare: true,
                  small: true,
                })
              : null,
          ),
        ),
      ),
    ),
  );
}
