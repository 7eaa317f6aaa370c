// OpenCode's plugin: tells the spool of turns, calls and tools, and names the turn in each request.
//
// Options, from `"plugin": [["file:///…/opencode.js", {…}]]`: `home` is the folder of the spool,
// `hook` the command of the Python hook, which starts a watcher if none lives. What a spool file
// looks like is told in tracebridge/spool.py; ids in tracebridge/ids.py. Writing is synchronous:
// `opencode run` exits right after a turn. Nothing here may throw: OpenCode awaits it.

import { spawn } from "node:child_process"
import { createHash } from "node:crypto"
import fs from "node:fs"
import os from "node:os"
import path from "node:path"
import { isMainThread } from "node:worker_threads"

const PAYLOAD_LIMIT = 10 << 20
const ENV_VALUE_LIMIT = 64 << 10
const SESSIONS_REMEMBERED = 1000
// After an answer that was cut short OpenCode asks again, at once and without limit.
const CUTS_TOLD = 100
const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"]
const ENV_NAMES = new Set([
  "AI_AGENT",
  "RESPAN_CUSTOMER_ID",
  "RESPAN_METADATA",
  "RESPAN_PROJECT_ID",
  "RESPAN_SPAN_NAME",
  "RESPAN_WORKFLOW_NAME",
  "TRACEPARENT",
])
const SECRET = /KEY|TOKEN|SECRET|PASSWORD|HEADERS/i
const OUTER = /^00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$/

const digest = (text, digits) => createHash("sha256").update(text).digest("hex").slice(0, digits)
const spanId = (trace, kind, key) => digest(`${trace}\n${kind}\n${key}`, 16)
const isSet = (value) => value !== undefined && value !== "" && value !== "0"

// A turn may be wanted in the trace of what OpenCode was started by; its spans keep their ids.
function outerTrace() {
  if (process.env.TRACEBRIDGE_TRACEPARENT_AS !== "parent") return undefined
  return OUTER.exec(process.env.TRACEBRIDGE_TRACEPARENT ?? "")?.[1]
}

function traceparent(root, turn, toolCall) {
  const trace = digest(`tracebridge/1\nopencode\n${root}\n${turn}`, 32)
  const span = toolCall ? spanId(trace, "tool", toolCall) : spanId(trace, "turn", "")
  return `00-${outerTrace() ?? trace}-${span}-01`
}

function stateHome() {
  const given = process.env.XDG_STATE_HOME
  if (given && path.isAbsolute(given)) return given
  const below = process.platform === "darwin" ? "Library/Application Support" : ".local/state"
  return path.join(os.homedir(), below)
}

// A signal that is ignored, as nohup wants it, must stay ignored: hearing it would undo that.
function heededSignals() {
  try {
    const status = fs.readFileSync("/proc/self/status", "utf8")
    const ignored = BigInt(`0x${/^SigIgn:\s*(\w+)/m.exec(status)[1]}`)
    const heeded = (name) => !((ignored >> BigInt(os.constants.signals[name] - 1)) & 1n)
    // In the terminal UI we are a thread beside the one that gets them, and are told of aborts.
    return isMainThread ? SIGNALS.filter(heeded) : []
  } catch {
    return []
  }
}

function database() {
  const data = path.join(
    process.env.XDG_DATA_HOME || path.join(os.homedir(), ".local/share"),
    "opencode",
  )
  return path.resolve(data, process.env.OPENCODE_DB || "opencode.db")
}

export const Tracebridge = async (context, options = {}) => {
  const home = path.resolve(
    process.env.TRACEBRIDGE_HOME || options.home || path.join(stateHome(), "tracebridge"),
  )
  const spool = ["spool", "spool/tmp", "spool/new"].map((name) => path.join(home, name))
  const sessions = new Map()
  const written = new Map()
  const running = new Set()
  const signals = heededSignals()
  // Root may work in a user's home, as in a container.
  const user = process.geteuid?.()
  let serial = 0
  let version

  const safely = (hook) => async (input, output) => {
    try {
      hook(input, output)
    } catch {
      // No room, no right to write, or a payload of a newer OpenCode. The turn must go on.
    }
  }

  function environment() {
    return Object.entries(process.env)
      .filter(([name]) => ENV_NAMES.has(name) || (/^TRACEBRIDGE_/.test(name) && !SECRET.test(name)))
      .map(([name, value]) => `env.${name}=${value.slice(0, ENV_VALUE_LIMIT)}`)
  }

  function write(event) {
    for (const folder of spool) {
      fs.mkdirSync(folder, { recursive: true, mode: 0o700 })
      const facts = fs.lstatSync(folder)
      // Somebody else may have put a link or a folder there to have events written to his place.
      if (!facts.isDirectory() || facts.mode & 0o002 || (user && facts.uid !== user)) return
    }
    const payload = Buffer.from(JSON.stringify(event))
    const time = BigInt(Math.trunc((performance.timeOrigin + performance.now()) * 1000)) * 1000n
    const name = `${String(time).padStart(20, "0")}-${process.pid}-${serial++}.event`
    const head = [
      "format=1",
      "kind=hook",
      "agent=opencode",
      `time_ns=${time}`,
      `pid=${process.pid}`,
      `payload_bytes=${payload.length}`,
      ...environment(),
    ]
    const file = path.join(spool[1], name)
    try {
      const body = [Buffer.from(`${head.join("\0")}\0\0`), payload.subarray(0, PAYLOAD_LIMIT)]
      fs.writeFileSync(file, Buffer.concat(body), { flag: "wx", mode: 0o600 })
      fs.renameSync(file, path.join(spool[2], name))
    } catch (error) {
      fs.rmSync(file, { force: true })
      throw error
    }
  }

  function session(id) {
    if (!sessions.has(id)) {
      if (sessions.size >= SESSIONS_REMEMBERED) sessions.delete(sessions.keys().next().value)
      sessions.set(id, { cuts: 0 })
    }
    return sessions.get(id)
  }

  // A subagent is a session of its own: it belongs to the turn that runs in the outermost one.
  function root(id) {
    for (let depth = 0; depth < 20 && sessions.get(id)?.parent; depth++) id = sessions.get(id).parent
    return id
  }

  function tell(type, sessionID, facts, turn = session(root(sessionID)).turn) {
    if (!turn) return
    const outermost = root(sessionID)
    const whose = { session: outermost, turn, subagent: outermost === sessionID ? undefined : sessionID }
    const info = { directory: context?.directory, database: database(), version }
    write({ type, ...whose, ...info, ...facts })
  }

  // Events repeat themselves; only what is new is worth a file.
  function tellOnce(key, type, sessionID, facts, content = digest(JSON.stringify(facts), 16)) {
    if (written.get(key) === content) return
    written.set(key, content)
    tell(type, sessionID, facts)
  }

  function startWatcher() {
    const [program, ...words] = Array.isArray(options.hook) ? options.hook : []
    if (!program || isSet(process.env.TRACEBRIDGE_NO_WATCH)) return
    const stdio = ["ignore", "ignore", "ignore"]
    const env = { ...process.env, TRACEBRIDGE_HOME: home }
    const child = spawn(program, words, { detached: true, stdio, env, cwd: "/" })
    child.on("error", () => {})
    child.unref()
  }

  function begin(sessionID, prompt) {
    const state = session(sessionID)
    const fresh = { error: undefined, answer: undefined, call: undefined, cuts: 0, queued: undefined }
    Object.assign(state, { own: prompt, ...fresh })
    if (state.parent) return
    state.turn = prompt
    written.clear()
    running.add(sessionID)
    hearSignals(true)
  }

  function prompted(sessionID, info, facts) {
    const state = session(sessionID)
    // Said while a turn runs, it waits until that turn's next call takes it up.
    if (running.has(sessionID)) (state.queued ??= new Set()).add(info.id)
    else begin(sessionID, info.id)
    tell("prompt", sessionID, { info, ...facts }, state.parent ? undefined : info.id)
  }

  function idle(sessionID) {
    const { error, answer, own } = session(sessionID)
    tellOnce(sessionID, "idle", sessionID, { own, error, answer })
  }

  // Sent to `opencode run`, a signal ends it without a word. It still does, once it is told.
  function interrupted(signal) {
    for (const id of running) safely(() => tell("interrupted", id, { signal }))()
    hearSignals(false)
    if (!process.listenerCount(signal)) process.kill(process.pid, signal)
  }

  function hearSignals(wanted) {
    for (const signal of signals) {
      process.off(signal, interrupted)
      if (wanted) process.on(signal, interrupted)
    }
  }

  function messageUpdated({ info }) {
    const state = session(info.sessionID)
    if (info.role !== "assistant") state.said = info
    else if (info.time.completed || info.error) {
      if (info.finish === "unknown" && ++state.cuts > CUTS_TOLD) return
      const trigger = info.summary ? state.compaction : undefined
      tellOnce(info.id, "message", info.sessionID, { info, trigger })
    } else if (info.id !== state.call) {
      if (state.queued?.has(info.parentID)) {
        idle(info.sessionID)
        begin(info.sessionID, info.parentID)
      }
      // What went wrong before did not end the turn.
      Object.assign(state, { call: info.id, error: undefined, sumsUp: info.summary })
    }
  }

  function partUpdated({ part }) {
    const state = session(part.sessionID)
    if (part.type === "tool") {
      const { status, metadata } = part.state
      if (status === "pending") return
      if (status === "running") {
        // A running shell repeats its whole output at each line; that of a task names its session.
        const known = { ...part.state, metadata: { sessionId: metadata?.sessionId } }
        const facts = { part: { ...part, state: known } }
        tellOnce(part.id, "part", part.sessionID, facts, `running ${metadata?.sessionId}`)
      } else tellOnce(part.id, "part", part.sessionID, { part })
    } else if (["reasoning", "text"].includes(part.type) && part.time?.end && !part.synthetic) {
      if (part.type === "text" && !state.sumsUp) state.answer = part.text
      if (state.cuts < CUTS_TOLD) tellOnce(part.id, "part", part.sessionID, { part })
    } else if (part.type === "compaction") {
      state.compaction = part.auto ? "auto" : "manual"
      // Asked for by the user, it is a turn of its own, and no `chat.message` tells of it. What is
      // older than its session was copied there by a fork.
      const own = state.said.time.created >= (state.created ?? 0)
      if (own && !part.auto) prompted(part.sessionID, state.said, { origin: "command" })
    }
  }

  function sessionUpdated({ info }) {
    const state = session(info.id)
    state.parent ??= info.parentID
    state.created ??= info.time?.created
    version ??= info.version
  }

  const onEvent = {
    "session.created": sessionUpdated,
    "session.updated": sessionUpdated,
    "session.status": ({ sessionID, status }) => {
      if (status.type === "retry") tell("retry", sessionID, { call: session(sessionID).call, status })
    },
    "session.error": ({ sessionID, error }) => {
      if (sessionID) session(sessionID).error = error
    },
    "session.idle": ({ sessionID }) => {
      idle(sessionID)
      if (running.delete(sessionID)) hearSignals(running.size > 0)
    },
    "message.updated": messageUpdated,
    "message.part.updated": partUpdated,
    "permission.asked": (asked) => tell("permission.asked", asked.sessionID, { asked }),
    "permission.replied": (replied) => tell("permission.replied", replied.sessionID, { replied }),
  }

  return {
    event: safely(({ event }) => onEvent[event.type]?.(event.properties)),
    "chat.message": safely(({ sessionID }, { message, parts }) => {
      const said = parts.filter((part) => part.type === "text" && !part.synthetic)
      prompted(sessionID, message, { text: said.map((part) => part.text).join("\n") })
      startWatcher()
    }),
    "chat.headers": safely(({ sessionID, agent, message }, { headers }) => {
      const outermost = root(sessionID)
      const turn = session(outermost).turn ?? message.id
      headers.traceparent ??= traceparent(outermost, turn)
      headers["x-tracebridge-session"] = outermost
      headers["x-tracebridge-turn"] = turn
      const { call } = session(sessionID)
      if (agent === "title" || agent === "compaction") headers["x-tracebridge-purpose"] = agent
      if (agent !== "title" && call) headers["x-tracebridge-call"] = call
    }),
    "shell.env": safely(({ sessionID, callID }, { env }) => {
      const outermost = root(sessionID)
      const { turn } = session(outermost)
      if (turn) env.TRACEPARENT = traceparent(outermost, turn, callID)
    }),
  }
}
