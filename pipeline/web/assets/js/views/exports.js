/** Taking something out: a clip, a contact sheet or an evidence bundle, with boxes blurred; and footage that is held. */

import { address, change, get, own, picture } from '../api.js';
import { Boxes } from '../box.js';
import { catalogue } from '../catalogue.js';
import * as clock from '../clock.js';
import { button, fill, h, icon, labelled, linkButton } from '../dom.js';
import { pageHead, streamsField, windowField } from '../fields.js';
import { bar, failed, finished, follow } from '../jobs.js';
import { duration, size, spoken, when } from '../moments.js';
import { confirm, dialog, empty, explain, left, problem, toast, waiting } from '../notices.js';
import { may, session } from '../session.js';
import { strings } from '../strings.js';
import { placeHold } from './moment.js';

const KEPT = 30;
const MOST_PICTURES = 200;

/** @typedef {import('../types.js').Job} Job */
/** @typedef {import('../types.js').Hold} Hold */
/** @typedef {{start: string, end: string, box: import('../types.js').Box}} Blur */

const key = () => `sightline.exports.${session().name}`;

/** @returns {Job[]} exports of this browser */
function remembered() {
  try {
    const list = JSON.parse(localStorage.getItem(key()) ?? '[]');
    return Array.isArray(list) ? list : [];
  } catch {
    return [];
  }
}

/** @param {Job[]} jobs */
function remember(jobs) {
  localStorage.setItem(key(), JSON.stringify(jobs.slice(0, KEPT)));
}

/**
 * @param {HTMLElement} root
 * @param {URLSearchParams} params
 * @param {{signal: AbortSignal}} context
 */
export async function exports(root, params, { signal }) {
  const text = strings.exports;
  const place = h('div', { class: 'export-grid' });
  fill(root, pageHead(text.title), place);
  fill(place, waiting(strings.loading));
  const known = await catalogue().catch(() => []);
  if (signal.aborted) return;
  const jobs = h('div', { class: 'stack' });
  const holds = h('div', { class: 'stack' });
  const add = (/** @type {Job} */ job) => {
    remember([job, ...remembered().filter((each) => each.job !== job.job)]);
    jobs.querySelector('.empty')?.remove();
    jobs.prepend(jobRow(job, signal));
  };
  fill(
    place,
    exportForm(params, known, add, signal),
    h(
      'div',
      { class: 'stack' },
      h('section', { class: 'card stack' }, h('h2', null, text.jobs), jobs),
      h(
        'section',
        { class: 'card stack' },
        h(
          'div',
          { class: 'row between' },
          h('h2', null, strings.holds.heading),
          may('hold') && known.length
            ? button(
                strings.holds.place,
                async () => {
                  await placeHold(...holdRange(params, known));
                  drawHolds(holds, signal);
                },
                { icon: 'lock', small: true },
              )
            : null,
        ),
        holds,
      ),
    ),
  );
  const before = remembered();
  if (before.length)
    fill(
      jobs,
      before.map((job) => jobRow(job, signal)),
    );
  else fill(jobs, empty(text.none, text.noneHow));
  await drawHolds(holds, signal);
}

/**
 * The end of a stream's footage: a second after its newest frame, because ends are exclusive.
 *
 * @param {import('../types.js').Stream[]} known
 * @param {string} name
 * @returns {string | null}
 */
function endOf(known, name) {
  const last = known.find((each) => each.stream_id === name)?.last;
  return last ? clock.rfc3339(clock.millis(last) + 1000) : null;
}

/**
 * @param {URLSearchParams} params
 * @param {import('../types.js').Stream[]} known
 * @returns {[string, string, string]}
 */
function holdRange(params, known) {
  const stream = params.get('stream') ?? known[0].stream_id;
  const end = endOf(known, stream) ?? clock.rfc3339(Date.now());
  return [stream, params.get('start') ?? clock.rfc3339(clock.millis(end) - 60000), params.get('end') ?? end];
}

/**
 * @param {URLSearchParams} params
 * @param {import('../types.js').Stream[]} known
 * @param {(job: Job) => void} add
 * @param {AbortSignal} signal
 */
function exportForm(params, known, add, signal) {
  const text = strings.exports;
  if (!may('export')) return h('section', { class: 'card' }, empty(text.notAllowed));
  const question = params.get('question_id');
  const kinds = /** @type {const} */ (['clip', 'sheet', 'evidence']);
  const chosen = params.get('kind') ?? (question ? 'evidence' : 'clip');
  const radios = kinds.map((kind) => {
    const input = h('input', { type: 'radio', name: 'kind', value: kind, checked: kind === chosen });
    return h(
      'label',
      { class: 'choice' },
      input,
      h('span', null, h('b', null, text.kinds[kind]), h('span', { class: 'hint' }, text.about[kind])),
    );
  });
  const names = known.map((stream) => stream.stream_id);
  const first = params.get('stream') ?? names[0] ?? '';
  const streams = streamsField(names, [first], { one: true, label: text.stream });
  const latest = known.find((stream) => stream.stream_id === first)?.last ?? null;
  const end = endOf(known, first);
  const window = windowField(
    params.get('start') ?? (end && !question ? clock.rfc3339(clock.millis(end) - 60000) : null),
    params.get('end') ?? (question ? null : end),
    { required: !question, latest },
  );
  const reason = h('input', { type: 'text', maxlength: '500' });
  // A bundle of a question is of the stream that most of its keyframes are of, unless the address names one.
  const ownStream = Boolean(question) && !params.get('stream');
  /** @type {Blur[]} */
  let blurs = [];
  const blurList = h('ul', { class: 'plain blur-list' });
  const drawBlurs = () =>
    fill(
      blurList,
      blurs.map((blur, i) =>
        h(
          'li',
          { class: 'row between' },
          h('span', null, strings.boxes.box(i + 1, blur.box), ' ', when(blur.start, { end: blur.end, date: false })),
          button(
            text.unblur(i + 1),
            () => {
              blurs = blurs.filter((each) => each !== blur);
              drawBlurs();
            },
            { icon: 'trash', kind: 'quiet', bare: true, small: true },
          ),
        ),
      ),
    );
  const said = h('p', { class: 'form-error', role: 'alert' });
  const send = button(text.send, () => {}, { kind: 'primary', icon: 'exports', type: 'submit' });
  const form = h(
    'form',
    { class: 'card stack', 'aria-label': text.form },
    h('h2', null, text.form),
    h('fieldset', { class: 'choices' }, h('legend', { class: 'sr' }, text.kind), radios),
    question ? h('p', { class: 'hint' }, text.question) : null,
    ownStream ? null : streams.element,
    window.element,
    labelled(text.reason, reason),
    h(
      'div',
      { class: 'stack tight' },
      h(
        'div',
        { class: 'row between' },
        h('h3', null, text.blur),
        button(
          text.addBlur,
          async () => {
            const { start, end } = window.value();
            const stream = streams.value()[0];
            const from = start ?? latest;
            if (!stream || !from) return toast(text.needWindow, 'bad');
            const added = await drawBlur(stream, from, end ?? from);
            blurs = [...blurs, ...added];
            drawBlurs();
          },
          { icon: 'box', small: true },
        ),
      ),
      h('p', { class: 'hint' }, text.blurHow),
      blurList,
    ),
    said,
    h('div', { class: 'row' }, send),
  );
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    fill(said);
    const kind = String(new FormData(form).get('kind'));
    const { start, end } = window.value();
    if (start && end && clock.millis(end) <= clock.millis(start)) {
      fill(said, text.order);
      return;
    }
    send.disabled = true;
    try {
      const stream = ownStream ? undefined : streams.value()[0];
      const reply = await change(
        'POST',
        '/exports',
        {
          kind,
          stream,
          start,
          end,
          question_id: question ?? undefined,
          reason: reason.value.trim() || undefined,
          blur: blurs.length ? blurs : undefined,
        },
        signal,
      );
      const length =
        start && end ? `, ${spoken(start)}, ${duration((clock.millis(end) - clock.millis(start)) / 1000)}` : '';
      add({ ...reply, state: reply.state ?? 'queued', kind, label: `${stream ?? text.ofQuestion}${length}` });
    } catch (error) {
      if (!left(error)) fill(said, explain(error));
    } finally {
      send.disabled = false;
    }
  });
  return form;
}

/**
 * Draw boxes on the first picture of a window; each is blurred for the whole of it.
 *
 * @param {string} stream
 * @param {string} start
 * @param {string} end
 * @returns {Promise<Blur[]>}
 */
async function drawBlur(stream, start, end) {
  const text = strings.exports;
  /** @type {Blur[]} */
  let result = [];
  await dialog(
    text.addBlur,
    (close) => {
      /** @type {string[]} */
      let times = [];
      const image = h('img', { class: 'whole', alt: spoken(start), draggable: 'false' });
      const label = h('output', { class: 'hint' }, when(start));
      const slide = h('input', {
        type: 'range',
        min: '0',
        max: '0',
        step: '1',
        value: '0',
        'aria-label': text.pictureAt,
      });
      const show = () => {
        const at = times[Number(slide.value)];
        if (!at) return;
        fill(label, when(at));
        image.src = picture(stream, at);
        image.alt = spoken(at);
        slide.setAttribute('aria-valuetext', spoken(at));
      };
      slide.addEventListener('input', show);
      get('/frames', {
        stream,
        from: start,
        to: clock.rfc3339(Math.max(clock.millis(end), clock.millis(start) + 1000)),
        limit: MOST_PICTURES,
      })
        .then((reply) => {
          times = reply.items.map((/** @type {import('../types.js').Frame} */ frame) => frame.captured_at);
          slide.max = String(Math.max(0, times.length - 1));
          if (times.length) show();
          else fill(label, strings.noPicture);
        })
        .catch((error) => fill(label, explain(error)));
      const boxes = new Boxes({ image, most: 20, label: strings.boxes.surface, change: () => {} });
      return [
        h('p', { class: 'hint' }, strings.boxes.howMany),
        boxes.element,
        h('div', { class: 'row' }, slide, label),
        h(
          'div',
          { class: 'row end' },
          button(strings.boxes.clear, () => boxes.clear(), { kind: 'quiet' }),
          button(
            text.useBlur,
            () => {
              result = boxes.boxes.map((box) => ({ start, end, box }));
              close();
            },
            { kind: 'primary' },
          ),
        ),
      ];
    },
    { wide: true },
  );
  return result;
}

/**
 * @param {Job} job
 * @param {AbortSignal} signal
 */
function jobRow(job, signal) {
  const text = strings.exports;
  const state = h('div', { role: 'status' });
  const name = `${text.kinds[/** @type {'clip'} */ (job.kind ?? 'clip')] ?? job.kind}: ${job.label ?? ''}`;
  const row = h('article', { class: 'job', 'aria-label': name }, h('p', { class: 'job-name' }, name), state);
  const show = (/** @type {Job} */ now) => {
    if (failed(now)) fill(state, h('p', { class: 'form-error' }, explain(now.error)));
    else if (finished(now)) {
      const url =
        own(now.result?.download ?? now.result?.url ?? now.result?.download_url) ??
        address(`/exports/${encodeURIComponent(now.job)}`);
      fill(
        state,
        h(
          'div',
          { class: 'row' },
          linkButton(text.download, url, { icon: 'exports', kind: 'primary', small: true, download: true }),
          h('span', { class: 'soft' }, now.result?.bytes ? size(now.result.bytes) : ''),
        ),
        now.result?.sha256
          ? h('p', { class: 'hash' }, h('span', { class: 'soft' }, 'SHA-256 '), h('code', null, now.result.sha256))
          : null,
      );
    } else fill(state, bar(name, now.progress));
  };
  show(job);
  const ask = async () => {
    try {
      const last = await follow(job.job, show, signal);
      remember(
        remembered().map((each) =>
          each.job === job.job ? { ...each, ...last, kind: each.kind, label: each.label } : each,
        ),
      );
    } catch (error) {
      if (left(error)) return;
      fill(
        state,
        h(
          'div',
          { class: 'row' },
          h('p', { class: 'hint' }, explain(error)),
          button(
            text.forget,
            () => {
              remember(remembered().filter((each) => each.job !== job.job));
              row.remove();
            },
            { small: true, kind: 'quiet' },
          ),
        ),
      );
    }
  };
  if (!failed(job)) ask();
  return row;
}

/**
 * @param {HTMLElement} place
 * @param {AbortSignal} signal
 */
async function drawHolds(place, signal) {
  const text = strings.holds;
  fill(place, waiting(strings.loading));
  try {
    const reply = /** @type {import('../types.js').Page<Hold>} */ (await get('/holds', {}, signal));
    if (!reply.items.length) {
      fill(place, empty(text.none, text.noneHow));
      return;
    }
    fill(
      place,
      h(
        'ul',
        { class: 'plain' },
        reply.items.map((hold) =>
          h(
            'li',
            { class: 'hold' },
            icon('lock'),
            h(
              'div',
              null,
              h('p', null, h('b', null, hold.stream_id), ' ', when(hold.start, { end: hold.end })),
              h(
                'p',
                { class: 'hint' },
                hold.reason,
                hold.by ? ` · ${hold.by}` : '',
                hold.released_at ? ` · ${text.released}` : '',
              ),
            ),
            may('release') && !hold.released_at
              ? button(
                  text.release,
                  async () => {
                    const reason = await confirm(text.release, text.releaseSure(hold.stream_id), text.release, {
                      reason: text.reason,
                      danger: true,
                    });
                    if (reason === null) return;
                    try {
                      await change('DELETE', `/holds/${encodeURIComponent(hold.id)}`, { reason }, signal);
                      toast(text.releasedNow, 'good');
                      drawHolds(place, signal);
                    } catch (error) {
                      if (!left(error)) toast(explain(error), 'bad');
                    }
                  },
                  { small: true },
                )
              : null,
          ),
        ),
      ),
    );
  } catch (error) {
    if (!left(error))
      fill(
        place,
        problem(error, () => drawHolds(place, signal)),
      );
  }
}
