-- The highest rate without loss, as RFC 2544 wants it (section 26.1), for each of its frame sizes or for SIZES="64 594":
-- the rate is halved between what was lossless and what was not, LOSS percent being none (default 0).
local nic = dofile((debug.getinfo(1, "S").source:match("^@(.*/)") or "./") .. "common.lua")

local steps, confirm = 8, 60 -- the last step is 100 % / 2^8; RFC 2544 asks for a minute
local tolerated = tonumber(os.getenv("LOSS") or 0)

local function lossless(rate, seconds)
	local sent, received = nic.run(rate, seconds)
	return sent > 0 and (sent - received) / sent * 100 <= tolerated
end

for size in (os.getenv("SIZES") or "64 128 256 512 1024 1280 1518"):gmatch("%d+") do
	nic.flood(tonumber(size))
	local good, bad, rate = 0, 100, 100
	for _ = 1, steps do
		if lossless(rate, nic.seconds) then
			good = rate
		else
			bad = rate
		end
		if good == 100 then
			break
		end
		rate = (good + bad) / 2
	end
	if good > 0 and lossless(good, math.max(confirm, nic.seconds)) then
		print(string.format("%s bytes: no loss at %g %%", size, good))
	else
		print(string.format("%s bytes: no rate without loss was confirmed; the last was %g %%", size, good))
	end
end
