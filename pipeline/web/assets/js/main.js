/** The page: who is here, the frame around the views, and which view is open. */

import { ApiError } from './api.js';
import { forget } from './catalogue.js';
import * as clock from './clock.js';
import { button, fill, h, icon } from './dom.js';
import { dialog, explain, left, problem, showAbove, toast } from './notices.js';
import { current, go, href, listen } from './router.js';
import { load, logOut, may, session, whenEnded } from './session.js';
import * as shortcuts from './shortcuts.js';
import { strings } from './strings.js';
import * as theme from './theme.js';
import { admin, tokensDialog } from './views/admin.js';
import { ask } from './views/ask.js';
import { exports } from './views/exports.js';
import { history } from './views/history.js';
import { login, passwordDialog } from './views/login.js';
import { moment } from './views/moment.js';
import { search } from './views/search.js';
import { standing } from './views/standing.js';
import { streams } from './views/streams.js';

/**
 * @typedef {object} View
 * @property {(root: HTMLElement, params: URLSearchParams, context: {signal: AbortSignal}) => Promise<void>} show
 * @property {import('./dom.js').IconName} icon
 * @property {string[]} needs one of these actions
 * @property {string} key letter after `g`
 */

/** @type {Record<string, View>} */
const VIEWS = {
  streams: { show: streams, icon: 'streams', needs: ['view'], key: 's' },
  search: { show: search, icon: 'search', needs: ['view'], key: 'f' },
  ask: { show: ask, icon: 'ask', needs: ['ask'], key: 'a' },
  moment: { show: moment, icon: 'moment', needs: ['view'], key: 'm' },
  exports: { show: exports, icon: 'exports', needs: ['export', 'hold'], key: 'e' },
  standing: { show: standing, icon: 'standing', needs: ['standing'], key: 'w' },
  history: { show: history, icon: 'history', needs: ['ask'], key: 'h' },
  admin: { show: admin, icon: 'admin', needs: ['users', 'audit'], key: 'u' },
};

const app = /** @type {HTMLElement} */ (document.getElementById('app'));
/** @type {AbortController|null} */
let open = null;

theme.apply();
theme.follow();
shortcuts.start();
whenEnded(() => showLogin(strings.login.ended));
listen(() => route(true));
begin();

/** Find out who is here, and show the page or the way in. */
async function begin() {
  try {
    await load();
    frame();
    route(false);
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) {
      const failed = new URLSearchParams(location.search).get('error');
      showLogin(failed ? strings.login.failed : '', error.problem.oidc);
    } else {
      document.title = strings.brand;
      fill(app, h('main', { class: 'alone' }, h('h1', null, strings.brand), problem(error, begin)));
    }
  }
}

/**
 * @param {string} [note]
 * @param {boolean} [oidc]
 */
function showLogin(note = '', oidc = false) {
  open?.abort();
  open = null;
  forget();
  document.querySelectorAll('dialog').forEach((box) => box.remove());
  shortcuts.setPage([]);
  shortcuts.setView([]);
  document.title = `${strings.login.title} · ${strings.brand}`;
  const main = h('main', { class: 'alone' });
  fill(app, main);
  login(main, {
    oidc,
    note,
    done: () => {
      frame();
      route(false);
    },
  });
}

/** The bar with the views, and the controls that hold everywhere. */
function frame() {
  const who = session();
  const links = Object.entries(VIEWS)
    .filter(([, view]) => view.needs.some(may))
    .map(([name, view]) =>
      h(
        'a',
        { class: 'nav-link', href: href(name), data: { view: name } },
        icon(view.icon),
        h('span', null, strings.views[/** @type {'ask'} */ (name)]),
      ),
    );
  const zones = h(
    'select',
    { 'aria-label': strings.zone, class: 'zone' },
    clock.zones([who.timezone]).map((name) => h('option', { value: name, selected: name === clock.zone() }, name)),
  );
  zones.addEventListener('change', () => clock.choose(zones.value));
  const themeButton = button(
    strings.theme,
    () => {
      theme.toggle();
      drawTheme();
    },
    { icon: 'moon', kind: 'quiet', bare: true, key: 'd' },
  );
  const drawTheme = () => fill(themeButton, icon(theme.theme() === 'dark' ? 'sun' : 'moon'));
  drawTheme();
  const model = strings.models[/** @type {'down'} */ (who.model)] ?? who.model;
  const modelText = `${who.profile} · ${model}`;
  fill(
    app,
    h(
      'a',
      {
        class: 'skip',
        href: '#main',
        on: {
          click: (/** @type {Event} */ event) => {
            event.preventDefault();
            focusMain();
          },
        },
      },
      strings.skip,
    ),
    h(
      'header',
      { class: 'top' },
      h(
        'a',
        { class: 'brand', href: href('streams') },
        h('span', { class: 'brand-mark', 'aria-hidden': 'true' }),
        strings.brand,
      ),
      h('nav', { class: 'nav', 'aria-label': strings.navigation }, links),
      h(
        'div',
        { class: 'tools' },
        h(
          'span',
          { class: `model ${who.model}`, title: strings.modelTitle },
          h('span', { class: 'lamp', 'aria-hidden': 'true' }),
          h('span', { class: 'model-text' }, modelText),
        ),
        zones,
        themeButton,
        button(strings.help, showHelp, { icon: 'help', kind: 'quiet', bare: true, key: '?' }),
        who.users_required
          ? h(
              'details',
              { class: 'menu' },
              h(
                'summary',
                { 'aria-label': strings.account(who.name) },
                icon('user'),
                h('span', { class: 'menu-name' }, who.name),
              ),
              h(
                'div',
                { class: 'menu-body' },
                h('p', null, h('b', null, who.name)),
                h('p', { class: 'hint' }, strings.role(who.role)),
                who.via === 'session'
                  ? button(strings.login.change, passwordDialog, { icon: 'lock', small: true })
                  : null,
                button(strings.admin.tokens, () => tokensDialog(who.name), { icon: 'lock', small: true }),
                button(strings.logOut, leave, { icon: 'out', small: true }),
              ),
            )
          : null,
      ),
    ),
    h('main', { id: 'main', tabindex: '-1' }),
  );
  shortcuts.setPage([
    { keys: ['?'], text: strings.help, act: showHelp },
    {
      keys: ['d'],
      text: strings.theme,
      act: () => {
        theme.toggle();
        drawTheme();
      },
    },
    ...Object.entries(VIEWS)
      .filter(([, view]) => view.needs.some(may))
      .map(([name, view]) => ({
        keys: [`g ${view.key}`],
        text: strings.views[/** @type {'ask'} */ (name)],
        act: () => go(name),
      })),
  ]);
}

function focusMain() {
  const heading = document.querySelector('#main h1');
  if (heading instanceof HTMLElement) heading.focus();
}

/** @param {boolean} moved whether the person came from another view */
async function route(moved) {
  const main = document.getElementById('main');
  if (!main) return;
  open?.abort();
  const control = new AbortController();
  open = control;
  shortcuts.setView([]);
  const { name, params } = current();
  const view = VIEWS[name];
  document.querySelectorAll('.nav-link').forEach((link) => {
    if (/** @type {HTMLElement} */ (link).dataset.view === name) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  });
  const root = h('div', { class: `view view-${view ? name : 'none'}` });
  fill(main, showAbove(name === 'ask' || name === 'search' ? session().notices : []), root);
  const title = view ? strings.views[/** @type {'ask'} */ (name)] : strings.notFound;
  document.title = `${params.get('stream') ?? params.get('text') ?? title} · ${strings.brand}`;
  window.scrollTo(0, 0);
  if (!view || !view.needs.some(may)) {
    fill(root, h('h1', { tabindex: '-1' }, view ? strings.notAllowed : strings.notFound));
    return;
  }
  try {
    const shown = view.show(root, params, { signal: control.signal });
    if (moved && !(document.activeElement && root.contains(document.activeElement))) {
      const heading = root.querySelector('h1');
      if (heading instanceof HTMLElement) heading.focus({ preventScroll: true });
    }
    await shown;
  } catch (error) {
    if (!control.signal.aborted && !left(error)) root.append(problem(error, () => route(false)));
  }
}

async function leave() {
  try {
    await logOut();
    location.hash = '#/streams';
    showLogin(strings.login.left);
  } catch (error) {
    toast(explain(error), 'bad');
  }
}

function showHelp() {
  const { page, view } = shortcuts.list();
  const name = (/** @type {string} */ key) =>
    ({ ' ': strings.keys.space, ArrowLeft: '←', ArrowRight: '→' })[key] ?? key;
  const table = (/** @type {string} */ title, /** @type {import('./shortcuts.js').Shortcut[]} */ list) =>
    list.length
      ? h(
          'section',
          null,
          h('h3', null, title),
          h(
            'dl',
            { class: 'keys' },
            list.map(({ keys, text }) =>
              h(
                'div',
                null,
                h(
                  'dt',
                  null,
                  name(keys[0])
                    .split(' ')
                    .filter(Boolean)
                    .map((part) => h('kbd', null, part)),
                ),
                h('dd', null, text),
              ),
            ),
          ),
        )
      : null;
  dialog(
    strings.help,
    () => [
      h(
        'div',
        { class: 'key-columns' },
        table(strings.keys.here, view),
        table(strings.keys.everywhere, page),
        h(
          'section',
          null,
          h('h3', null, strings.keys.lists),
          h(
            'dl',
            { class: 'keys' },
            Object.entries(strings.keys.list).map(([key, text]) =>
              h(
                'div',
                null,
                h(
                  'dt',
                  null,
                  key.split(' ').map((part) => h('kbd', null, part)),
                ),
                h('dd', null, text),
              ),
            ),
          ),
        ),
      ),
      h('p', { class: 'hint' }, strings.version(session().version), ' · ', h('a', { href: 'api' }, strings.reference)),
    ],
    { wide: true },
  );
}
