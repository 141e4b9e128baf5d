/** The questions that this person asked, the newest first. */

import { change, get } from '../api.js';
import { button, fill, h, linkButton } from '../dom.js';
import { pageHead } from '../fields.js';
import { when } from '../moments.js';
import { confirm, empty, explain, left, problem, toast, waiting } from '../notices.js';
import { href } from '../router.js';
import { strings } from '../strings.js';

/**
 * @param {HTMLElement} root
 * @param {URLSearchParams} _params
 * @param {{signal: AbortSignal}} context
 */
export async function history(root, _params, { signal }) {
  const text = strings.history;
  const list = h('ol', { class: 'plain history-list' });
  const foot = h('div', null);
  fill(
    root,
    pageHead(text.title, linkButton(text.ask, href('ask'), { icon: 'ask', kind: 'primary' })),
    h('p', { class: 'soft page-note' }, text.note),
    list,
    foot,
  );
  /** @type {string|null} */
  let next = null;
  const more = async () => {
    fill(foot, waiting(strings.loading));
    try {
      const page = await get('/questions', { cursor: next, limit: 50 }, signal);
      next = page.next ?? null;
      for (const item of page.items) list.append(row(item));
      fill(foot, next ? button(strings.more, more) : null);
      if (!list.childElementCount) fill(foot, empty(text.none, text.noneHow));
    } catch (error) {
      if (!left(error)) fill(foot, problem(error, more));
    }
  };
  /** @param {import('../types.js').Question & {answer: any}} item */
  const row = (item) => {
    const said = typeof item.answer === 'string' ? item.answer : (item.answer?.option ?? item.answer?.answer);
    const entry = h(
      'li',
      { class: 'card history-row' },
      h(
        'div',
        null,
        h('a', { href: href('ask', { id: item.id }), class: 'history-question' }, item.question),
        h('p', { class: 'history-answer' }, said ?? text.states(item.state)),
        h(
          'p',
          { class: 'hint' },
          when(item.asked_at),
          ' · ',
          item.streams?.length ? item.streams.join(', ') : strings.fields.allStreams,
        ),
      ),
      button(
        text.remove,
        async () => {
          if ((await confirm(text.remove, text.removeSure(item.question), text.remove, { danger: true })) === null)
            return;
          try {
            await change('DELETE', `/questions/${encodeURIComponent(item.id)}`, undefined, signal);
            entry.remove();
            if (!list.childElementCount && !next) fill(foot, empty(text.none, text.noneHow));
          } catch (error) {
            if (!left(error)) toast(explain(error), 'bad');
          }
        },
        { icon: 'trash', kind: 'quiet', bare: true },
      ),
    );
    return entry;
  };
  await more();
}
