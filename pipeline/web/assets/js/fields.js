/** Controls that several forms share: the streams, and a window of time. */

import * as clock from './clock.js';
import { button, fill, h, icon, labelled, unique } from './dom.js';
import { strings } from './strings.js';

const FILTER_FROM = 7;

/**
 * A choice of streams; none chosen means all. Text with `*` or `?` can be added as a pattern.
 *
 * @param {string[]} known
 * @param {string[]} chosen
 * @param {{label?: string, one?: boolean}} [options] `one`: exactly one stream, a plain list
 * @returns {{element: HTMLElement, value: () => string[]}}
 */
export function streamsField(known, chosen, options = {}) {
  const label = options.label ?? strings.fields.streams;
  if (options.one) {
    const names = chosen[0] && !known.includes(chosen[0]) ? [chosen[0], ...known] : known;
    const select = h(
      'select',
      null,
      names.map((name) => h('option', { value: name, selected: name === chosen[0] }, name)),
    );
    return { element: labelled(label, select), value: () => (select.value ? [select.value] : []) };
  }
  const picked = new Set(chosen);
  const summary = h('summary', null);
  const list = h('div', { class: 'picker-list', role: 'group', 'aria-label': label });
  const filter = h('input', {
    type: 'search',
    placeholder: strings.fields.filter,
    'aria-label': strings.fields.filterStreams,
  });
  const say = () => {
    const names = [...picked];
    const text = !names.length
      ? strings.fields.allStreams
      : names.length <= 2
        ? names.join(', ')
        : strings.fields.count(names.length);
    fill(summary, h('span', { class: 'picker-label' }, label), h('span', { class: 'picker-value' }, text));
  };
  const draw = () => {
    const text = filter.value.trim().toLowerCase();
    const names = [...new Set([...picked, ...known])].sort();
    const found = names.filter((name) => !text || name.toLowerCase().includes(text));
    const pattern = /[*?]/.test(filter.value) ? filter.value.trim() : '';
    fill(
      list,
      pattern
        ? button(
            strings.fields.pattern(pattern),
            () => {
              picked.add(pattern);
              filter.value = '';
              say();
              draw();
            },
            { icon: 'plus', small: true },
          )
        : null,
      found.slice(0, 300).map((name) =>
        h(
          'label',
          { class: 'check' },
          h('input', {
            type: 'checkbox',
            checked: picked.has(name),
            on: {
              change: (/** @type {Event} */ event) => {
                if (/** @type {HTMLInputElement} */ (event.target).checked) picked.add(name);
                else picked.delete(name);
                say();
              },
            },
          }),
          h('span', null, name),
        ),
      ),
      found.length || pattern ? null : h('p', { class: 'hint' }, strings.fields.none),
    );
  };
  filter.addEventListener('input', draw);
  filter.addEventListener('keydown', (event) => {
    if (event.key === 'Enter') event.preventDefault();
  });
  say();
  draw();
  const element = h(
    'details',
    { class: 'picker' },
    summary,
    h('div', { class: 'picker-body' }, known.length >= FILTER_FROM ? filter : null, list),
  );
  element.addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && element.open) {
      element.open = false;
      summary.focus();
      event.stopPropagation();
    }
  });
  return { element, value: () => [...picked] };
}

/**
 * A window of time in the chosen zone.
 *
 * @param {string|null} start RFC 3339
 * @param {string|null} end RFC 3339
 * @param {{required?: boolean, latest?: string|null}} [options] `latest`: the newest footage, which presets count from
 * @returns {{element: HTMLElement, value: () => {start?: string, end?: string}}}
 */
export function windowField(start, end, options = {}) {
  const from = h('input', {
    type: 'datetime-local',
    step: '1',
    value: clock.toLocal(start),
    required: options.required,
  });
  const to = h('input', { type: 'datetime-local', step: '1', value: clock.toLocal(end), required: options.required });
  const note = h('p', { class: 'hint', id: unique('zone') });
  const say = () => fill(note, strings.fields.zone(clock.zone()));
  say();
  let shown = clock.zone();
  const moved = () => {
    if (!note.isConnected) {
      document.removeEventListener('zone', moved);
      return;
    }
    // The controls keep their times: only the clock that they are written in changes.
    const next = clock.zone();
    const [a, b] = [from, to].map((field) => field.dataset.at ?? null);
    from.value = clock.toLocal(a);
    to.value = clock.toLocal(b);
    shown = next;
    say();
  };
  const keep = () => {
    for (const field of [from, to]) {
      const at = clock.fromLocal(field.value);
      if (at) field.dataset.at = at;
      else delete field.dataset.at;
    }
  };
  keep();
  from.addEventListener('change', keep);
  to.addEventListener('change', keep);
  document.addEventListener('zone', moved);
  from.setAttribute('aria-describedby', note.id);
  const set = (/** @type {number|null} */ hours) => {
    const newest = options.latest ? clock.millis(options.latest) + 1000 : Date.now();
    from.value = hours === null ? '' : clock.toLocal(clock.rfc3339(newest - hours * 3600000));
    to.value = hours === null ? '' : clock.toLocal(clock.rfc3339(newest));
    keep();
  };
  const presets = options.required
    ? null
    : h(
        'div',
        { class: 'presets', role: 'group', 'aria-label': strings.fields.presets },
        button(strings.fields.hour, () => set(1), { small: true, kind: 'quiet' }),
        button(strings.fields.day, () => set(24), { small: true, kind: 'quiet' }),
        button(strings.fields.week, () => set(168), { small: true, kind: 'quiet' }),
        button(strings.fields.all, () => set(null), { small: true, kind: 'quiet' }),
      );
  return {
    element: h(
      'fieldset',
      { class: 'window' },
      h('legend', { class: 'sr' }, strings.fields.window),
      h('div', { class: 'pair' }, labelled(strings.fields.from, from), labelled(strings.fields.to, to)),
      presets,
      note,
    ),
    value: () => {
      void shown;
      keep();
      return { start: from.dataset.at, end: to.dataset.at };
    },
  };
}

/**
 * The head of a page.
 *
 * @param {string} title
 * @param {...(Node|null)} actions
 */
export function pageHead(title, ...actions) {
  return h('header', { class: 'page-head' }, h('h1', { tabindex: '-1' }, title), h('div', { class: 'row' }, actions));
}

/**
 * A picture of a moment that may fail to load.
 *
 * @param {string|null} src
 * @param {string} alt
 * @param {{lazy?: boolean, late?: boolean}} [options] `late`: the address goes to `data-src`, for a virtual list
 */
export function photo(src, alt, options = {}) {
  const image = h('img', {
    alt,
    decoding: 'async',
    loading: options.lazy ? 'lazy' : null,
    class: 'photo',
    draggable: 'false',
  });
  const frame = h('span', { class: 'photo-frame' }, image);
  image.addEventListener('error', () => {
    if (!image.getAttribute('src')) return;
    frame.classList.add('missing');
    fill(frame, icon('picture'), h('span', null, alt ? strings.noPicture : ''));
  });
  if (src && options.late) image.dataset.src = src;
  else if (src) image.src = src;
  else {
    frame.classList.add('missing');
    fill(frame, icon('picture'), h('span', null, strings.noPicture));
  }
  return frame;
}
