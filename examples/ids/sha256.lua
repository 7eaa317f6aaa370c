-- SHA-256 in plain Lua, 5.2 to 5.4 and LuaJIT, for proxies whose Lua has no library for it.

local TWO32 = 4294967296

-- LuaJIT (Envoy, OpenResty, HAProxy) and Lua 5.2 have a library; later ones have operators, at which
-- the others would stumble.
local bit = rawget(_G, "bit") or rawget(_G, "bit32") or load([[return {
  band = function(a, b) return a & b end, bxor = function(a, b) return a ~ b end }]])()
local band, bxor = bit.band, bit.bxor

local function odd(x, y, z) return bxor(bxor(x, y), z) % TWO32 end
local function choose(x, y, z) return bxor(z, band(x, bxor(y, z))) % TWO32 end
local function most(x, y, z) return bxor(band(x, y), band(z, bxor(x, y))) % TWO32 end

local function shift(value, by) return math.floor(value / 2 ^ by) end
local function rotate(value, by)
  return shift(value, by) + (value % 2 ^ by) * 2 ^ (32 - by)
end

-- The first 32 bits of the fractions of roots of the first primes.
local function fractions(count, power)
  local found, candidate = {}, 2
  while #found < count do
    local prime = true
    for divisor = 2, math.floor(candidate ^ 0.5) do
      if candidate % divisor == 0 then prime = false break end
    end
    if prime then
      -- By halving, exactly: a power of doubles would round the last bits.
      local low, high = 0, 20
      for _ = 1, 60 do
        local middle = (low + high) / 2
        local product = middle * middle * (power == 3 and middle or 1)
        if product <= candidate then low = middle else high = middle end
      end
      found[#found + 1] = math.floor((low % 1) * TWO32)
    end
    candidate = candidate + 1
  end
  return found
end

local K, START = fractions(64, 3), fractions(8, 2)

local function word(text, place)
  local a, b, c, d = text:byte(place, place + 3)
  return ((a * 256 + b) * 256 + c) * 256 + d
end

local function block(state, text, place)
  local w = {}
  for i = 1, 16 do w[i] = word(text, place + (i - 1) * 4) end
  for i = 17, 64 do
    local x, y = w[i - 15], w[i - 2]
    local s0 = odd(rotate(x, 7), rotate(x, 18), shift(x, 3))
    local s1 = odd(rotate(y, 17), rotate(y, 19), shift(y, 10))
    w[i] = (w[i - 16] + s0 + w[i - 7] + s1) % TWO32
  end
  local a, b, c, d, e, f, g, h = (table.unpack or unpack)(state)
  for i = 1, 64 do
    local s1 = odd(rotate(e, 6), rotate(e, 11), rotate(e, 25))
    local t1 = h + s1 + choose(e, f, g) + K[i] + w[i]
    local s0 = odd(rotate(a, 2), rotate(a, 13), rotate(a, 22))
    local t2 = s0 + most(a, b, c)
    a, b, c, d, e, f, g, h = (t1 + t2) % TWO32, a, b, c, (d + t1) % TWO32, e, f, g
  end
  local new = { a, b, c, d, e, f, g, h }
  for i = 1, 8 do state[i] = (state[i] + new[i]) % TWO32 end
end

return function(text)
  local state = { (table.unpack or unpack)(START) }
  local length = #text * 8
  text = text .. "\128" .. ("\0"):rep((55 - #text) % 64) .. "\0\0\0\0"
  for i = 3, 0, -1 do text = text .. string.char(math.floor(length / 256 ^ i) % 256) end
  for place = 1, #text, 64 do block(state, text, place) end
  local digits = {}
  for i = 1, 8 do digits[i] = ("%08x"):format(state[i]) end
  return table.concat(digits)
end
