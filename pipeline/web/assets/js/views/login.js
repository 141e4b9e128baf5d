/** The way in: name and password, or the provider that the installation trusts. */

import { address, ApiError, change } from '../api.js';
import { button, fill, h, labelled, linkButton } from '../dom.js';
import { dialog, explain, toast } from '../notices.js';
import { load, logIn } from '../session.js';
import { strings } from '../strings.js';

/**
 * Show the form.
 *
 * @param {HTMLElement} root
 * @param {{oidc: boolean, note?: string, done: () => void}} settings
 */
export function login(root, settings) {
  const text = strings.login;
  const name = h('input', {
    type: 'text',
    name: 'username',
    autocomplete: 'username',
    required: true,
    autocapitalize: 'none',
    spellcheck: 'false',
  });
  const password = h('input', { type: 'password', name: 'password', autocomplete: 'current-password', required: true });
  const said = h('p', { class: 'form-error', role: 'alert' }, settings.note ?? '');
  const send = button(text.send, () => {}, { kind: 'primary', type: 'submit' });
  const form = h(
    'form',
    {
      class: 'stack',
      on: {
        submit: async (/** @type {Event} */ event) => {
          event.preventDefault();
          send.disabled = true;
          fill(said);
          try {
            await logIn(name.value, password.value);
            settings.done();
          } catch (error) {
            fill(said, error instanceof ApiError && error.status === 401 ? text.wrong : explain(error));
            password.value = '';
            password.focus();
          } finally {
            send.disabled = false;
          }
        },
      },
    },
    labelled(text.name, name),
    labelled(text.password, password),
    said,
    send,
    settings.oidc ? linkButton(text.oidc, address('/session/oidc')) : null,
  );
  fill(
    root,
    h(
      'div',
      { class: 'login card' },
      h('p', { class: 'login-brand' }, strings.brand),
      h('h1', { tabindex: '-1' }, text.title),
      form,
    ),
  );
  name.focus();
}

/** Change the own password; every other session of the user ends. */
export function passwordDialog() {
  const text = strings.login;
  return dialog(text.change, (close) => {
    const old = h('input', { type: 'password', autocomplete: 'current-password', required: true });
    const fresh = h('input', { type: 'password', autocomplete: 'new-password', required: true, minlength: '12' });
    const said = h('p', { class: 'form-error', role: 'alert' });
    const form = h(
      'form',
      { class: 'stack' },
      labelled(text.password, old),
      labelled(text.fresh, fresh, strings.admin.passwordHint),
      said,
      h(
        'div',
        { class: 'row end' },
        button(text.change, () => {}, { kind: 'primary', type: 'submit' }),
      ),
    );
    form.addEventListener('submit', async (event) => {
      event.preventDefault();
      fill(said);
      try {
        await change('POST', '/session/password', { password: old.value, new_password: fresh.value });
        await load(); // another session, with another token against cross-site requests
        toast(text.changed, 'good');
        close();
      } catch (error) {
        fill(said, explain(error));
      }
    });
    return [form];
  });
}
