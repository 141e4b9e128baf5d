/**
 * A player of one stream from one second on, with the clock of the wall on the picture.
 *
 * It plays the recording or the file; if the browser does not decode that, the server's transcoded copy; if there is none
 * either, it steps through the stored pictures, one a second. At the end of a file it goes on with the next.
 */

import { address, get, own, thumbnail } from './api.js';
import * as clock from './clock.js';
import { button, fill, h, icon, linkButton } from './dom.js';
import { spoken } from './moments.js';
import { dialog, explain, left, problem, waiting } from './notices.js';
import { href } from './router.js';
import { strings } from './strings.js';
import { nearest } from './timeline.js';

const SPEEDS = [0.5, 1, 2, 4, 8];
const FRAME = 1 / 25;
const STEPPER_SPAN = 190;
const STEPPER_LIMIT = 200;
const WIDEST = 1280;

/** @typedef {'video'|'transcoded'|'stepper'|'none'} Mode */

export class Player {
  /**
   * @param {{moment: import('./types.js').Moment, signal: AbortSignal, play?: boolean, moved?: (at: number, still: boolean) => void}} settings
   *   `moved`: called with the time of the picture, and whether the player rests there
   */
  constructor(settings) {
    this.moment = settings.moment;
    this.stream = settings.moment.stream_id;
    this.signal = settings.signal;
    this.moved = settings.moved ?? (() => {});
    this.wanted = Boolean(settings.play);
    /** @type {Mode} */
    this.mode = 'none';
    this.base = clock.millis(settings.moment.at);
    this.at = this.base;
    this.offset = 0;
    this.speed = 1;
    this.step = FRAME;
    /** Times of stored pictures, ascending. @type {number[]} */
    this.frames = [];
    /** The exact time of each, as the server writes it. @type {Map<number, string>} */
    this.names = new Map();
    this.keep(settings.moment.frames);
    /** @type {ReturnType<typeof setInterval>|undefined} */
    this.timer = undefined;
    this.video = h('video', { class: 'player-video', playsinline: true, preload: 'auto', tabindex: '-1' });
    this.image = h('img', { class: 'player-image', alt: '', decoding: 'async' });
    this.overlay = h('div', { class: 'player-clock', 'aria-hidden': 'true' });
    this.message = h('div', { class: 'player-note', role: 'status' });
    this.stage = h('div', { class: 'player-stage' }, this.video, this.image, this.overlay, this.message);
    this.playButton = button(strings.player.play, () => this.toggle(), {
      icon: 'play',
      kind: 'quiet',
      bare: true,
      key: 'Space',
    });
    this.soundButton = button(strings.player.sound, () => this.sound(), { icon: 'silent', kind: 'quiet', bare: true });
    this.seek = h('input', {
      type: 'range',
      class: 'player-seek',
      'aria-label': strings.player.seek,
      min: '0',
      max: '1',
      step: '0.04',
    });
    this.speedSelect = h(
      'select',
      { 'aria-label': strings.player.speed },
      SPEEDS.map((speed) => h('option', { value: String(speed), selected: speed === 1 }, `${speed}×`)),
    );
    this.element = h(
      'div',
      { class: 'player', role: 'group', 'aria-label': strings.player.name(this.stream) },
      this.stage,
      h(
        'div',
        { class: 'player-controls' },
        button(strings.player.back, () => this.stepFrame(-1), { icon: 'back', kind: 'quiet', bare: true, key: ',' }),
        this.playButton,
        button(strings.player.forward, () => this.stepFrame(1), {
          icon: 'forward',
          kind: 'quiet',
          bare: true,
          key: '.',
        }),
        this.seek,
        this.speedSelect,
        this.soundButton,
        button(strings.player.full, () => this.fullscreen(), { icon: 'full', kind: 'quiet', bare: true }),
      ),
    );
    this.video.muted = true;
    this.listen();
    this.open(settings.moment);
  }

  listen() {
    const { video, signal } = this;
    video.addEventListener('loadedmetadata', () => {
      if (Number.isFinite(video.duration)) this.seek.max = String(video.duration);
      if (this.offset) video.currentTime = this.offset;
      video.playbackRate = this.speed;
      this.tick();
      if (this.wanted) this.start();
    });
    video.addEventListener('durationchange', () => {
      if (Number.isFinite(video.duration)) this.seek.max = String(video.duration);
    });
    video.addEventListener('timeupdate', () => this.tick());
    video.addEventListener('seeked', () => this.tick());
    video.addEventListener('error', () => this.fallBack());
    video.addEventListener('ended', () => this.goOn());
    for (const event of ['play', 'pause']) video.addEventListener(event, () => this.state());
    video.addEventListener('click', () => this.toggle());
    this.image.addEventListener('error', () => {
      if (this.image.getAttribute('src')) this.say(strings.noPicture);
    });
    this.seek.addEventListener('input', () => {
      const value = Number(this.seek.value);
      if (this.mode === 'stepper') this.show(this.frames[Math.round(value)] ?? this.at);
      else video.currentTime = value;
    });
    this.speedSelect.addEventListener('change', () => {
      this.speed = Number(this.speedSelect.value);
      video.playbackRate = this.speed;
      if (this.timer) this.start();
    });
    document.addEventListener('zone', () => this.tick(), { signal });
    signal.addEventListener('abort', () => this.destroy());
    const measure = (/** @type {number} */ _now, /** @type {any} */ data) => {
      if (signal.aborted) return;
      const step = data.mediaTime - (this.lastMedia ?? data.mediaTime);
      if (step > 0.005 && step < 0.5 && !video.paused) this.step = step / (this.speed > 1 ? this.speed : 1);
      this.lastMedia = data.mediaTime;
      if (this.mode !== 'stepper') this.tick();
      video.requestVideoFrameCallback(measure);
    };
    if ('requestVideoFrameCallback' in video) video.requestVideoFrameCallback(measure);
  }

  /** @type {number|undefined} */
  lastMedia;

  /** @param {import('./types.js').Frame[]} frames */
  keep(frames) {
    this.names = new Map(frames.map((frame) => [clock.millis(frame.captured_at), frame.captured_at]));
    this.frames = [...this.names.keys()].sort((a, b) => a - b);
  }

  /**
   * The address of the stored picture of a time.
   *
   * @param {number} at
   */
  stored(at) {
    return thumbnail(this.stream, this.names.get(at) ?? this.moment.at, WIDEST);
  }

  /** Stop everything. */
  destroy() {
    clearInterval(this.timer);
    this.timer = undefined;
    this.video.removeAttribute('src');
    this.video.load();
  }

  /** @param {import('./types.js').Moment} moment */
  open(moment) {
    this.moment = moment;
    this.base = clock.millis(moment.at);
    this.at = this.base;
    const url = own(moment.play.url);
    this.say('');
    if (moment.play.kind === 'video' && url) this.useVideo('video', url, moment.play.start_offset_seconds ?? 0);
    else if (moment.play.kind === 'none' && !moment.frames.length) this.useNone(moment.play.why);
    else this.useStepper(moment.play.why);
    this.overlayText();
  }

  /**
   * @param {'video'|'transcoded'} mode
   * @param {string} url
   * @param {number} offset seconds of the moment in the file
   */
  useVideo(mode, url, offset) {
    this.setMode(mode);
    this.offset = offset;
    this.video.poster = this.stored(nearest(this.frames, this.at));
    this.video.src = url;
    this.video.load();
  }

  /** @param {string|null} [why] */
  async useStepper(why) {
    this.setMode('stepper');
    if (why) this.say(why, true);
    this.show(this.frames.length ? nearest(this.frames, this.at) : this.at);
    try {
      const reply = await get(
        '/frames',
        {
          stream: this.stream,
          from: clock.rfc3339(this.at - (STEPPER_SPAN / 2) * 1000),
          to: clock.rfc3339(this.at + (STEPPER_SPAN / 2) * 1000),
          limit: STEPPER_LIMIT,
        },
        this.signal,
      );
      if (reply.items.length) this.keep(reply.items);
      this.show(nearest(this.frames, this.at));
    } catch (error) {
      if (!left(error) && !this.frames.length) this.say(explain(error));
    }
    if (this.wanted) this.start();
  }

  /** @param {string|null|undefined} why */
  useNone(why) {
    this.setMode('none');
    this.image.src = this.stored(this.at);
    this.image.alt = strings.player.still(this.stream, spoken(clock.rfc3339(this.at)));
    this.say(why || strings.player.none);
  }

  /** @param {Mode} mode */
  setMode(mode) {
    this.mode = mode;
    const moving = mode === 'video' || mode === 'transcoded';
    this.video.hidden = !moving;
    this.image.hidden = moving;
    this.soundButton.hidden = !moving;
    this.seek.disabled = mode === 'none';
    this.seek.step = mode === 'stepper' ? '1' : '0.04';
    this.element.dataset.mode = mode;
    if (!moving && this.video.src) {
      this.video.removeAttribute('src');
      this.video.load();
    }
  }

  /** The browser cannot play it: take the transcoded copy, then the pictures. */
  fallBack() {
    if (!this.video.getAttribute('src') || this.signal.aborted) return;
    if (this.mode === 'video') {
      this.base = this.at;
      this.say(strings.player.transcoding, true);
      this.useVideo(
        'transcoded',
        address('/play', { stream: this.stream, at: clock.rfc3339(this.at), transcode: 1 }),
        0,
      );
    } else if (this.mode === 'transcoded') this.useStepper(strings.player.stepping);
  }

  /** Play what follows the end of a file. */
  async goOn() {
    const next = this.at + 1000;
    this.wanted = true;
    await this.jump(next, true);
  }

  /**
   * Go to a time, in another file if this one does not have it.
   *
   * @param {number} at
   * @param {boolean} [onwards] whether a moment before `at` is the end of the stream
   */
  async jump(at, onwards = false) {
    if (this.mode === 'stepper' || this.mode === 'none') {
      if (this.frames.length && at >= this.frames[0] && at <= this.frames[this.frames.length - 1]) {
        this.show(nearest(this.frames, at));
        return;
      }
    } else if (!onwards) {
      const target = this.offset + (at - this.base) / 1000;
      if (target >= 0 && target <= (this.video.duration || 0)) {
        this.video.currentTime = target;
        return;
      }
    }
    try {
      const moment = await get('/moment', { stream: this.stream, at: clock.rfc3339(at), span: 20 }, this.signal);
      if (onwards && clock.millis(moment.at) < at - 1000) {
        this.wanted = false;
        this.state();
        return;
      }
      this.keep(moment.frames);
      this.open(moment);
    } catch (error) {
      this.wanted = false;
      if (!left(error) && !onwards) this.say(explain(error), true);
      this.state();
    }
  }

  /** Whether it plays. */
  get playing() {
    return this.mode === 'stepper' ? this.timer !== undefined : !this.video.paused;
  }

  toggle() {
    if (this.playing) this.pause();
    else this.start();
  }

  start() {
    this.wanted = true;
    if (this.mode === 'stepper') {
      clearInterval(this.timer);
      this.timer = setInterval(() => this.stepFrame(1, true), 1000 / this.speed);
      this.state();
    } else if (this.mode !== 'none') {
      this.video.play().catch(() => this.state());
    }
  }

  pause() {
    this.wanted = false;
    clearInterval(this.timer);
    this.timer = undefined;
    this.video.pause();
    this.state();
    this.moved(this.at, true);
  }

  /**
   * @param {1|-1} direction
   * @param {boolean} [playing]
   */
  stepFrame(direction, playing = false) {
    if (!playing) this.pause();
    if (this.mode === 'stepper') {
      const index = this.frames.indexOf(nearest(this.frames, this.at)) + direction;
      if (index < 0 || index >= this.frames.length) {
        if (playing) this.pause();
        this.jump(this.at + direction * 1000);
      } else this.show(this.frames[index]);
    } else if (this.mode !== 'none') {
      const target = this.video.currentTime + direction * this.step;
      if (target < 0) this.jump(this.at - 1000);
      else this.video.currentTime = target;
    }
  }

  /** @param {number} seconds */
  skip(seconds) {
    this.jump(this.at + seconds * 1000);
  }

  /** @param {number} at time of a stored picture */
  show(at) {
    this.at = at;
    const text = clock.rfc3339(at);
    this.image.src = this.stored(at);
    this.image.alt = strings.player.still(this.stream, spoken(text));
    this.seek.max = String(Math.max(0, this.frames.length - 1));
    this.seek.value = String(this.frames.indexOf(at));
    this.overlayText();
    this.moved(at, !this.playing);
  }

  tick() {
    if (this.mode === 'video' || this.mode === 'transcoded') {
      if (this.video.readyState < 1) return;
      this.at = this.base + (this.video.currentTime - this.offset) * 1000;
      this.seek.value = String(this.video.currentTime);
      this.moved(this.at, this.video.paused && !this.video.seeking);
    }
    this.overlayText();
  }

  overlayText() {
    const whole = Math.floor(this.at / 1000) * 1000;
    const tenth = Math.floor((this.at - whole) / 100);
    const zone = clock.isUtc(whole) ? 'UTC' : clock.offset(whole);
    fill(
      this.overlay,
      h('span', { class: 'player-stream' }, this.stream),
      h('span', null, `${clock.stamp(whole)}.${tenth} ${zone}`),
      clock.isUtc(whole) ? null : h('span', { class: 'player-utc' }, clock.utc(whole)),
    );
    this.seek.setAttribute('aria-valuetext', spoken(clock.rfc3339(whole)));
  }

  state() {
    const playing = this.playing;
    fill(this.playButton, icon(playing ? 'pause' : 'play'));
    this.playButton.setAttribute('aria-label', playing ? strings.player.pause : strings.player.play);
  }

  sound() {
    this.video.muted = !this.video.muted;
    fill(this.soundButton, icon(this.video.muted ? 'silent' : 'sound'));
    this.soundButton.setAttribute('aria-label', this.video.muted ? strings.player.sound : strings.player.mute);
  }

  fullscreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.stage.requestFullscreen().catch(() => {});
  }

  /**
   * @param {string} text
   * @param {boolean} [passing] shown for some seconds
   */
  say(text, passing = false) {
    this.message.textContent = text;
    this.message.hidden = !text;
    if (passing) {
      setTimeout(() => {
        if (this.message.textContent === text) this.message.hidden = true;
      }, 7000);
    }
  }
}

/**
 * Play a moment in a dialog, over what the person was looking at.
 *
 * @param {string} stream
 * @param {string} at RFC 3339
 */
export async function watch(stream, at) {
  const control = new AbortController();
  const body = h('div', { class: 'stack' }, waiting(strings.loading));
  const closed = dialog(strings.player.name(stream), () => [body], { wide: true });
  closed.then(() => control.abort());
  const open = h(
    'div',
    { class: 'row end' },
    linkButton(strings.player.open, href('moment', { stream, at }), { icon: 'moment', small: true }),
  );
  try {
    const moment = await get('/moment', { stream, at, span: 20 }, control.signal);
    const player = new Player({ moment, signal: control.signal, play: true });
    fill(body, player.element, open);
    player.playButton.focus();
  } catch (error) {
    if (!left(error)) fill(body, problem(error), open);
  }
  await closed;
}
