/**
 * Search by words, by a picture, and by "more like this"; hits are moments.
 *
 * What is searched is in the address, so that a search can be kept and sent. A hit says what the language model said
 * about it, and a model that cannot be reached is shown as such.
 */

import { change, own, thumbnail, upload } from '../api.js';
import { catalogue, newest } from '../catalogue.js';
import * as clock from '../clock.js';
import { button, fill, h, icon, labelled, linkButton } from '../dom.js';
import { pageHead, photo, streamsField, windowField } from '../fields.js';
import { failed, follow } from '../jobs.js';
import { count, spoken, verdict, when } from '../moments.js';
import { empty, explain, left, notices, problem, toast, waiting } from '../notices.js';
import { go, href } from '../router.js';
import { may } from '../session.js';
import { setView } from '../shortcuts.js';
import { strings } from '../strings.js';
import { VirtualList } from '../virtual.js';

const PAGE = 100;
const VERIFIED_AT_ONCE = 20;
const LARGEST_PICTURE = 20_000_000;

/** @typedef {import('../types.js').Hit} Hit */
/** @typedef {import('../types.js').SearchRequest} SearchRequest */

/** Pictures of this visit by id: the server keeps them for half an hour. @type {Map<string, string>} */
const uploads = new Map();

/**
 * The request that an address describes.
 *
 * @param {URLSearchParams} params
 * @returns {SearchRequest|null} null if it searches for nothing
 */
export function request(params) {
  /** @type {SearchRequest} */
  const body = { limit: PAGE };
  const text = params.get('text')?.trim();
  if (text) body.text = text;
  const stream = params.get('like');
  const at = params.get('at');
  if (stream && at) {
    body.like = { stream, at };
    const box = (params.get('box') ?? '').split(',').map(Number);
    if (box.length === 4 && box.every(Number.isFinite)) body.like.box = /** @type {import('../types.js').Box} */ (box);
  }
  const picture = params.get('picture');
  if (picture) body.picture = picture;
  if (!body.text && !body.like && !body.picture) return null;
  const weight = params.get('weight');
  if (weight !== null && body.text && (body.like || body.picture)) body.weight = Number(weight);
  const streams = params.getAll('streams');
  if (streams.length) body.streams = streams;
  for (const name of /** @type {const} */ (['start', 'end', 'time_of_day'])) {
    const value = params.get(name);
    if (value) body[name] = value;
  }
  if (body.time_of_day) body.timezone = params.get('timezone') ?? clock.zone();
  const percentile = Number(params.get('min_percentile'));
  if (percentile > 0) body.min_percentile = percentile;
  return body;
}

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
  drawForm(form, params, known, signal);
  const body = request(params);
  if (!body) {
    fill(results, empty(text.start, text.startHow));
    return;
  }
  await drawResults(results, body, signal);
}

/**
 * @param {HTMLFormElement} form
 * @param {URLSearchParams} params
 * @param {import('../types.js').Stream[]} known
 * @param {AbortSignal} signal
 */
function drawForm(form, params, known, signal) {
  const text = strings.search;
  const query = h('input', {
    type: 'search',
    class: 'query',
    placeholder: text.placeholder,
    'aria-label': text.query,
    value: params.get('text') ?? '',
    autocomplete: 'off',
    enterkeyhint: 'search',
  });
  const file = h('input', { type: 'file', accept: 'image/*', class: 'sr', tabindex: '-1', 'aria-hidden': 'true' });
  const chips = h('div', { class: 'chips' });
  let like = params.get('like') && params.get('at') ? { stream: params.get('like') ?? '', at: params.get('at') ?? '', box: params.get('box') ?? '' } : null;
  let picture = params.get('picture');
  const weight = h('input', { type: 'range', min: '0', max: '1', step: '0.05', value: params.get('weight') ?? '0.5' });
  const weightField = h('div', { class: 'weight' }, h('span', { class: 'soft', 'aria-hidden': 'true' }, text.words), labelled(text.weight, weight), h('span', { class: 'soft', 'aria-hidden': 'true' }, text.picture));
  const sayWeight = () => weight.setAttribute('aria-valuetext', text.weightValue(Math.round(Number(weight.value) * 100)));
  weight.addEventListener('input', sayWeight);
  sayWeight();

  const drawChips = () => {
    const items = [];
    if (like) items.push(likeChip(like, () => { like = null; drawChips(); query.focus(); }));
    if (picture) {
      const local = uploads.get(picture);
      items.push(chip(local ? photo(local, text.uploaded) : icon('picture'), text.uploaded, () => { picture = null; drawChips(); query.focus(); }));
    }
    fill(chips, items);
    weightField.hidden = !items.length || !query.value.trim();
  };
  query.addEventListener('input', () => {
    weightField.hidden = !chips.childElementCount || !query.value.trim();
  });

  const take = async (/** @type {File|undefined} */ taken) => {
    if (!taken) return;
    if (!taken.type.startsWith('image/')) return toast(text.notPicture, 'bad');
    if (taken.size > LARGEST_PICTURE) return toast(text.tooLarge, 'bad');
    fill(chips, waiting(text.uploading));
    try {
      const reply = await upload(taken, signal);
      uploads.set(reply.id, URL.createObjectURL(taken));
      picture = reply.id;
      like = null;
      drawChips();
      submit();
    } catch (error) {
      drawChips();
      if (!left(error)) toast(explain(error), 'bad');
    }
  };
  file.addEventListener('change', () => take(file.files?.[0]));
  form.addEventListener('dragover', (event) => {
    event.preventDefault();
    form.classList.add('dropping');
  });
  form.addEventListener('dragleave', (event) => {
    if (!form.contains(/** @type {Node|null} */ (event.relatedTarget))) form.classList.remove('dropping');
  });
  form.addEventListener('drop', (event) => {
    event.preventDefault();
    form.classList.remove('dropping');
    take(event.dataTransfer?.files[0]);
  });
  document.addEventListener('paste', (event) => {
    const pasted = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith('image/'));
    if (pasted) take(pasted);
  }, { signal });

  const streams = streamsField(known.map((stream) => stream.stream_id), params.getAll('streams'));
  const window = windowField(params.get('start'), params.get('end'), { latest: newest(known, []) });
  const [dayFrom = '', dayTo = ''] = (params.get('time_of_day') ?? '').split('-');
  const hoursFrom = h('input', { type: 'time', value: dayFrom });
  const hoursTo = h('input', { type: 'time', value: dayTo });
  const percentile = h('select', null, ['0', '50', '75', '90', '95', '99', '99.9'].map((value) =>
    h('option', { value, selected: value === (params.get('min_percentile') ?? '0') }, value === '0' ? text.anyScore : text.atLeast(value))));

  const submit = () => {
    const hours = hoursFrom.value && hoursTo.value ? `${hoursFrom.value}-${hoursTo.value}` : '';
    const { start, end } = window.value();
    const both = Boolean(query.value.trim() && (like || picture));
    go('search', {
      text: query.value.trim(),
      like: like?.stream,
      at: like?.at,
      box: like?.box,
      picture,
      weight: both ? weight.value : '',
      streams: streams.value(),
      start,
      end,
      time_of_day: hours,
      timezone: hours ? clock.zone() : '',
      min_percentile: percentile.value === '0' ? '' : percentile.value,
    });
  };
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    submit();
  });
  const active = ['streams', 'start', 'end', 'time_of_day', 'min_percentile'].filter((name) => params.get(name)).length;
  fill(
    form,
    h(
      'div',
      { class: 'query-row' },
      query,
      file,
      button(text.upload, () => file.click(), { icon: 'picture', bare: true }),
      button(text.send, () => {}, { kind: 'primary', icon: 'search', type: 'submit' }),
    ),
    chips,
    weightField,
    h(
      'details',
      { class: 'filters', open: active > 0 && matchMedia('(min-width: 700px)').matches },
      h('summary', null, icon('filter'), text.filters, active ? h('span', { class: 'badge' }, String(active)) : null),
      h(
        'div',
        { class: 'filter-grid' },
        streams.element,
        window.element,
        h('fieldset', { class: 'window' }, h('legend', { class: 'sr' }, text.hours), h('div', { class: 'pair' }, labelled(text.hoursFrom, hoursFrom), labelled(text.hoursTo, hoursTo)), h('p', { class: 'hint' }, text.hoursHint)),
        labelled(text.percentile, percentile, text.percentileHint),
      ),
    ),
    h('p', { class: 'drop-hint', 'aria-hidden': 'true' }, icon('picture'), text.drop),
  );
  drawChips();
  setView([
    { keys: ['/'], text: text.keys.query, act: () => query.focus() },
    { keys: ['f'], text: text.keys.filters, act: () => { const box = form.querySelector('details.filters'); if (box instanceof HTMLDetailsElement) box.open = !box.open; } },
    { keys: ['r'], text: text.keys.results, act: () => { const first = document.querySelector('.virtual [role=article]'); if (first instanceof HTMLElement) first.focus(); } },
  ]);
  if (!request(params) && matchMedia('(min-width: 700px)').matches) query.focus();
}

/**
 * @param {{stream: string, at: string, box: string}} like
 * @param {() => void} remove
 */
function likeChip(like, remove) {
  const shown = photo(thumbnail(like.stream, like.at), '');
  const box = like.box.split(',').map(Number);
  if (box.length === 4) {
    shown.append(h('span', { class: 'drawn-box', style: { left: `${box[0] * 100}%`, top: `${box[1] * 100}%`, width: `${(box[2] - box[0]) * 100}%`, height: `${(box[3] - box[1]) * 100}%` } }));
  }
  const words = like.box ? strings.search.likePart : strings.search.like;
  return chip(shown, words(like.stream, spoken(like.at)), remove);
}

/**
 * @param {Element} sign
 * @param {string} text
 * @param {() => void} remove
 */
function chip(sign, text, remove) {
  return h('span', { class: 'chip' }, sign, h('span', null, text), button(strings.search.remove(text), remove, { icon: 'close', kind: 'quiet', bare: true, small: true }));
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
    if (!left(error)) fill(results, problem(error, () => drawResults(results, body, signal)));
    return;
  }
  if (signal.aborted) return;
  const { frames, streams, seconds } = page.searched;
  const searched = text.searched(count(frames), streams.length, seconds);
  if (!page.items.length) {
    fill(results, notices(page.notices), empty(text.nothing, searched), body.min_percentile || body.start || body.time_of_day ? h('p', { class: 'hint centre' }, text.nothingHow) : null);
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
    only === 'all' || (only === 'confirmed' ? hit.verification.state === 'confirmed' : hit.verification.state !== 'rejected');
  const actions = { like: (/** @type {Hit} */ hit) => go('search', { like: hit.stream_id, at: hit.best }), verify: (/** @type {Hit} */ hit) => verify([hit]) };
  /** @type {VirtualList<Hit>} */
  const list = new VirtualList({
    label: text.results,
    render: (hit, index) => hitCard(hit, index, body, actions),
    shape: (width) => (width < 560 ? { columns: 1, height: 138 } : { columns: Math.max(2, Math.floor(width / 286)), height: Math.round(((width / Math.max(2, Math.floor(width / 286)) - 12) * 9) / 16) + 140 }),
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
      fill(foot, problem(error, () => { loading = false; loadMore(); }));
    }
  };
  const verify = async (/** @type {Hit[]} */ chosen) => {
    const ids = new Set(chosen.map((hit) => hit.id));
    const set = (/** @type {(hit: Hit, i: number) => import('../types.js').Verification} */ make) => {
      chosen.forEach((hit, i) => { hit.verification = make(hit, i); });
      list.refresh((hit) => ids.has(hit.id));
    };
    set(() => ({ state: 'pending', why: '' }));
    try {
      const accepted = await change('POST', '/search/verify', { text: body.text, moments: chosen.map(({ stream_id, start, end }) => ({ stream_id, start, end })) }, signal);
      const job = await follow(accepted.job, () => {}, signal);
      if (failed(job)) throw job.error ?? new Error(strings.errors.unknown);
      const verdicts = job.result?.items ?? job.result?.moments ?? job.result ?? [];
      set((hit, i) => {
        const found = Array.isArray(verdicts) ? verdicts.find((each) => each.id === hit.id || (each.stream_id === hit.stream_id && each.start === hit.start)) ?? verdicts[i] : null;
        return found?.verification ?? (found?.state ? found : { state: 'unavailable', why: text.noVerdict });
      });
      const yes = chosen.filter((hit) => hit.verification.state === 'confirmed').length;
      const asked = chosen.filter((hit) => hit.verification.state === 'confirmed' || hit.verification.state === 'rejected').length;
      toast(asked ? text.verified(yes, asked) : text.notVerified, asked ? '' : 'bad');
    } catch (error) {
      if (left(error)) return;
      // No answer is not a yes: the hits say that the model could not be asked.
      set(() => ({ state: 'unavailable', why: explain(error) }));
      toast(text.notVerified, 'bad');
    }
  };
  const choose = h('select', { 'aria-label': text.show }, /** @type {const} */ (['all', 'confirmed', 'open']).map((value) => h('option', { value }, text.shows[value])));
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
          ? button(text.verify(VERIFIED_AT_ONCE), () => {
              const open = hits.filter((hit) => hit.verification.state === 'not_looked' || hit.verification.state === 'unavailable').slice(0, VERIFIED_AT_ONCE);
              if (open.length) verify(open);
              else toast(text.allVerified);
            }, { icon: 'check', small: true })
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
      h('a', { href: target, class: 'hit-picture', tabindex: '-1', 'aria-hidden': 'true' }, photo(own(hit.thumbnail), '', { late: true })),
      h(
        'div',
        { class: 'hit-text' },
        h('a', { href: target, class: 'hit-title' }, h('b', null, hit.stream_id), when(hit.start, { end: hit.end, stacked: true })),
        h(
          'p',
          { class: 'hit-score', title: hit.meaning },
          h('span', { class: 'meter', 'aria-hidden': 'true' }, h('span', { style: { width: `${Math.max(2, percentile ?? 0)}%` } })),
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
              ? button(text.verifyOne, () => actions.verify(hit), { icon: 'check', kind: 'quiet', bare: true, small: true, key: 'v' })
              : null,
            button(text.moreLike, () => actions.like(hit), { icon: 'picture', kind: 'quiet', bare: true, small: true, key: 'l' }),
            may('export') ? linkButton(text.export, href('exports', { stream: hit.stream_id, start: hit.start, end: hit.end }), { icon: 'exports', kind: 'quiet', bare: true, small: true }) : null,
          ),
        ),
      ),
    ),
  );
}
