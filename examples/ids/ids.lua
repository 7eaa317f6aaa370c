-- tracebridge's ids, for Envoy's Lua filter, nginx (OpenResty) and HAProxy: Lua 5.1 to 5.4, LuaJIT.
-- SHA-256 is given: resty.sha256 in OpenResty, or sha256.lua beside this file.

local Ids = {}

-- sha256: a function from a text to its digest in hexadecimal digits.
function Ids.new(sha256)
  local function trace_id(agent, session_id, turn_key)
    return sha256("tracebridge/1\n" .. agent .. "\n" .. session_id .. "\n" .. turn_key):sub(1, 32)
  end

  local function span_id(trace, kind, key)
    return sha256(trace .. "\n" .. kind .. "\n" .. key):sub(1, 16)
  end

  -- What to send on so that the upstream's spans lie under the turn; nil where nobody says whose
  -- the request is. `header` is a function from a header's name to its value or nil.
  local function traceparent(header)
    local session, prompt = header("x-claude-code-session-id"), header("x-claude-code-prompt-id")
    if not session or not prompt then return nil end
    local trace = trace_id("claude-code", session, prompt)
    return "00-" .. trace .. "-" .. span_id(trace, "turn", "") .. "-01"
  end

  return { trace_id = trace_id, span_id = span_id, traceparent = traceparent }
end

return Ids
