/** Users with their roles and tokens, and the audit trail. */

import { address, change, get } from '../api.js';
import * as clock from '../clock.js';
import { button, fill, h, icon, labelled, linkButton } from '../dom.js';
import { pageHead, windowField } from '../fields.js';
import { spoken, when } from '../moments.js';
import { confirm, dialog, empty, explain, left, problem, toast, waiting } from '../notices.js';
import { go, href } from '../router.js';
import { may } from '../session.js';
import { strings } from '../strings.js';

const ROLES = ['viewer', 'investigator', 'operator', 'admin'];

/** @typedef {import('../types.js').User} User */
/** @typedef {import('../types.js').Token} Token */
/** @typedef {import('../types.js').AuditRecord} AuditRecord */

/**
 * @param {HTMLElement} root
 * @param {URLSearchParams} params
 * @param {{signal: AbortSignal}} context
 */
export async function admin(root, params, { signal }) {
  const text = strings.admin;
  const tabs = [may('users') ? 'users' : '', may('audit') ? 'audit' : ''].filter(Boolean);
  const tab = tabs.includes(params.get('tab') ?? '') ? params.get('tab') : tabs[0];
  const body = h('div', { class: 'stack' });
  fill(
    root,
    pageHead(text.title),
    h(
      'nav',
      { class: 'tabs', 'aria-label': text.title },
      tabs.map((name) =>
        h(
          'a',
          { href: href('admin', { tab: name }), 'aria-current': name === tab ? 'page' : null },
          name === 'users' ? text.users : text.audit,
        ),
      ),
    ),
    body,
  );
  if (tab === 'users') await users(body, signal);
  else if (tab === 'audit') await audit(body, params, signal);
  else fill(body, empty(text.notAllowed));
}

/**
 * @param {HTMLElement} body
 * @param {AbortSignal} signal
 */
async function users(body, signal) {
  const text = strings.admin;
  fill(body, waiting(strings.loading));
  const again = () => users(body, signal);
  try {
    const reply = /** @type {import('../types.js').Page<User>} */ (await get('/users', {}, signal));
    const add = button(
      text.addUser,
      async () => {
        if (await userDialog(null)) again();
      },
      { icon: 'plus', kind: 'primary' },
    );
    fill(
      body,
      h('div', { class: 'row between' }, h('p', { class: 'soft' }, text.rolesHow), add),
      reply.items.length
        ? h(
            'div',
            { class: 'table-scroll', tabindex: '0', role: 'region', 'aria-label': text.users },
            h(
              'table',
              { class: 'rows-stack', role: 'table' },
              h(
                'thead',
                { role: 'rowgroup' },
                h(
                  'tr',
                  { role: 'row' },
                  [text.name, text.grants, text.state, text.lastLogin, text.actions].map((name) =>
                    h('th', { scope: 'col', role: 'columnheader' }, name),
                  ),
                ),
              ),
              h(
                'tbody',
                { role: 'rowgroup' },
                reply.items.map((user) => userRow(user, again, signal)),
              ),
            ),
          )
        : empty(text.noUsers, text.noUsersHow),
    );
  } catch (error) {
    if (!left(error)) fill(body, problem(error, again));
  }
}

/**
 * @param {User} user
 * @param {() => void} again
 * @param {AbortSignal} signal
 */
function userRow(user, again, signal) {
  const text = strings.admin;
  const path = `/users/${encodeURIComponent(user.name)}`;
  const act = async (/** @type {() => Promise<any>} */ work) => {
    try {
      await work();
      again();
    } catch (error) {
      if (!left(error)) toast(explain(error), 'bad');
    }
  };
  // The roles are said, because a phone shows rows as blocks, which are no table for assistive technology otherwise.
  const cell = (/** @type {string} */ name) => ({ role: 'cell', 'data-label': name });
  return h(
    'tr',
    { role: 'row' },
    h('th', { scope: 'row', role: 'rowheader' }, user.name),
    h(
      'td',
      cell(text.grants),
      h(
        'div',
        { class: 'badges' },
        user.grants.map((grant) => h('span', { class: 'badge' }, `${grant.role}: ${grant.pattern}`)),
      ),
    ),
    h('td', cell(text.state), user.disabled ? text.disabled : text.enabled),
    h('td', cell(text.lastLogin), when(user.last_login_at, { stacked: true })),
    h(
      'td',
      cell(text.actions),
      h(
        'div',
        { class: 'row' },
        button(
          text.editUser(user.name),
          async () => {
            if (await userDialog(user)) again();
          },
          { icon: 'user', bare: true, small: true },
        ),
        button(text.tokensOf(user.name), () => tokensDialog(user.name), { icon: 'lock', bare: true, small: true }),
        button(
          user.disabled ? text.enableUser(user.name) : text.disableUser(user.name),
          () => act(() => change('PATCH', path, { disabled: !user.disabled }, signal)),
          { icon: user.disabled ? 'check' : 'cross', bare: true, small: true },
        ),
        button(
          text.removeUser(user.name),
          async () => {
            if (
              (await confirm(text.removeUser(user.name), text.removeSure(user.name), text.remove, { danger: true })) !==
              null
            )
              await act(() => change('DELETE', path, undefined, signal));
          },
          { icon: 'trash', bare: true, small: true },
        ),
      ),
    ),
  );
}

/**
 * Add a user, or change one.
 *
 * @param {User|null} user
 * @returns {Promise<boolean>} whether something changed
 */
async function userDialog(user) {
  const text = strings.admin;
  let changed = false;
  await dialog(user ? text.editUser(user.name) : text.addUser, (close) => {
    const name = h('input', {
      type: 'text',
      required: true,
      maxlength: '64',
      autocomplete: 'off',
      value: user?.name ?? '',
      disabled: Boolean(user),
    });
    const password = h('input', { type: 'password', autocomplete: 'new-password', minlength: '12', required: !user });
    const grants = h('div', { class: 'stack tight' });
    const addGrant = (/** @type {{pattern: string, role: string}} */ grant) => {
      const row = h(
        'div',
        { class: 'row grant' },
        h(
          'select',
          { 'aria-label': text.role },
          ROLES.map((role) => h('option', { value: role, selected: role === grant.role }, role)),
        ),
        h('input', { type: 'text', value: grant.pattern, required: true, 'aria-label': text.pattern }),
        button(text.removeGrant, () => row.remove(), { icon: 'close', kind: 'quiet', bare: true, small: true }),
      );
      grants.append(row);
    };
    for (const grant of user?.grants ?? [{ pattern: '*', role: 'viewer' }]) addGrant(grant);
    const said = h('p', { class: 'form-error', role: 'alert' });
    const form = h(
      'form',
      { class: 'stack' },
      labelled(text.name, name),
      labelled(user ? text.newPassword : text.password, password, text.passwordHint),
      h(
        'div',
        { class: 'stack tight' },
        h('h3', null, text.grants),
        h('p', { class: 'hint' }, text.grantsHint),
        grants,
        h(
          'div',
          { class: 'row' },
          button(text.addGrant, () => addGrant({ pattern: '', role: 'viewer' }), { icon: 'plus', small: true }),
        ),
      ),
      said,
      h(
        'div',
        { class: 'row end' },
        button(strings.cancel, close, { kind: 'quiet' }),
        button(text.save, () => {}, { kind: 'primary', type: 'submit' }),
      ),
    );
    form.addEventListener('submit', async (event) => {
      event.preventDefault();
      const body = {
        grants: [...grants.children].map((row) => ({
          role: row.querySelector('select')?.value,
          pattern: row.querySelector('input')?.value.trim(),
        })),
        ...(password.value ? { password: password.value } : {}),
        ...(user ? {} : { name: name.value.trim() }),
      };
      try {
        if (user) await change('PATCH', `/users/${encodeURIComponent(user.name)}`, body);
        else await change('POST', '/users', body);
        changed = true;
        close();
      } catch (error) {
        fill(said, explain(error));
      }
    });
    return [form];
  });
  return changed;
}

/**
 * The tokens of a user. A new one is shown once.
 *
 * @param {string} name
 */
export function tokensDialog(name) {
  const text = strings.admin;
  const path = `/users/${encodeURIComponent(name)}/tokens`;
  return dialog(
    text.tokensOf(name),
    () => {
      const list = h('div', { class: 'stack tight' }, waiting(strings.loading));
      const fresh = h('div', { role: 'status' });
      const draw = async () => {
        try {
          const reply = /** @type {import('../types.js').Page<Token>} */ (await get(path));
          fill(
            list,
            reply.items.length
              ? h(
                  'ul',
                  { class: 'plain' },
                  reply.items.map((token) =>
                    h(
                      'li',
                      { class: 'hold' },
                      icon('lock'),
                      h(
                        'div',
                        null,
                        h('p', null, h('b', null, token.name)),
                        h(
                          'p',
                          { class: 'hint' },
                          (token.scopes ?? []).join(', ') || text.allScopes,
                          token.expires_at ? ` · ${text.expires(spoken(token.expires_at))}` : '',
                        ),
                      ),
                      button(
                        text.revoke(token.name),
                        async () => {
                          try {
                            await change('DELETE', `${path}/${encodeURIComponent(token.id)}`);
                            draw();
                          } catch (error) {
                            toast(explain(error), 'bad');
                          }
                        },
                        { icon: 'trash', bare: true, small: true },
                      ),
                    ),
                  ),
                )
              : h('p', { class: 'hint' }, text.noTokens),
          );
        } catch (error) {
          fill(list, problem(error, draw));
        }
      };
      draw();
      const label = h('input', { type: 'text', required: true, maxlength: '64' });
      const days = h('input', { type: 'number', required: true, min: '1', max: '366', value: '30' });
      const scopes = ['view', 'ask', 'export', 'hold', 'standing', 'retention', 'release', 'users', 'audit'].map(
        (scope) =>
          h(
            'label',
            { class: 'check' },
            h('input', { type: 'checkbox', name: 'scope', value: scope, checked: scope === 'view' }),
            h('span', null, scope),
          ),
      );
      const said = h('p', { class: 'form-error', role: 'alert' });
      const form = h(
        'form',
        { class: 'stack' },
        h('h3', null, text.addToken),
        h('div', { class: 'pair' }, labelled(text.tokenName, label), labelled(text.days, days)),
        h('fieldset', { class: 'scopes' }, h('legend', null, text.scopes), scopes),
        said,
        h(
          'div',
          { class: 'row end' },
          button(text.create, () => {}, { kind: 'primary', type: 'submit' }),
        ),
      );
      form.addEventListener('submit', async (event) => {
        event.preventDefault();
        fill(said);
        try {
          const reply = await change('POST', path, {
            name: label.value.trim(),
            scopes: new FormData(form).getAll('scope'),
            expires_days: Number(days.value),
          });
          fill(fresh, h('p', null, text.once), h('p', { class: 'secret' }, h('code', null, reply.token)));
          draw();
        } catch (error) {
          fill(said, explain(error));
        }
      });
      return [list, fresh, form];
    },
    { wide: true },
  );
}

/**
 * @param {HTMLElement} body
 * @param {URLSearchParams} params
 * @param {AbortSignal} signal
 */
async function audit(body, params, signal) {
  const text = strings.admin;
  const user = h('input', { type: 'text', value: params.get('user') ?? '' });
  const window = windowField(params.get('from'), params.get('to'), { latest: clock.rfc3339(Date.now()) });
  const form = h(
    'form',
    { class: 'card audit-form' },
    labelled(text.byUser, user),
    window.element,
    h(
      'div',
      { class: 'row' },
      button(text.filter, () => {}, { icon: 'filter', type: 'submit' }),
      linkButton(
        text.parquet,
        address('/audit/export', { from: params.get('from'), to: params.get('to'), user: params.get('user') }),
        { icon: 'exports', download: true },
      ),
    ),
  );
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    const { start, end } = window.value();
    go('admin', { tab: 'audit', user: user.value.trim(), from: start, to: end });
  });
  const rows = h('tbody', null);
  const foot = h('div', null, waiting(strings.loading));
  /** @type {string|null} */
  let next = null;
  const more = async () => {
    try {
      const page = /** @type {import('../types.js').Page<AuditRecord>} */ (
        await get(
          '/audit',
          { user: params.get('user'), from: params.get('from'), to: params.get('to'), cursor: next },
          signal,
        )
      );
      next = page.next ?? null;
      for (const record of page.items) rows.append(auditRow(record));
      fill(foot, next ? button(strings.more, more) : rows.childElementCount ? null : empty(text.noRecords));
    } catch (error) {
      if (!left(error)) fill(foot, problem(error, more));
    }
  };
  fill(
    body,
    form,
    h(
      'div',
      { class: 'table-scroll', tabindex: '0', role: 'region', 'aria-label': text.audit },
      h(
        'table',
        null,
        h(
          'thead',
          null,
          h(
            'tr',
            null,
            [text.time, text.who, text.what, text.streams, text.detail].map((name) => h('th', { scope: 'col' }, name)),
          ),
        ),
        rows,
      ),
    ),
    foot,
  );
  await more();
}

/** @param {AuditRecord} record */
function auditRow(record) {
  const detail =
    record.detail && typeof record.detail === 'object'
      ? Object.entries(record.detail)
          .map(([name, value]) => `${name}: ${typeof value === 'object' ? JSON.stringify(value) : value}`)
          .join(', ')
      : String(record.detail ?? '');
  return h(
    'tr',
    null,
    h('td', null, when(record.at, { stacked: true })),
    h(
      'td',
      null,
      h('b', null, record.user),
      h('span', { class: 'hint block' }, [record.via, record.origin].filter(Boolean).join(' · ')),
    ),
    h(
      'td',
      null,
      record.action,
      record.outcome && record.outcome !== 'done' ? h('span', { class: 'badge bad' }, record.outcome) : null,
    ),
    h('td', null, (record.streams ?? []).join(', ')),
    h('td', { class: 'detail' }, detail),
  );
}
