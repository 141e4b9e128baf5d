/**
 * Shapes of what the server sends and takes, as in /openapi.json. Types only: nothing imports this file at run time.
 *
 * Times are RFC 3339 in UTC; boxes are [x0, y0, x1, y1] as shares of the picture, 0 to 1.
 *
 * @typedef {[number, number, number, number]} Box
 * @typedef {[string, string]} Interval
 *
 * @typedef {object} Session
 * @property {string} name
 * @property {string} role
 * @property {string} via
 * @property {string|null} csrf
 * @property {boolean} [oidc]
 * @property {boolean} users_required
 * @property {string} timezone
 * @property {string[]} actions
 * @property {string} version
 * @property {string} profile
 * @property {string} model
 * @property {string[]} notices
 *
 * @typedef {object} Problem
 * @property {string} [type]
 * @property {string} [title]
 * @property {number} [status]
 * @property {string} [detail]
 * @property {string} [code]
 * @property {string} [request_id]
 * @property {boolean} [oidc]
 */

/**
 * @template T
 * @typedef {{items: T[], next?: string|null, notices?: string[]}} Page
 */

/**
 * @typedef {object} Day
 * @property {string} day
 * @property {number} seconds
 * @property {Interval[]} gaps
 *
 * @typedef {object} Stream
 * @property {string} stream_id
 * @property {number} frames
 * @property {string|null} first
 * @property {string|null} last
 * @property {Day[]} days
 * @property {string[]} clock_sources
 * @property {string|null} picture
 * @property {null|{state: string, newest_age_seconds?: number|null, drops?: number|null, why?: string|null}} live
 * @property {null|{days?: number|null, bytes?: number|null}} retention
 * @property {null|{frame?: string|null, patch?: string|null}} encoder
 * @property {number} holds
 *
 * @typedef {'confirmed'|'rejected'|'not_looked'|'pending'|'unavailable'} Verdict
 *
 * @typedef {object} Verification
 * @property {Verdict} state
 * @property {string|null} [why]
 * @property {number|null} [probability]
 *
 * @typedef {object} Hit
 * @property {string} id
 * @property {string} stream_id
 * @property {string} start
 * @property {string} end
 * @property {string} best
 * @property {number} score
 * @property {number|null} percentile
 * @property {string} meaning
 * @property {string} thumbnail
 * @property {Verification} verification
 *
 * @typedef {object} Searched
 * @property {number} frames
 * @property {string[]} streams
 * @property {number} seconds
 *
 * @typedef {{items: Hit[], next: string|null, notices: string[], searched: Searched}} SearchPage
 *
 * @typedef {object} SearchRequest
 * @property {string} [text]
 * @property {{stream: string, at: string, box?: Box}} [like]
 * @property {string} [picture]
 * @property {number} [weight]
 * @property {string[]} [streams]
 * @property {string} [start]
 * @property {string} [end]
 * @property {string} [time_of_day]
 * @property {string} [timezone]
 * @property {number} [min_percentile]
 * @property {number} [limit]
 * @property {string} [cursor]
 *
 * @typedef {object} Keyframe
 * @property {string} stream_id
 * @property {string} captured_at
 * @property {number} score
 * @property {string|null} thumbnail
 *
 * @typedef {{times: string[], scores: number[]}} Curve
 *
 * @typedef {object} Selected
 * @property {string} [id]
 * @property {Keyframe[]} keyframes
 * @property {Curve|Record<string, Curve>|(Curve & {stream_id: string})[]} relevance
 * @property {number} window_frames
 * @property {number|null} [window_streams]
 *
 * @typedef {object} Answer
 * @property {string} answer
 * @property {string|null} [option]
 * @property {Record<string, number>|null} [probabilities]
 * @property {number} frames
 * @property {number} visual_tokens
 * @property {Record<string, number>} timings_seconds
 * @property {string[]} notices
 * @property {string} id
 *
 * @typedef {object} Question
 * @property {string} id
 * @property {string} question
 * @property {string[]|null} [options]
 * @property {string[]|null} [streams]
 * @property {string|null} [start]
 * @property {string|null} [end]
 * @property {string} asked_at
 * @property {string} state
 * @property {Selected|null} [selected]
 * @property {Answer|null} [answer]
 * @property {Problem|string|null} [error]
 *
 * @typedef {object} Frame
 * @property {string} captured_at
 * @property {number|null} [pts_seconds]
 * @property {number|null} [score]
 * @property {string|null} thumbnail
 *
 * @typedef {object} Play
 * @property {'video'|'stepper'|'none'} kind
 * @property {string|null} url
 * @property {string|null} type
 * @property {number|null} start_offset_seconds
 * @property {string|null} why
 *
 * @typedef {object} Moment
 * @property {string} stream_id
 * @property {string} at
 * @property {Frame[]} frames
 * @property {{stream_id: string, at: string, thumbnail: string|null}[]} others
 * @property {Play} play
 * @property {{source: string, zone: string|null}} clock
 *
 * @typedef {object} Job
 * @property {string} job
 * @property {string} state
 * @property {number} [progress]
 * @property {string} [kind]
 * @property {any} [result]
 * @property {Problem|string|null} [error]
 * @property {string} [label]
 *
 * @typedef {object} Hold
 * @property {string} id
 * @property {string} stream_id
 * @property {string} start
 * @property {string} end
 * @property {string} reason
 * @property {string} [by]
 * @property {string} [placed_at]
 * @property {string|null} [released_at]
 *
 * @typedef {object} Standing
 * @property {string} id
 * @property {string} text
 * @property {string[]} streams
 * @property {number|null} [threshold]
 * @property {boolean} muted
 * @property {string|null} [webhook]
 * @property {string|null} [last_fired]
 * @property {number} [fired]
 *
 * @typedef {object} Fired
 * @property {string} stream_id
 * @property {string} start
 * @property {string} end
 * @property {number|null} [peak]
 * @property {number|null} [percentile]
 * @property {string|null} [thumbnail]
 *
 * @typedef {object} Preview
 * @property {{edges: number[], counts: number[]}} histogram
 * @property {number|null} threshold
 * @property {Fired[]} would_have_fired
 * @property {boolean} warm
 * @property {string|null} why
 *
 * @typedef {object} User
 * @property {string} name
 * @property {{pattern: string, role: string}[]} grants
 * @property {boolean} [disabled]
 * @property {string|null} [created_at]
 * @property {string|null} [last_login_at]
 *
 * @typedef {object} Token
 * @property {string} id
 * @property {string} name
 * @property {string[]} scopes
 * @property {string|null} [created_at]
 * @property {string|null} [expires_at]
 * @property {string|null} [last_used_at]
 *
 * @typedef {object} AuditRecord
 * @property {number} seq
 * @property {string} at
 * @property {string} user
 * @property {string} [origin]
 * @property {string} [via]
 * @property {string} action
 * @property {string} [outcome]
 * @property {string[]} streams
 * @property {any} [detail]
 */

export {};
