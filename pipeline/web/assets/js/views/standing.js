/** Standing questions: what is watched for, what would have fired, what fired, and who is told. */

import { change, get, own, thumbnail } from '../api.js';
import { catalogue } from '../catalogue.js';
import { button, fill, h, icon, labelled } from '../dom.js';
import { pageHead, photo, streamsField } from '../fields.js';
import { histogram } from '../histogram.js';
import { count, spoken, when } from '../moments.js';
import { confirm, dialog, empty, explain, left, problem, toast, waiting } from '../notices.js';
import { watch } from '../player.js';
import { may } from '../session.js';
import { strings } from '../strings.js';

const SHOWN = 12;

/** @typedef {import('../types.js').Standing} Standing */
/** @typedef {import('../types.js').Fired} Fired */

/**
 * @param {HTMLElement} root
 * @param {URLSearchParams} _params
 * @param {{signal: AbortSignal}} context
 */
export async function standing(root, _params, { signal }) {
  const text = strings.standing;
  const list = h('div', { class: 'stack' });
  const draw = async () => {
    fill(list, waiting(strings.loading));
    try {
      const reply = /** @type {import('../types.js').Page<Standing>} */ (await get('/standing', {}, signal));
      if (!reply.items.length) fill(list, empty(text.none, text.noneHow));
      else
        fill(
          list,
          reply.items.map((item) => row(item, draw, signal)),
        );
    } catch (error) {
      if (!left(error)) fill(list, problem(error, draw));
    }
  };
  fill(
    root,
    pageHead(
      text.title,
      may('standing')
        ? button(
            text.add,
            async () => {
              if (await addDialog()) draw();
            },
            { icon: 'plus', kind: 'primary' },
          )
        : null,
    ),
    h('p', { class: 'soft page-note' }, text.note),
    list,
  );
  await draw();
}

/**
 * @param {Standing} item
 * @param {() => void} again
 * @param {AbortSignal} signal
 */
function row(item, again, signal) {
  const text = strings.standing;
  const act = async (/** @type {() => Promise<any>} */ work) => {
    try {
      await work();
      again();
    } catch (error) {
      if (!left(error)) toast(explain(error), 'bad');
    }
  };
  const path = `/standing/${encodeURIComponent(item.id)}`;
  return h(
    'article',
    { class: item.muted ? 'card standing muted' : 'card standing', 'aria-label': item.text },
    h(
      'div',
      null,
      h(
        'h2',
        null,
        item.text,
        ' ',
        item.muted ? h('span', { class: 'badge' }, text.muted) : h('span', { class: 'badge good' }, text.active),
      ),
      h(
        'p',
        { class: 'hint' },
        item.streams?.length ? item.streams.join(', ') : strings.fields.allStreams,
        typeof item.threshold === 'number' ? ` · ${text.threshold(item.threshold)}` : '',
        item.webhook ? ` · ${text.webhookTo(item.webhook)}` : '',
      ),
      h(
        'p',
        { class: 'hint' },
        item.last_fired ? [text.last, ' ', when(item.last_fired)] : text.neverFired,
        item.fired ? ` · ${text.fired(count(item.fired))}` : '',
      ),
    ),
    h(
      'div',
      { class: 'row' },
      button(text.history, () => showHistory(item), { icon: 'history', small: true }),
      may('standing')
        ? button(
            item.muted ? text.unmute : text.mute,
            () => act(() => change('PATCH', path, { muted: !item.muted }, signal)),
            { icon: item.muted ? 'bell' : 'mute', small: true },
          )
        : null,
      may('standing')
        ? button(
            text.remove,
            async () => {
              if ((await confirm(text.remove, text.removeSure(item.text), text.remove, { danger: true })) !== null)
                await act(() => change('DELETE', path, undefined, signal));
            },
            { icon: 'trash', small: true, kind: 'quiet' },
          )
        : null,
    ),
  );
}

/**
 * @param {Fired} fired
 * @returns {HTMLElement}
 */
function firedFigure(fired) {
  const at = fired.start;
  return h(
    'figure',
    { class: 'keyframe' },
    h(
      'button',
      {
        type: 'button',
        class: 'keyframe-play',
        'aria-label': strings.ask.playKeyframe(fired.stream_id, spoken(at)),
        on: { click: () => watch(fired.stream_id, at) },
      },
      photo(own(fired.thumbnail) ?? thumbnail(fired.stream_id, at), '', { lazy: true }),
      h('span', { class: 'play-sign', 'aria-hidden': 'true' }, icon('play')),
    ),
    h(
      'figcaption',
      { class: 'below' },
      h(
        'span',
        { class: 'row between' },
        h('b', null, fired.stream_id),
        typeof fired.peak === 'number'
          ? h('span', { class: 'soft', title: strings.standing.peak }, fired.peak.toFixed(3))
          : null,
        typeof fired.percentile === 'number'
          ? h('span', { class: 'soft' }, strings.standing.percentile(fired.percentile))
          : null,
      ),
      when(at, { stacked: true }),
    ),
  );
}

/** @param {Standing} item */
function showHistory(item) {
  const text = strings.standing;
  const body = h('div', { class: 'stack' }, waiting(strings.loading));
  const control = new AbortController();
  dialog(text.historyOf(item.text), () => [body], { wide: true }).then(() => control.abort());
  get(`/standing/${encodeURIComponent(item.id)}`, {}, control.signal)
    .then((reply) => {
      const items = /** @type {Fired[]} */ (reply.history ?? reply.items ?? []);
      fill(body, items.length ? h('div', { class: 'frames' }, items.map(firedFigure)) : empty(text.neverFired));
    })
    .catch((error) => {
      if (!left(error)) fill(body, problem(error));
    });
}

/**
 * Add a standing question, after a look at what it would have done.
 *
 * @returns {Promise<boolean>} whether one was added
 */
async function addDialog() {
  const text = strings.standing;
  const known = await catalogue().catch(() => []);
  const control = new AbortController();
  let added = false;
  await dialog(
    text.add,
    (close) => {
      const question = h('input', { type: 'text', required: true, maxlength: '500', placeholder: text.placeholder });
      const streams = streamsField(
        known.map((stream) => stream.stream_id),
        [],
      );
      const webhook = h('input', { type: 'url', placeholder: 'https://', pattern: 'https?://.+' });
      const preview = h('div', { class: 'stack', role: 'status' });
      const said = h('p', { class: 'form-error', role: 'alert' });
      const body = () => ({
        text: question.value.trim(),
        streams: streams.value().length ? streams.value() : undefined,
      });
      const look = button(
        text.preview,
        async () => {
          if (!question.reportValidity()) return;
          fill(preview, waiting(text.previewing));
          try {
            showPreview(preview, await change('POST', '/standing/preview', body(), control.signal), control.signal);
          } catch (error) {
            if (!left(error)) fill(preview, problem(error));
          }
        },
        { icon: 'search' },
      );
      const form = h(
        'form',
        { class: 'stack' },
        labelled(text.question, question, text.questionHint),
        streams.element,
        labelled(text.webhook, webhook, text.webhookHint),
        preview,
        said,
        h(
          'div',
          { class: 'row end' },
          look,
          button(text.save, () => {}, { kind: 'primary', icon: 'plus', type: 'submit' }),
        ),
      );
      form.addEventListener('submit', async (event) => {
        event.preventDefault();
        fill(said);
        try {
          const reply = await change(
            'POST',
            '/standing',
            { ...body(), webhook: webhook.value.trim() || undefined },
            control.signal,
          );
          added = true;
          if (reply?.secret) {
            fill(form, h('p', null, text.secret), h('p', { class: 'secret' }, h('code', null, reply.secret)));
            form.append(h('div', { class: 'row end' }, button(strings.close, close, { kind: 'primary' })));
          } else close();
          toast(text.added, 'good');
        } catch (error) {
          if (!left(error)) fill(said, explain(error));
        }
      });
      return [form];
    },
    { wide: true },
  );
  control.abort();
  return added;
}

/**
 * @param {HTMLElement} place
 * @param {import('../types.js').Preview} preview
 * @param {AbortSignal} signal
 */
function showPreview(place, preview, signal) {
  const text = strings.standing;
  const fired = preview.would_have_fired;
  fill(
    place,
    h('h3', null, text.scores),
    histogram(preview.histogram, preview.threshold, signal),
    preview.warm ? null : h('p', { class: 'hint caution' }, icon('warning'), h('span', null, preview.why ?? text.cold)),
    h('h3', null, fired.length ? text.wouldFire(fired.length) : text.wouldNot),
    fired.length ? h('div', { class: 'frames' }, fired.slice(0, SHOWN).map(firedFigure)) : null,
  );
}
