/** What is searched for: words, a picture, a frame or a part of one, and filters; as a form, and as an address. */

import { thumbnail, upload } from './api.js';
import { newest } from './catalogue.js';
import * as clock from './clock.js';
import { button, fill, h, icon, labelled } from './dom.js';
import { photo, streamsField, windowField } from './fields.js';
import { spoken } from './moments.js';
import { explain, left, toast, waiting } from './notices.js';
import { go } from './router.js';
import { setView } from './shortcuts.js';
import { strings } from './strings.js';

const PAGE = 100;
const LARGEST_PICTURE = 20_000_000;

/** @typedef {import('./types.js').SearchRequest} SearchRequest */

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
    if (box.length === 4 && box.every(Number.isFinite)) body.like.box = /** @type {import('./types.js').Box} */ (box);
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
 * Draw the form; it goes to the address of what is searched for.
 *
 * @param {HTMLFormElement} form
 * @param {URLSearchParams} params
 * @param {import('./types.js').Stream[]} known
 * @param {AbortSignal} signal
 */
export function queryForm(form, params, known, signal) {
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
  let like =
    params.get('like') && params.get('at')
      ? { stream: params.get('like') ?? '', at: params.get('at') ?? '', box: params.get('box') ?? '' }
      : null;
  let picture = params.get('picture');
  const weight = h('input', { type: 'range', min: '0', max: '1', step: '0.05', value: params.get('weight') ?? '0.5' });
  const weightField = h(
    'div',
    { class: 'weight' },
    h('span', { class: 'soft', 'aria-hidden': 'true' }, text.words),
    labelled(text.weight, weight),
    h('span', { class: 'soft', 'aria-hidden': 'true' }, text.picture),
  );
  const sayWeight = () =>
    weight.setAttribute('aria-valuetext', text.weightValue(Math.round(Number(weight.value) * 100)));
  weight.addEventListener('input', sayWeight);
  sayWeight();

  const drawChips = () => {
    const items = [];
    if (like)
      items.push(
        likeChip(like, () => {
          like = null;
          drawChips();
          query.focus();
        }),
      );
    if (picture) {
      const local = uploads.get(picture);
      items.push(
        chip(local ? photo(local, text.uploaded) : icon('picture'), text.uploaded, () => {
          picture = null;
          drawChips();
          query.focus();
        }),
      );
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
  document.addEventListener(
    'paste',
    (event) => {
      const pasted = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith('image/'));
      if (pasted) take(pasted);
    },
    { signal },
  );

  const streams = streamsField(
    known.map((stream) => stream.stream_id),
    params.getAll('streams'),
  );
  const window = windowField(params.get('start'), params.get('end'), { latest: newest(known, []) });
  const [dayFrom = '', dayTo = ''] = (params.get('time_of_day') ?? '').split('-');
  const hoursFrom = h('input', { type: 'time', value: dayFrom });
  const hoursTo = h('input', { type: 'time', value: dayTo });
  const percentile = h(
    'select',
    null,
    ['0', '50', '75', '90', '95', '99', '99.9'].map((value) =>
      h(
        'option',
        { value, selected: value === (params.get('min_percentile') ?? '0') },
        value === '0' ? text.anyScore : text.atLeast(value),
      ),
    ),
  );

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
        h(
          'fieldset',
          { class: 'window' },
          h('legend', { class: 'sr' }, text.hours),
          h('div', { class: 'pair' }, labelled(text.hoursFrom, hoursFrom), labelled(text.hoursTo, hoursTo)),
          h('p', { class: 'hint' }, text.hoursHint),
        ),
        labelled(text.percentile, percentile, text.percentileHint),
      ),
    ),
    h('p', { class: 'drop-hint', 'aria-hidden': 'true' }, icon('picture'), text.drop),
  );
  drawChips();
  setView([
    { keys: ['/'], text: text.keys.query, act: () => query.focus() },
    {
      keys: ['f'],
      text: text.keys.filters,
      act: () => {
        const box = form.querySelector('details.filters');
        if (box instanceof HTMLDetailsElement) box.open = !box.open;
      },
    },
    {
      keys: ['r'],
      text: text.keys.results,
      act: () => {
        const first = document.querySelector('.virtual [role=article]');
        if (first instanceof HTMLElement) first.focus();
      },
    },
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
    shown.append(
      h('span', {
        class: 'drawn-box',
        style: {
          left: `${box[0] * 100}%`,
          top: `${box[1] * 100}%`,
          width: `${(box[2] - box[0]) * 100}%`,
          height: `${(box[3] - box[1]) * 100}%`,
        },
      }),
    );
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
  return h(
    'span',
    { class: 'chip' },
    sign,
    h('span', null, text),
    button(strings.search.remove(text), remove, { icon: 'close', kind: 'quiet', bare: true, small: true }),
  );
}
